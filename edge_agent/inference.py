"""The model on this device: loading with suspicion, answering one frame, and being replaced between two frames.

The one home of ONNX Runtime in the agent.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as native
from PIL import Image

from curate.contracts.release import ModelSpec, ReleaseManifest
from curate.errors import SelfCheckError
from edge_agent.camera import Pixels
from edge_agent.onnx_scan import verify_self_contained

INPUT: Final = "images"
OUTPUTS: Final = ("probabilities", "embedding")
MAX_MODEL_BYTES: Final = 512 * 1024 * 1024

# ONNX Runtime's native errors (Fail, InvalidGraph, …) have no base of their own short of Exception.
_ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    RuntimeError,
    ValueError,
    TypeError,
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)


@dataclass(frozen=True, slots=True)
class Inference:
    """The model's raw answer to one frame."""

    probabilities: NDArray[np.float32]
    """[K]; not yet checked to be a distribution."""
    embedding: NDArray[np.float32]
    """[D]."""


class LoadedModel:
    """One release, ready to answer. Safe to call from several threads."""

    def __init__(self, session: ort.InferenceSession, manifest: ReleaseManifest) -> None:
        self._session = session
        self.manifest = manifest

    @property
    def release_id(self) -> str:
        """The release this model belongs to."""
        return self.manifest.release_id

    @property
    def number(self) -> int:
        """The release's number, which grows with each release."""
        return self.manifest.number

    @property
    def spec(self) -> ModelSpec:
        """What the model takes and gives."""
        return self.manifest.model

    def infer(self, image: Pixels) -> Inference:
        """Answer one RGB frame, uint8 [H, W, 3]; one of another size than the model's is resized (bilinear).

        Raises:
            SelfCheckError: the runtime failed on this frame.
        """
        batch = fit_image(image, height=self.spec.height, width=self.spec.width)[np.newaxis]
        try:
            probabilities, embedding = self._session.run(OUTPUTS, {INPUT: batch})
        except _ORT_ERRORS as exc:
            raise SelfCheckError(f"release {self.release_id} failed on a frame: {exc}") from exc
        return Inference(probabilities[0], embedding[0])


class LiveModel:
    """Holds the model that answers now. Whoever replaces it does not disturb a frame that is being answered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model: LoadedModel | None = None

    def current(self) -> LoadedModel | None:
        """Return the model to use for the next frame."""
        with self._lock:
            return self._model

    def replace(self, model: LoadedModel) -> None:
        """Let this model answer from the next frame on."""
        with self._lock:
            self._model = model


def fit_image(image: Pixels, *, height: int, width: int) -> Pixels:
    """Return the frame at the model's size, uint8 [height, width, 3]; unchanged when it already fits."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def load_model(path: Path, manifest: ReleaseManifest, *, threads: int = 1) -> LoadedModel:
    """Load a model file and try it on one black frame.

    The session is made from bytes, so a path inside the model has no folder to start from; the file is scanned for
    external data and foreign operators before ONNX Runtime sees it. Idle threads do not spin.

    Raises:
        SelfCheckError: the file cannot be read, is refused, or does not take and give what the manifest says.
    """
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise SelfCheckError(f"the model is larger than {MAX_MODEL_BYTES} bytes")
        raw = path.read_bytes()
    except OSError as exc:
        raise SelfCheckError(f"cannot read the model: {exc.strerror}") from exc
    verify_self_contained(raw)
    try:
        session = ort.InferenceSession(raw, _session_options(threads), providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as exc:
        raise SelfCheckError(f"release {manifest.release_id} does not load: {exc}") from exc
    _verify_signature(session, manifest.model)
    model = LoadedModel(session, manifest)
    _verify_answer(model)
    return model


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _verify_signature(session: ort.InferenceSession, spec: ModelSpec) -> None:
    if spec.kind != "classification":
        raise SelfCheckError(f"this agent runs classification models, not {spec.kind}")
    if spec.channels != 3:
        raise SelfCheckError(f"this agent feeds 3 channels, the model takes {spec.channels}")
    inputs = {item.name: item for item in session.get_inputs()}
    if set(inputs) != {INPUT} or inputs[INPUT].type != "tensor(uint8)":
        raise SelfCheckError(f"the model must take one uint8 input {INPUT!r}, it takes {_describe(inputs)}")
    expected = (spec.height, spec.width, spec.channels)
    shape = tuple(inputs[INPUT].shape)
    if len(shape) != 4 or any(isinstance(n, int) and n != want for n, want in zip(shape[1:], expected, strict=True)):
        raise SelfCheckError(f"the model takes {shape}, its manifest says [N, {spec.height}, {spec.width}, 3]")
    outputs = {item.name: item for item in session.get_outputs()}
    for name in OUTPUTS:
        if name not in outputs or outputs[name].type != "tensor(float)":
            raise SelfCheckError(f"the model must give a float32 output {name!r}, it gives {_describe(outputs)}")


def _verify_answer(model: LoadedModel) -> None:
    spec = model.spec
    answer = model.infer(np.zeros((spec.height, spec.width, 3), np.uint8))
    shapes = (answer.probabilities.shape, answer.embedding.shape)
    expected = ((len(spec.class_names),), (spec.embedding_dim,))
    if shapes != expected:
        raise SelfCheckError(f"the model answers with shapes {shapes}, its manifest says {expected}")


def _describe(items: dict[str, ort.NodeArg]) -> str:
    return ", ".join(f"{name}: {item.type}" for name, item in items.items()) or "nothing"
