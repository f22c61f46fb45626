"""The model on this device: loading with suspicion, answering one frame, and being replaced between two frames.

What the answer means is the business of `curate.answers`; here it is named arrays.
The one home of ONNX Runtime in the agent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple, Protocol

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native
from PIL import Image

from curate.answers.base import AnswerKind, BadOutputError, Floats
from curate.answers.registry import ANSWERS
from curate.contracts.release import ModelSpec, ReleaseManifest
from curate.errors import SelfCheckError
from edge_agent.cameras.base import Pixels
from edge_agent.memory import return_free_memory
from edge_agent.models.onnx_scan import verify_self_contained
from edge_agent.models.providers import CPU, ProviderName, choose_providers, short_names

INPUT: Final = "images"
MAX_MODEL_BYTES: Final = 512 * 1024 * 1024
RUNTIME_VERSION: Final = str(ort.__version__)
_LATENCIES: Final = 64

# ONNX Runtime's native errors (Fail, InvalidGraph, …) have no base of their own short of Exception.
_ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    RuntimeError,
    ValueError,
    TypeError,
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
# An answer without a batch axis, or to no frame at all, has no row for the frame.
_RUN_ERRORS: Final[tuple[type[Exception], ...]] = (*_ORT_ERRORS, IndexError)


class Inference(NamedTuple):
    """The model's raw answer to one frame; not yet checked to be one."""

    outputs: dict[str, Floats]
    """By output name, without the batch axis."""
    seconds: float
    """What it took, resizing the frame included."""


class AnswerObserver(Protocol):
    """Is told of every frame that a model is given, from whichever thread gives it."""

    def begin(self) -> int:
        """A frame is given to the model; the number returned names it."""

    def answer(self, ticket: int, image: Pixels, outputs: dict[str, Floats]) -> None:
        """The model answered that frame."""

    def fail(self, ticket: int, problem: str) -> None:
        """The runtime failed on that frame."""


class LoadedModel:
    """One release, ready to answer. Safe to call from several threads."""

    def __init__(
        self, session: ort.InferenceSession, manifest: ReleaseManifest, *, threads: int = 1, notes: tuple[str, ...] = ()
    ) -> None:
        """Use `load_model`.

        Raises:
            SelfCheckError: this agent cannot read answers of the model's kind.
        """
        self._session: ort.InferenceSession | None = session
        self._providers = short_names(session.get_providers())
        self._run_options = ort.RunOptions()
        self._latencies_s: deque[float] = deque(maxlen=_LATENCIES)
        self._observer: AnswerObserver | None = None
        self.manifest = manifest
        # Told at every frame, so not looked up anew.
        self.release_id: Final = manifest.release_id
        """The release this model belongs to."""
        self.spec: Final = manifest.model
        """What the model takes and gives."""
        self._shape = (manifest.model.height, manifest.model.width, 3)
        self.kind = find_kind(manifest.model)
        """How its answers are read."""
        self.threads = threads
        self.notes = notes
        """What was asked for and could not be had."""
        self.output_shapes = _output_shapes(session, self.kind)
        """Shape of each output for one frame, by name, batch axis first; -1 where the file leaves a size open."""

    @property
    def number(self) -> int:
        """The release's number, which grows with each release."""
        return self.manifest.number

    @property
    def providers(self) -> tuple[str, ...]:
        """What runs it, in order of preference, by the names of the configuration."""
        return self._providers

    @property
    def p50_s(self) -> float | None:
        """Median seconds of the newest answers; None before the first."""
        latencies_s = list(self._latencies_s)
        return median(latencies_s) if latencies_s else None

    def observe(self, observer: AnswerObserver | None) -> None:
        """Tell this observer of every frame from the next one on; None ends it."""
        self._observer = observer

    def abort(self) -> None:
        """Make every answer under way, and every later one, fail at its next operator."""
        self._run_options.terminate = True

    def retire(self) -> None:
        """Give the memory back as soon as the answers under way are done, whoever still holds this object."""
        self._session = None

    def infer(self, image: Pixels) -> Inference:
        """Answer one RGB frame, uint8 [H, W, 3]; one of another size than the model's is resized (bilinear).

        Raises:
            SelfCheckError: the runtime failed on this frame.
        """
        observer = self._observer
        inference = self._run(image) if observer is None else self._run_observed(image, observer)
        self._latencies_s.append(inference.seconds)
        return inference

    def infer_posted(self, image: Pixels) -> Inference:
        """Answer a frame that no camera gave. No observer is told: a stranger must not decide a trial.

        Raises:
            SelfCheckError: the runtime failed on this frame.
        """
        return self._run(image)

    def _run_observed(self, image: Pixels, observer: AnswerObserver) -> Inference:
        ticket = observer.begin()
        try:
            inference = self._run(image)
        except SelfCheckError as exc:
            observer.fail(ticket, str(exc))
            raise
        observer.answer(ticket, image, inference.outputs)
        return inference

    def _run(self, image: Pixels) -> Inference:
        session = self._session
        if session is None:
            raise SelfCheckError(f"release {self.release_id} answers no more")
        started_s, names = time.perf_counter(), self.kind.output_names
        height, width, _ = self._shape
        batch = (image if image.shape == self._shape else fit_image(image, height=height, width=width))[np.newaxis]
        try:
            arrays = session.run(names, {INPUT: batch}, self._run_options)
            outputs = {}
            for name, array in zip(names, arrays, strict=True):  # a comprehension is a call, and all is cold here
                outputs[name] = array[0]
            return Inference(outputs, time.perf_counter() - started_s)
        except _RUN_ERRORS as exc:
            raise SelfCheckError(f"release {self.release_id} failed on a frame: {exc}") from exc


class LiveModel:
    """Holds the model that answers now. Whoever replaces it does not disturb a frame that is being answered.

    Thread-safe without a lock: there is one reference, and it is read and set as a whole.
    """

    def __init__(self) -> None:
        self._model: LoadedModel | None = None

    def current(self) -> LoadedModel | None:
        """Return the model to use for the next frame."""
        return self._model

    def replace(self, model: LoadedModel | None) -> None:
        """Let this model answer from the next frame on; None answers none."""
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


def available_providers() -> tuple[str, ...]:
    """Return what this build of the runtime has, by its own names."""
    return tuple(ort.get_available_providers())


def load_model(
    path: Path, manifest: ReleaseManifest, *, threads: int = 1, providers: Sequence[ProviderName] = ("cpu",)
) -> LoadedModel:
    """Load a model file and try it on one black frame.

    The session is made from bytes, so a path inside the model has no folder to start from; the file is scanned for
    external data and foreign operators before ONNX Runtime sees it. Idle threads do not spin. A provider that is not
    in this build, or that fails over the model, is passed over and noted; the CPU is always there.

    Raises:
        SelfCheckError: the file cannot be read, is refused, or does not take and give what the manifest says.
    """
    raw = read_model(path)
    verify_self_contained(raw)
    choice = choose_providers(providers, available_providers())
    notes = tuple(f"{name} is not in this build of ONNX Runtime" for name in choice.missing)
    try:
        session, failed = _open_session(raw, choice.runtime_names, threads)
    except _ORT_ERRORS as exc:
        raise SelfCheckError(f"release {manifest.release_id} does not load: {exc}") from exc
    del raw
    return_free_memory()  # before the first frame takes its own: what reading and optimising took is as much again
    model = LoadedModel(session, manifest, threads=threads, notes=(*notes, *failed))
    _verify_signature(session, manifest.model, model.kind)
    _verify_answer(model)
    return model


def read_model(path: Path) -> bytes:
    """Read a model file of a size that may be loaded.

    Raises:
        SelfCheckError: it is too large, or cannot be read.
    """
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise SelfCheckError(f"the model is larger than {MAX_MODEL_BYTES} bytes")
        return path.read_bytes()
    except OSError as exc:
        raise SelfCheckError(f"cannot read the model: {exc.strerror}", retryable=True) from exc


def _open_session(raw: bytes, providers: Sequence[str], threads: int) -> tuple[ort.InferenceSession, tuple[str, ...]]:
    """Return the session, and why it runs without some of the providers."""
    try:
        return _make_session(raw, providers, threads), ()
    except _ORT_ERRORS as exc:
        if list(providers) == [CPU]:
            raise
        names = ", ".join(short_names([name for name in providers if name != CPU]))
        return _make_session(raw, [CPU], threads), (f"{names} failed, the CPU stands in: {exc}",)


def _make_session(raw: bytes, providers: Sequence[str], threads: int) -> ort.InferenceSession:
    # The runtime's own way back to the CPU prints to standard output and tells nobody else.
    session = ort.InferenceSession(raw, _session_options(threads), providers=list(providers), enable_fallback=0)
    session._model_bytes = None  # kept only for that way back; as large as the model file
    return session


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


def _output_shapes(session: ort.InferenceSession, kind: AnswerKind) -> dict[str, tuple[int, ...]]:
    sizes = {item.name: item.shape[1:] for item in session.get_outputs()}
    return {
        name: (1, *(size if isinstance(size, int) else -1 for size in sizes.get(name, ())))
        for name in kind.output_names
    }


def _describe(items: dict[str, ort.NodeArg]) -> str:
    return ", ".join(f"{name}: {item.type}" for name, item in items.items()) or "nothing"
