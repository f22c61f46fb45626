"""The model on this device: loading with suspicion, answering one frame, and being replaced between two frames.

What the answer means is the business of `curate.answers`; here it is named arrays.
The one home of ONNX Runtime in the agent.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native
from PIL import Image

from curate.answers.base import AnswerKind, BadOutputError, Floats
from curate.answers.registry import ANSWERS
from curate.contracts.release import ModelSpec, ReleaseManifest
from curate.errors import SelfCheckError
from edge_agent.cameras.base import Pixels
from edge_agent.models.onnx_scan import verify_self_contained

INPUT: Final = "images"
MAX_MODEL_BYTES: Final = 512 * 1024 * 1024

# ONNX Runtime's native errors (Fail, InvalidGraph, …) have no base of their own short of Exception.
_ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    RuntimeError,
    ValueError,
    TypeError,
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
# An answer without a batch axis, or to no frame at all, has no row for the frame.
_RUN_ERRORS: Final[tuple[type[Exception], ...]] = (*_ORT_ERRORS, IndexError)


@dataclass(frozen=True, slots=True)
class Inference:
    """The model's raw answer to one frame; not yet checked to be one."""

    outputs: dict[str, Floats]
    """By output name, without the batch axis."""


class LoadedModel:
    """One release, ready to answer. Safe to call from several threads."""

    def __init__(self, session: ort.InferenceSession, manifest: ReleaseManifest) -> None:
        """Use `load_model`.

        Raises:
            SelfCheckError: this agent cannot read answers of the model's kind.
        """
        self._session = session
        self.manifest = manifest
        self.kind = find_kind(manifest.model)
        """How its answers are read."""

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
            arrays = self._session.run(self.kind.output_names, {INPUT: batch})
            return Inference({name: array[0] for name, array in zip(self.kind.output_names, arrays, strict=True)})
        except _RUN_ERRORS as exc:
            raise SelfCheckError(f"release {self.release_id} failed on a frame: {exc}") from exc


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


def find_kind(spec: ModelSpec) -> AnswerKind:
    """Return how answers of the model's kind are read.

    Raises:
        SelfCheckError: this agent does not know the kind.
    """
    kind = ANSWERS.get(spec.kind)
    if kind is None:
        raise SelfCheckError(f"this agent reads answers of the kinds {', '.join(ANSWERS)}, not {spec.kind}")
    return kind


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
    model = LoadedModel(session, manifest)
    _verify_signature(session, manifest.model, model.kind)
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


def _verify_signature(session: ort.InferenceSession, spec: ModelSpec, kind: AnswerKind) -> None:
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
    for name in kind.output_names:
        if name not in outputs or outputs[name].type != "tensor(float)":
            raise SelfCheckError(f"the model must give a float32 output {name!r}, it gives {_describe(outputs)}")


def _verify_answer(model: LoadedModel) -> None:
    spec = model.spec
    answer = model.infer(np.zeros((spec.height, spec.width, 3), np.uint8))
    try:
        model.kind.verify_outputs(answer.outputs, spec)
    except BadOutputError as exc:
        raise SelfCheckError(f"the model's answer to a black frame is none: {exc}") from exc


def _describe(items: dict[str, ort.NodeArg]) -> str:
    return ", ".join(f"{name}: {item.type}" for name, item in items.items()) or "nothing"
