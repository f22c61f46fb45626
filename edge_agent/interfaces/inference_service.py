"""The Open Inference Protocol, version 2, without a transport: metadata, and an answer to one posted frame.

The model's name is always `live`, its version is the release that answers now: a client need not know which release a
device follows, and may ask for one to be sure. Protocol: kserve/open-inference-protocol.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import numpy as np

from curate.answers.base import BadOutputError
from curate.errors import SelfCheckError
from edge_agent.cameras.base import Pixels
from edge_agent.interfaces.refusals import InferenceFailedError, NoModelError, UnknownModelError
from edge_agent.interfaces.tensors import (
    BYTES,
    FP32,
    PICTURE_INPUT,
    PIXELS_INPUT,
    PREDICTION_OUTPUT,
    UINT8,
    InferAnswer,
    InferRequest,
    OutputTensor,
    TensorInfo,
    choose_outputs,
    read_pixels,
)
from edge_agent.models.inference import LiveModel, LoadedModel

SERVER_NAME: Final = "gleaner-agent"
MODEL_NAME: Final = "live"
PLATFORM: Final = "onnxruntime_onnx"
EXTENSIONS: Final = ("binary_tensor_data",)
_PREDICTION_ID: Final = "posted"
"""Posted frames are no predictions of a camera: nothing of them is remembered or captured."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model's metadata."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class InferenceService:
    """Answers with whichever model is live. Thread-safe; it keeps nothing."""

    def __init__(self, live: LiveModel, *, agent_version: str, max_pixels: int) -> None:
        """`max_pixels` bounds posted pictures."""
        self._live = live
        self._max_pixels = max_pixels
        self.agent_version = agent_version

    @property
    def is_ready(self) -> bool:
        """Whether a model answers."""
        return self._live.current() is not None

    def is_model_ready(self, name: str, version: str) -> bool:
        """Whether that model in that version (empty: any) answers now."""
        model = self._live.current()
        return model is not None and name == MODEL_NAME and version in {"", model.release_id}

    def describe(self, name: str, version: str) -> ModelInfo:
        """Return the model's metadata.

        Raises:
            UnknownModelError: there is none of that name and version.
            NoModelError: the device has no model yet.
        """
        model = self._find(name, version)
        spec = model.spec
        return ModelInfo(
            name=MODEL_NAME,
            versions=(model.release_id,),
            platform=PLATFORM,
            inputs=(
                TensorInfo(PIXELS_INPUT, UINT8, (1, spec.height, spec.width, 3)),
                TensorInfo(PICTURE_INPUT, BYTES, (1,)),
            ),
            outputs=(
                *(TensorInfo(output, FP32, shape) for output, shape in model.output_shapes.items()),
                TensorInfo(PREDICTION_OUTPUT, BYTES, (1,)),
            ),
        )

    def infer(self, request: InferRequest) -> InferAnswer:
        """Answer one posted frame. It takes as long as an inference: call it through `PostedWork`.

        Raises:
            RefusedRequestError: the request is not one this model answers; see its children.
            NoModelError: the device has no model yet.
            InferenceFailedError: the model failed on this frame.
        """
        model = self._find(request.model_name, request.model_version)
        spec = model.spec
        image = read_pixels(request.inputs, height=spec.height, width=spec.width, max_pixels=self._max_pixels)
        try:
            found = _answer(model, image)
        except InferenceFailedError:
            if self._live.current() is model:
                raise
            # It was replaced while it was asked; whichever answers now is asked instead.
            return self.infer(request)
        return InferAnswer(MODEL_NAME, model.release_id, request.request_id, choose_outputs(found, request.outputs))

    def _find(self, name: str, version: str) -> LoadedModel:
        if name != MODEL_NAME:
            raise UnknownModelError(f"there is no model {name!r}; the model's name is {MODEL_NAME!r}")
        model = self._live.current()
        if model is None:
            raise NoModelError("this device has no model yet")
        if version not in {"", model.release_id}:
            raise UnknownModelError(f"version {version!r} does not answer now; {model.release_id!r} does")
        return model


def _answer(model: LoadedModel, image: Pixels) -> dict[str, OutputTensor]:
    """Return every output for one frame, by name.

    Raises:
        InferenceFailedError: the runtime failed, or gave what is no answer.
    """
    height, width = image.shape[:2]
    try:
        raw = model.infer_posted(image).outputs
        model.kind.verify_outputs(raw, model.spec)
        answer = model.kind.reader(model.spec).read(raw, int(height), int(width))
        told = model.kind.describe(answer.to_prediction(_PREDICTION_ID, model.release_id), model.spec.class_names)
    except (SelfCheckError, BadOutputError) as exc:
        raise InferenceFailedError(f"the model did not answer: {exc}") from exc
    document = {"release_id": model.release_id, "kind": model.spec.kind, "scores": dict(answer.scores)} | told
    found = {
        name: OutputTensor(name, FP32, (1, *array.shape), np.ascontiguousarray(array)) for name, array in raw.items()
    }
    found[PREDICTION_OUTPUT] = OutputTensor(PREDICTION_OUTPUT, BYTES, (1,), json.dumps(document).encode())
    return found
