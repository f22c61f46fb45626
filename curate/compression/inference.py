"""Running an exported classifier in ONNX Runtime, as a device would."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

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


@dataclass(frozen=True)
class Predictions:
    """`probabilities` float32 [N, K] and `embeddings` float32 [N, D], row by row for the same frames."""

    probabilities: NDArray[np.float32]
    embeddings: NDArray[np.float32]


class OnnxClassifier:
    """One ONNX file as a classifier. Reads the file once; a later change on disk does not reach it."""

    def __init__(self, path: Path, *, threads: int = 1, optimise: bool = True) -> None:
        """Load `path`. `optimise=False` runs the graph node by node as written: quantised layers then compute in float.

        Raises CompressionError when the file is missing or no classifier of ours.
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
            self.class_names: tuple[str, ...] = tuple(json.loads(metadata["class_names"]))
            height, width, channels = json.loads(metadata["frame_shape"])
        except (OSError, KeyError, ValueError, *RUNTIME_ERRORS) as exc:
            raise CompressionError(f"{path.name} is not a usable classifier: {exc}") from exc
        self.frame_shape: tuple[int, int, int] = (height, width, channels)

    def predict(self, images: NDArray[np.uint8], *, batch_size: int = 128) -> Predictions:
        """Probabilities and embeddings of uint8 frames [N, H, W, 3], in batches; N may be 0.

        Raises CompressionError when the frames do not fit the model.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.frame_shape:
            raise CompressionError(f"frames are {images.dtype} {images.shape[1:]}, the model takes {self.frame_shape}")
        parts = [self._run(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
        parts = parts or [self._run(images)]
        probabilities, embeddings = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Predictions(probabilities, embeddings)

    def _run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            probabilities, embeddings = self._session.run(["probabilities", "embedding"], {"images": images})
        except RUNTIME_ERRORS as exc:
            raise CompressionError(f"the model failed on {len(images)} frames: {exc}") from exc
        return probabilities, embeddings


def measure_latency(path: Path, image: NDArray[np.uint8], *, repeats: int = 50) -> float:
    """Median time in milliseconds for one frame uint8 [H, W, 3] on one thread, after ten unmeasured runs.

    The median, because on a shared machine the mean measures the neighbours.
    """
    classifier = OnnxClassifier(path, threads=1)
    frame = image[None]
    for _ in range(10):
        classifier.predict(frame)
    durations_ms = []
    for _ in range(repeats):
        started = time.perf_counter()
        classifier.predict(frame)
        durations_ms.append((time.perf_counter() - started) * 1e3)
    return float(np.median(durations_ms))
