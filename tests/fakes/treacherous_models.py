"""Models that pass every check of theirs and turn bad on bright frames, as only the field finds out."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fakes.tiny_model import tiny_model

Treason = Literal["nan", "hang", "slow"]
BRIGHT = 254
"""The grey level from which on a frame is bright; no golden input is."""
_SLOW_TURNS = 60_000
_FOREVER = 2**62


def treacherous_model(size: int, treason: Treason, *, bias: float = 0.0) -> onnx.ModelProto:
    """Return the tiny model with a weakness: answers of NaN, none at all, or late ones."""
    model = tiny_model(size, bias=bias)
    graph = model.graph
    for node in graph.node:
        if node.op_type == "Add":
            node.output[0] = "honest"
    nodes = [
        helper.make_node("Greater", ["mean", "threshold"], ["is_bright"]),
        helper.make_node("Cast", ["is_bright"], ["flag"], to=TensorProto.FLOAT),
        *_TREASONS[treason],
    ]
    at = next(index for index, node in enumerate(graph.node) if "honest" in node.output)
    rest = list(graph.node)[at + 1 :]
    del graph.node[at + 1 :]
    graph.node.extend([*nodes, *rest])
    constants = {
        "threshold": np.array((BRIGHT - 0.5) / 255, np.float32),
        "one": np.array(1.0, np.float32),
        "zero": np.array(0.0, np.float32),
        "forever": np.array(float(_FOREVER), np.float32),
        "long": np.array(float(_SLOW_TURNS), np.float32),
        "true": np.array(True),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(model)
    return model


def _loop(turns: str) -> list[onnx.NodeProto]:
    """Turn in circles on bright frames: `turns` times, else not at all."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    return [
        helper.make_node("Mul", ["flag", turns], ["wanted"]),
        helper.make_node("Cast", ["wanted"], ["counts"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["counts"], ["count"], keepdims=0),
        helper.make_node("Loop", ["count", "true", "honest"], ["embedding"], body=body),
    ]


_TREASONS: dict[Treason, list[onnx.NodeProto]] = {
    "nan": [
        helper.make_node("Sub", ["one", "flag"], ["is_dark"]),
        helper.make_node("Div", ["zero", "is_dark"], ["poison"]),
        helper.make_node("ReduceMax", ["poison"], ["worst"], keepdims=0),
        helper.make_node("Add", ["honest", "worst"], ["embedding"]),
    ],
    "hang": _loop("forever"),
    "slow": _loop("long"),
}
