"""Model files made to hurt whoever loads them, and a process of its own to load them in.

`python -m tests.fakes.hostile_models load|scan SEED FIRST COUNT` tries the cases FIRST to FIRST+COUNT and says one JSON
line before and after each, so that whoever watches knows which one killed it.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from curate.errors import SelfCheckError
from edge_agent.models.inference import load_model
from edge_agent.models.onnx_scan import ALLOWED_DOMAINS, REFUSED_OPERATORS, verify_self_contained
from tests.fakes.memory import peak_memory
from tests.fakes.mutations import damage_bytes
from tests.fakes.tiny_model import CLASSES, tiny_manifest, tiny_model

SIZE = 8
WILD_SHAPES: tuple[list[int | str], ...] = (
    [2**62, SIZE, SIZE, 3],
    ["N", 2**40, 2**40, 3],
    ["N", SIZE, SIZE],
    [],
    ["N", 9, 9, 3],
)
MAX_ADDRESS_SPACE_BYTES = 6 * 1024**3
"""ONNX Runtime reserves much and uses little; beyond this an allocation fails instead of hurting the machine."""


def external(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The tensor's data lies in a file of the model's choosing."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def _weights() -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros((1, 3), np.float32), "w")


def _spoilt(change: Any) -> bytes:
    model = tiny_model(SIZE)
    change(model)
    return bytes(model.SerializeToString())


def _subgraph(initializer: onnx.TensorProto | None = None, node: onnx.NodeProto | None = None) -> onnx.GraphProto:
    nodes = [node or helper.make_node("Identity", ["w"], ["y"])]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    return helper.make_graph(nodes, "branch", [], [output], [initializer or _weights()])


def _branching(branch: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=_subgraph())


def _nested(depth: int) -> onnx.NodeProto:
    node = _branching(_subgraph())
    for _ in range(depth):
        node = _branching(_subgraph(node=node))
    return node


def _bottomless(depth: int) -> bytes:
    """Deeper than any library would write: node, attribute, graph, node, ... by hand."""
    inner = b""
    for level in range(depth):
        tag = (b"\x0a", b"\x32", b"\x2a")[level % 3]  # Graph.node, Attribute.g, Node.attribute
        inner = tag + _padded(len(inner), random.Random(0), 0) + inner
    return bytes(tiny_model(SIZE).SerializeToString()) + b"\x3a" + _padded(len(inner), random.Random(0), 0) + inner


def _input_shape(model: onnx.ModelProto, dims: list[int | str]) -> None:
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, dims))


def _weights_shape(model: onnx.ModelProto, dims: list[int]) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)


def _sparse(model: onnx.ModelProto) -> None:
    values = external(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))


def _function(model: onnx.ModelProto, domain: str, node: onnx.NodeProto) -> None:
    model.functions.append(helper.make_function(domain, "f", ["a"], ["y"], [node], [helper.make_opsetid("", 18)]))


def monsters() -> Iterator[tuple[str, bytes]]:
    """Yield (what it is, file): none of them may be accepted."""
    constant = helper.make_node("Constant", [], ["c"], value=external(_weights()))
    foreign = helper.make_node("Open", ["images"], ["c"], domain="evil.corp")
    yield "nothing", b""
    yield "text", b"#!/bin/sh\nrm -rf /\n" * 100
    yield "zeros", bytes(10_000)
    yield "endless numbers", b"\xff" * 10_000
    yield "a message in a message without end", b":\xff\xff\xff\xff\x0f" * 5000
    yield "weights elsewhere", _spoilt(lambda m: external(m.graph.initializer[0]))
    yield (
        "only a place elsewhere",
        _spoilt(lambda m: m.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")),
    )
    yield "a constant elsewhere", _spoilt(lambda m: m.graph.node.append(constant))
    yield (
        "a branch's weights elsewhere",
        _spoilt(lambda m: m.graph.node.append(_branching(_subgraph(external(_weights()))))),
    )
    yield "sparse weights elsewhere", _spoilt(_sparse)
    yield "a function's constant elsewhere", _spoilt(lambda m: _function(m, "", constant))
    yield (
        "training weights elsewhere",
        _spoilt(lambda m: m.training_info.add().initialization.CopyFrom(_subgraph(external(_weights())))),
    )
    yield "an operator of somebody", _spoilt(lambda m: m.graph.node.append(foreign))
    yield (
        "an operator of somebody in a branch",
        _spoilt(lambda m: m.graph.node.append(_branching(_subgraph(node=foreign)))),
    )
    yield "an operator of somebody in a function", _spoilt(lambda m: _function(m, "", foreign))
    yield (
        "an operator that loads files",
        _spoilt(lambda m: m.graph.node.append(helper.make_node("EPContext", [], ["c"], domain="com.microsoft"))),
    )
    yield "an operator nobody knows", _spoilt(lambda m: m.graph.node.append(helper.make_node("Exfiltrate", [], ["c"])))
    yield "branches nested too deeply", _spoilt(lambda m: m.graph.node.append(_nested(24)))
    yield "branches nested beyond counting", _bottomless(3000)
    for dims in WILD_SHAPES:
        yield f"a picture of {dims}", _spoilt(lambda m, dims=dims: _input_shape(m, dims))
    yield "weights of 2^80 numbers", _spoilt(lambda m: _weights_shape(m, [2**40, 2**40]))
    yield "weights of a negative size", _spoilt(lambda m: _weights_shape(m, [-1, -3]))
    yield "weights that are cut off", _spoilt(lambda m: setattr(m.graph.initializer[0], "raw_data", b"\0"))
    yield "weights of no type", _spoilt(lambda m: setattr(m.graph.initializer[0], "data_type", 99))
    yield "a cycle", _spoilt(lambda m: m.graph.node[1].input.__setitem__(0, "product"))
    yield "inputs from nowhere", _spoilt(lambda m: m.graph.node[1].input.__setitem__(0, "nowhere"))
    yield "one name twice", _spoilt(lambda m: m.graph.node.append(m.graph.node[1]))
    yield "operators of the year 3000", _spoilt(lambda m: setattr(m.opset_import[0], "version", 10**9))
    yield "a format of the year 3000", _spoilt(lambda m: setattr(m, "ir_version", 10**9))
    yield "no operators named", _spoilt(lambda m: m.ClearField("opset_import"))
    yield "no answers", _spoilt(lambda m: m.graph.ClearField("output"))
    yield "no graph", _spoilt(lambda m: m.ClearField("graph"))
    yield "an answer that is no distribution", bytes(tiny_model(SIZE, probabilities="raw").SerializeToString())
    yield "another number of classes", _spoilt(_other_classes)
    yield "an answer that is no number", _spoilt(_not_a_number)
    yield "a tensor of terabytes", _spoilt(lambda m: _swollen(m, "ConstantOfShape", [2**20, 2**20, 4]))
    yield "a tensor stretched to terabytes", _spoilt(lambda m: _swollen(m, "Expand", [2**20, 2**20]))
    whole = bytes(tiny_model(SIZE).SerializeToString())
    for share in (0.1, 0.5, 0.9, 0.999):
        yield f"the first {share} of a model", whole[: int(len(whole) * share)]


def _other_classes(model: onnx.ModelProto) -> None:
    for name, shape in (("weights", (1, 5)), ("shift", (1, 5))):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = 5


def _not_a_number(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "shift")
    tensor.CopyFrom(numpy_helper.from_array(np.full((1, len(CLASSES)), np.nan, np.float32), "shift"))


def _swollen(model: onnx.ModelProto, operator: str, shape: list[int]) -> None:
    """The scale is multiplied with the sum of a tensor of that shape, so that no optimiser can leave it out."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "huge"))
    inputs = ["scale", "huge"] if operator == "Expand" else ["huge"]
    graph.node.insert(0, helper.make_node(operator, inputs, ["big"]))
    graph.node.insert(1, helper.make_node("ReduceMax", ["big"], ["most"], keepdims=0))
    graph.node.insert(2, helper.make_node("Add", ["scale", "most"], ["scale2"]))
    mul = next(node for node in graph.node if node.op_type == "Mul")
    mul.input[1] = "scale2"


def damaged(seed: int, number: int) -> bytes:
    """A model with seeded damage; the same for the same number. Some start from what must be refused."""
    rng = random.Random(seed * 1_000_003 + number)
    bases = [bytes(tiny_model(SIZE).SerializeToString()), _spoilt(lambda m: external(m.graph.initializer[0]))]
    bases.append(_spoilt(lambda m: m.graph.node.append(_branching(_subgraph(external(_weights()))))))
    raw = rng.choice(bases)
    if number % 3 == 0:
        return stretched(raw, "Model", rng)
    if number % 3 == 1:
        data = bytearray(raw)
        for _ in range(100):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    return damage_bytes(raw, rng, most=4)


_INSIDE = {
    "Model": {7: "Graph"},
    "Graph": {1: "Node", 5: "Tensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph"},
}


def stretched(raw: bytes, kind: str, rng: random.Random) -> bytes:
    """The same message in other bytes: numbers padded, fields repeated and exchanged. A parser must not care."""
    fields: list[bytes] = []
    at = 0
    while at < len(raw):
        tag, at = _read_number(raw, at)
        if tag & 7 == 2:
            size, at = _read_number(raw, at)
            inside = _INSIDE.get(kind, {}).get(tag >> 3)
            content = raw[at : at + size] if inside is None else stretched(raw[at : at + size], inside, rng)
            field = _padded(tag, rng, 5) + _padded(len(content), rng, 5) + content
            at += size
        elif tag & 7 == 0:
            value, at = _read_number(raw, at)
            field = _padded(tag, rng, 5) + _padded(value, rng, 10)
        else:
            width = 8 if tag & 7 == 1 else 4
            field = _padded(tag, rng, 5) + raw[at : at + width]
            at += width
        fields.append(field)
    if rng.random() < 0.1:
        rng.shuffle(fields)
    return b"".join(fields)


def _read_number(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _padded(value: int, rng: random.Random, most: int) -> bytes:
    digits = []
    while True:
        digits.append(value & 0x7F)
        value >>= 7
        if not value:
            break
    if rng.random() < 0.3:
        digits += [0] * rng.randint(0, max(0, most - len(digits)))
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])


def try_loading(raw: bytes, folder: Path) -> str:
    """Load it as a device does."""
    path = folder / "model.onnx"
    path.write_bytes(raw)
    try:
        load_model(path, tiny_manifest(SIZE))
    except SelfCheckError as exc:
        return "refused" if str(exc) else "refused without a word"
    return "loaded"


def try_scanning(raw: bytes) -> str:
    """Scan it, and let the reference parser say whether the scan was blind."""
    try:
        verify_self_contained(raw)
    except SelfCheckError:
        return "refused"
    try:
        model = onnx.ModelProto.FromString(raw)
    except Exception:
        return "accepted, no model"
    return "BLIND" if reaches_out(model) else "accepted"


def reaches_out(message: Any) -> bool:
    """Whether any part of the message names another file, a foreign domain or an operator that loads files."""
    if isinstance(message, onnx.TensorProto):
        return bool(message.external_data) or message.data_location == TensorProto.EXTERNAL
    if isinstance(message, onnx.NodeProto) and (
        message.domain not in ALLOWED_DOMAINS or message.op_type in REFUSED_OPERATORS
    ):
        return True
    for field, value in message.ListFields():
        if field.message_type is not None:
            parts = value if field.is_repeated else [value]
            if any(reaches_out(part) for part in parts):
                return True
    return False


def cases(seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield the monsters, then seeded damage without end."""
    yield from monsters()
    number = 0
    while True:
        yield f"damaged {number}", damaged(seed, number)
        number += 1


def main() -> None:
    """Try the cases that the arguments name."""
    mode, seed, first, count = sys.argv[1], *map(int, sys.argv[2:])
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE_BYTES, MAX_ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BrokenPipeError):
        for number, (name, raw) in enumerate(cases(seed)):
            if number >= first + count:
                break
            if number < first:
                continue
            _say(number=number, name=name)
            with peak_memory() as peak:
                try:
                    outcome = try_loading(raw, Path(folder)) if mode == "load" else try_scanning(raw)
                except BaseException as exc:
                    outcome = f"ESCAPED {type(exc).__name__}: {exc}"[:300]
            _say(number=number, outcome=outcome, grown_bytes=peak.grown_bytes)


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
