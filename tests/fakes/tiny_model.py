"""A tiny ONNX classifier made of a few nodes, and the manifest that fits it. No training, no torch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from curate.contracts.release import Artifact, ModelSpec, ReleaseManifest
from tests.fakes.onnx_writer import FLOAT, UINT8, model, node

if TYPE_CHECKING:
    import onnx

CLASSES = ["dark", "middle", "bright"]
EMBEDDING_DIM = 3


def tiny_model_bytes(size: int = 32, *, bias: float = 0.0, probabilities: str = "softmax") -> bytes:
    """Return a model whose class follows the frame's mean brightness; `bias` shifts it.

    `probabilities="raw"` leaves the softmax out, so that what it answers is no distribution.
    """
    constants = {
        "weights": np.array([[-4.0, 0.0, 4.0]], np.float32),
        "shift": np.array([[2.0 + bias, 0.5, -2.0 - bias]], np.float32),
        "scale": np.array(1 / 255.0, np.float32),
        "axes": np.array([1, 2, 3], np.int64),
        "shape": np.array([-1, 1], np.int64),
    }
    nodes = [
        node("Cast", ["images"], ["floats"], to=FLOAT),
        node("Mul", ["floats", "scale"], ["scaled"]),
        node("ReduceMean", ["scaled", "axes"], ["mean"], keepdims=0),
        node("Reshape", ["mean", "shape"], ["column"]),
        node("MatMul", ["column", "weights"], ["product"]),
        node("Add", ["product", "shift"], ["embedding"]),
        node("Softmax" if probabilities == "softmax" else "Identity", ["embedding"], ["probabilities"]),
    ]
    outputs = {"probabilities": (FLOAT, ["N", len(CLASSES)]), "embedding": (FLOAT, ["N", EMBEDDING_DIM])}
    return model(nodes, inputs={"images": (UINT8, ["N", size, size, 3])}, outputs=outputs, constants=constants)


def tiny_model(size: int = 32, *, bias: float = 0.0, probabilities: str = "softmax") -> onnx.ModelProto:
    """Return the same model for tests that change it. Needs the `onnx` package."""
    import onnx

    return onnx.load_model_from_string(tiny_model_bytes(size, bias=bias, probabilities=probabilities))


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
