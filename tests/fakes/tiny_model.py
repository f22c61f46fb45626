"""A tiny ONNX classifier made of a few nodes, and the manifest that fits it. No training, no torch."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from curate.contracts.release import Artifact, ModelSpec, ReleaseManifest

CLASSES = ["dark", "middle", "bright"]
EMBEDDING_DIM = 3


def tiny_model(size: int = 32, *, bias: float = 0.0, probabilities: str = "softmax") -> onnx.ModelProto:
    """Return a model whose class follows the frame's mean brightness; `bias` shifts it.

    `probabilities="raw"` leaves the softmax out, so that what it answers is no distribution.
    """
    weights = numpy_helper.from_array(np.array([[-4.0, 0.0, 4.0]], np.float32), "weights")
    shift = numpy_helper.from_array(np.array([[2.0 + bias, 0.5, -2.0 - bias]], np.float32), "shift")
    scale = numpy_helper.from_array(np.array(1 / 255.0, np.float32), "scale")
    axes = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")
    shape = numpy_helper.from_array(np.array([-1, 1], np.int64), "shape")
    last = "Softmax" if probabilities == "softmax" else "Identity"
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["column"]),
        helper.make_node("MatMul", ["column", "weights"], ["product"]),
        helper.make_node("Add", ["product", "shift"], ["embedding"]),
        helper.make_node(last, ["embedding"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", size, size, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(CLASSES)]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", EMBEDDING_DIM]),
        ],
        [weights, shift, scale, axes, shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def tiny_manifest(
    size: int = 32, *, release_id: str = "r-1", number: int = 1, kind: str = "classification"
) -> ReleaseManifest:
    """Return a manifest that fits `tiny_model`; its digests are made up."""
    artifact = Artifact(target=f"{release_id}.onnx", sha256="0" * 64, size_bytes=1)
    return ReleaseManifest(
        release_id=release_id,
        number=number,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        model=ModelSpec.model_validate(
            {"kind": kind, "class_names": CLASSES, "height": size, "width": size, "embedding_dim": EMBEDDING_DIM}
        ),
        variants={"float": artifact},
        golden=artifact,
    )
