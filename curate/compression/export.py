"""From a trained torch model to one self-contained ONNX file."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from curate.compression.inference import RUNTIME_ERRORS, make_spec
from curate.compression.kinds import find_kind
from curate.errors import CompressionError

OPSET = 18
"""Old enough for every ONNX Runtime a camera may carry (1.14 and later), new enough for the exporter not to convert."""


class Exportable(Protocol):
    """What export asks of a model, whatever its kind. The training side offers it; neither imports the other."""

    @property
    def kind(self) -> str:
        """Kind of its predictions, for example `classification`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in output order."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one frame."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what the serving module returns, in order."""

    def serving_module(self) -> nn.Module:
        """Module in evaluation mode that takes raw uint8 frames [N, H, W, C] and does everything else itself."""


def export_onnx(model: Exportable, path: Path) -> None:
    """Write `model` as one ONNX file: input `images` uint8 [N, H, W, C] with free N, outputs as `model.output_names`.

    Weights are inside the file (external data would let a model name files on the device). Its metadata carries `kind`,
    `class_names` and `frame_shape`. The file appears under its name only after ONNX Runtime has reproduced the torch
    outputs from it. Raises CompressionError when export fails or the outputs differ.
    """
    module = model.serving_module()
    frames = _probe_frames(model.frame_shape)
    proto = _strip(_to_onnx(module, frames, model.output_names))
    _write_metadata(proto, model)
    payload = proto.SerializeToString()
    _verify_same_answers(module, payload, frames, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(payload)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _probe_frames(frame_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, *frame_shape), dtype=np.uint8)


def _to_onnx(module: nn.Module, frames: NDArray[np.uint8], output_names: tuple[str, ...]) -> onnx.ModelProto:
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # The exporter and onnxscript warn about their own internals; nothing a caller could act on.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (torch.from_numpy(frames),),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=list(output_names),
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError) as exc:
        raise CompressionError(f"the model cannot be exported: {exc}") from exc
    finally:
        exporter_log.setLevel(level)
    if program is None:
        raise CompressionError("the exporter returned no model")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _strip(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the exporter's notes (stack traces with paths of the build machine) and shapes it can infer again."""
    proto.graph.ClearField("metadata_props")
    proto.graph.ClearField("value_info")
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    proto.ClearField("functions")
    return proto


def _write_metadata(proto: onnx.ModelProto, model: Exportable) -> None:
    proto.ClearField("metadata_props")
    properties = {
        "kind": model.kind,
        "class_names": json.dumps(model.class_names),
        "frame_shape": json.dumps(model.frame_shape),
    }
    onnx.helper.set_model_props(proto, properties)
    proto.producer_name, proto.producer_version, proto.doc_string = "gleaner", "", ""


def _verify_same_answers(module: nn.Module, payload: bytes, frames: NDArray[np.uint8], model: Exportable) -> None:
    """Raises CompressionError unless ONNX Runtime answers as torch does, for a batch of another size than exported.

    Answers are compared as a device compares them: candidates of equal score may come in another order.
    """
    for batch in (frames[:1], np.concatenate([frames, frames[::-1]])):
        with torch.inference_mode():
            given = [output.numpy() for output in module(torch.from_numpy(batch))]
        expected = dict(zip(model.output_names, given, strict=True))
        actual = dict(zip(model.output_names, _run(payload, batch, model.output_names), strict=True))
        for name in model.output_names:
            if actual[name].shape != expected[name].shape:
                raise CompressionError(
                    f"output {name} is {actual[name].shape} in ONNX and {expected[name].shape} in torch"
                )
        embedding_dim = expected["embedding"].shape[-1]
        kind = find_kind(make_spec(model.kind, model.class_names, model.frame_shape, embedding_dim))
        gap = kind.difference(actual, expected)
        if not gap <= kind.export_tolerance:
            raise CompressionError(f"the exported model's answers differ from torch's by {gap:.2g}")


def _run(payload: bytes, frames: NDArray[np.uint8], output_names: tuple[str, ...]) -> list[NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
        outputs: list[NDArray[np.float32]] = session.run(list(output_names), {"images": frames})
    except RUNTIME_ERRORS as exc:
        raise CompressionError(f"ONNX Runtime cannot run the exported model on {len(frames)} frames: {exc}") from exc
    return outputs
