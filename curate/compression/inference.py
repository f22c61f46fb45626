"""Running an exported model in ONNX Runtime, as a device would."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from curate.contracts.release import ModelSpec
from curate.errors import CompressionError

RUNTIME_ERRORS = (
    runtime.Fail,
    runtime.InvalidArgument,
    runtime.InvalidGraph,
    runtime.InvalidProtobuf,
    runtime.NoSuchFile,
    runtime.NotImplemented,
    runtime.RuntimeException,
)
"""What ONNX Runtime raises; these classes share no base but Exception."""


Outputs = Mapping[str, NDArray[np.float32]]
"""Each output of a model by name, row by row for the same frames."""

_PIXELS_A_BATCH = 2**20
_LARGEST_BATCH = 128


class OnnxModel:
    """One ONNX file of ours, whatever its kind. Reads the file once; a later change on disk does not reach it."""

    def __init__(self, path: Path, *, threads: int = 1, optimise: bool = True) -> None:
        """Load `path`. `optimise=False` runs the graph node by node as written: quantised layers then compute in float.

        Raises CompressionError when the file is missing or no model of ours.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads otherwise spin, and a camera's processor with them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map
            self.spec = _read_spec(metadata, {output.name: output.shape for output in self._session.get_outputs()})
        except (OSError, KeyError, ValueError, *RUNTIME_ERRORS) as exc:
            raise CompressionError(f"{path.name} is not a usable model: {exc}") from exc
        self.output_names: tuple[str, ...] = tuple(output.name for output in self._session.get_outputs())

    @property
    def kind(self) -> str:
        """Kind of its predictions."""
        return self.spec.kind

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one frame."""
        return self.spec.height, self.spec.width, self.spec.channels

    def run(self, images: NDArray[np.uint8], *, batch_size: int | None = None) -> Outputs:
        """Answer uint8 frames [N, H, W, 3], in batches that keep the memory bounded; N may be 0.

        Raises CompressionError when the frames do not fit the model.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.frame_shape:
            raise CompressionError(f"frames are {images.dtype} {images.shape[1:]}, the model takes {self.frame_shape}")
        height, width, _ = self.frame_shape
        size = batch_size or min(_LARGEST_BATCH, max(1, _PIXELS_A_BATCH // (height * width)))
        parts = [self._run(images[start : start + size]) for start in range(0, max(1, len(images)), size)]
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        return dict(zip(self.output_names, columns, strict=True))

    def _run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        try:
            answers: list[NDArray[np.float32]] = self._session.run(list(self.output_names), {"images": images})
        except RUNTIME_ERRORS as exc:
            raise CompressionError(f"the model failed on {len(images)} frames: {exc}") from exc
        return answers


def _read_spec(metadata: Mapping[str, str], shapes: Mapping[str, list[Any]]) -> ModelSpec:
    names, frame_shape = json.loads(metadata["class_names"]), json.loads(metadata["frame_shape"])
    return make_spec(metadata["kind"], names, frame_shape, shapes["embedding"][-1])


def make_spec(kind: str, class_names: Sequence[str], frame_shape: Sequence[int], embedding_dim: int) -> ModelSpec:
    """Return what a runtime must know of a model.

    Raises:
        ValueError: a value makes no sense.
    """
    height, width, channels = frame_shape
    return ModelSpec.model_validate(
        {
            "kind": kind,
            "class_names": class_names,
            "height": height,
            "width": width,
            "channels": channels,
            "embedding_dim": embedding_dim,
        }
    )


def measure_latency(path: Path, image: NDArray[np.uint8], *, repeats: int = 50) -> float:
    """Median time in milliseconds for one frame uint8 [H, W, 3] on one thread, after ten unmeasured runs.

    The median, because on a shared machine the mean measures the neighbours.
    """
    model = OnnxModel(path, threads=1)
    frame = image[None]
    for _ in range(10):
        model.run(frame)
    durations_ms = []
    for _ in range(repeats):
        started = time.perf_counter()
        model.run(frame)
        durations_ms.append((time.perf_counter() - started) * 1e3)
    return float(np.median(durations_ms))
