"""A tiny ONNX detector of a few nodes: each quarter of the frame is an object, as surely as it is bright."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curate.contracts.release import ModelSpec, ReleaseManifest
from tests.fakes.onnx_writer import FLOAT, UINT8, model, node
from tests.fakes.tiny_model import tiny_manifest

if TYPE_CHECKING:
    import onnx

SIZE = 32
SPEC = ModelSpec(kind="detection", class_names=["lamp"], height=SIZE, width=SIZE, embedding_dim=4)
BOXES = np.array([[2, 2, 14, 14], [18, 2, 30, 14], [2, 18, 14, 30], [18, 18, 30, 30]], np.float32)
"""[4, 4]: one box a quarter, row by row, in the model's pixels."""


def tiny_detector_bytes() -> bytes:
    """Return a model with four raw candidates, one a quarter; the probability is the quarter's mean brightness."""
    half = SIZE // 2
    constants = {
        "scale": np.array(1 / 255.0, np.float32),
        "quarters": np.array([-1, 2, half, 2, half * 3], np.int64),
        "within": np.array([2, 4], np.int64),
        "row": np.array([-1, 4], np.int64),
        "column": np.array([-1, 4, 1], np.int64),
        "zero": np.array(0.0, np.float32),
        "one": np.array(1.0, np.float32),
        "places": BOXES[np.newaxis],
    }
    nodes = [
        node("Cast", ["images"], ["floats"], to=FLOAT),
        node("Mul", ["floats", "scale"], ["scaled"]),
        node("Reshape", ["scaled", "quarters"], ["split"]),
        node("ReduceMean", ["split", "within"], ["means"], keepdims=0),
        node("Reshape", ["means", "row"], ["embedding"]),
        node("Reshape", ["means", "column"], ["probabilities"]),
        node("Mul", ["probabilities", "zero"], ["nothing"]),
        node("Add", ["places", "nothing"], ["boxes"]),
        node("Sub", ["one", "probabilities"], ["rest"]),
        node("Concat", ["probabilities", "rest"], ["box_embeddings"], axis=2),
    ]
    shapes = {"boxes": [4, 4], "probabilities": [4, 1], "box_embeddings": [4, 2], "embedding": [4]}
    outputs = {name: (FLOAT, ["N", *shape]) for name, shape in shapes.items()}
    return model(nodes, inputs={"images": (UINT8, ["N", SIZE, SIZE, 3])}, outputs=outputs, constants=constants)


def tiny_detector() -> onnx.ModelProto:
    """Return the same model for tests that change it. Needs the `onnx` package."""
    import onnx

    return onnx.load_model_from_string(tiny_detector_bytes())


def detector_manifest(release_id: str = "d-1") -> ReleaseManifest:
    """Return a manifest that fits `tiny_detector`."""
    return tiny_manifest(release_id=release_id).model_copy(update={"model": SPEC})


def quarters(*brightness: float, size: int = SIZE) -> NDArray[np.uint8]:
    """Return a frame, uint8 [size, size, 3], whose quarters have these brightnesses in [0, 1], row by row."""
    levels = np.array(brightness, np.float64).reshape(2, 2)
    grey = np.repeat(np.repeat(levels, size // 2, axis=0), size // 2, axis=1)
    return np.repeat((grey * 255).round().astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
