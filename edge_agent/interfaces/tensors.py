"""Tensors of the Open Inference Protocol, version 2: what came in becomes pixels, what the model gave becomes bytes.

The raw form (little-endian, row by row; elements of BYTES after their length in four bytes) is that of the protocol's
binary tensor data extension and of gRPC's `raw_input_contents`. Pure; no size that a request names is believed before
it is compared with what the model takes.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.cameras.base import Pixels, UndecodableError, decode_image
from edge_agent.interfaces.refusals import RefusedRequestError

PIXELS_INPUT: Final = "images"
"""UINT8 [1, height, width, 3], RGB, at the model's size."""
PICTURE_INPUT: Final = "image"
"""BYTES [1]: a JPEG or PNG of any size; it is resized as the camera's own frames are."""
PREDICTION_OUTPUT: Final = "prediction"
"""BYTES [1]: the answer as `GET /v1/predictions/{id}` tells it, in JSON."""
UINT8: Final = "UINT8"
BYTES: Final = "BYTES"
FP32: Final = "FP32"

_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One input as it came, in the raw form."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output for one frame."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    value: NDArray[np.float32] | bytes
    """FP32: the numbers, in `shape`. BYTES: the one element."""

    @property
    def raw(self) -> bytes:
        """The raw form."""
        if isinstance(self.value, bytes):
            return pack_element(self.value)
        return self.value.astype("<f4", copy=False).tobytes()

    @property
    def data(self) -> list[Any]:
        """The elements row by row, as JSON values."""
        return [self.value.decode()] if isinstance(self.value, bytes) else self.value.ravel().tolist()


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What one request asks; both transports are read into it."""

    model_name: str
    model_version: str
    """Empty: whichever answers now."""
    request_id: str
    inputs: tuple[InputTensor, ...]
    outputs: tuple[str, ...]
    """Empty: all."""


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """What the model gave, with its name and version."""

    model_name: str
    model_version: str
    request_id: str
    outputs: tuple[OutputTensor, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output in a model's metadata; -1 stands for a size that is open."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def read_pixels(inputs: Sequence[InputTensor], *, height: int, width: int, max_pixels: int) -> Pixels:
    """Return the one frame that the inputs hold, uint8 [H, W, 3]: of the model's size, or of the picture's own.

    Raises:
        RefusedRequestError: not exactly one input, an unknown one, one of another type, shape or length, or a picture
            that is damaged or of more than `max_pixels`.
    """
    if len(inputs) != 1:
        raise RefusedRequestError(
            f"give exactly one input, {PIXELS_INPUT!r} or {PICTURE_INPUT!r}; {len(inputs)} were given"
        )
    tensor = inputs[0]
    readers = {PIXELS_INPUT: _read_tensor, PICTURE_INPUT: _read_picture}
    if tensor.name not in readers:
        raise RefusedRequestError(f"unknown input {tensor.name!r}; give {PIXELS_INPUT!r} or {PICTURE_INPUT!r}")
    return readers[tensor.name](tensor, (1, height, width, 3), max_pixels)


def _read_tensor(tensor: InputTensor, expected: tuple[int, ...], max_pixels: int) -> Pixels:  # noqa: ARG001
    _verify_type(tensor, UINT8)
    if tensor.shape != expected:
        raise RefusedRequestError(f"input {tensor.name!r} has the shape {list(tensor.shape)}, not {list(expected)}")
    if len(tensor.raw) != math.prod(expected):
        raise RefusedRequestError(f"input {tensor.name!r} has {len(tensor.raw)} bytes, not {math.prod(expected)}")
    return np.frombuffer(tensor.raw, np.uint8).reshape(expected[1:])


def _read_picture(tensor: InputTensor, expected: tuple[int, ...], max_pixels: int) -> Pixels:  # noqa: ARG001
    _verify_type(tensor, BYTES)
    if tensor.shape not in {(1,), (1, 1)}:
        raise RefusedRequestError(f"input {tensor.name!r} has the shape {list(tensor.shape)}, not [1]: one picture")
    try:
        return decode_image(unpack_element(tensor), max_pixels=max_pixels)
    except UndecodableError as exc:
        raise RefusedRequestError(f"input {tensor.name!r}: {exc}", hint="Post a JPEG or PNG.") from exc


def _verify_type(tensor: InputTensor, datatype: str) -> None:
    if tensor.datatype != datatype:
        raise RefusedRequestError(f"input {tensor.name!r} has the datatype {tensor.datatype!r}, not {datatype}")


def unpack_element(tensor: InputTensor) -> bytes:
    """Return the one element of a BYTES tensor.

    Raises:
        RefusedRequestError: the lengths in it do not add up to one element.
    """
    declared = _LENGTH.unpack_from(tensor.raw)[0] if len(tensor.raw) >= _LENGTH.size else -1
    if declared != len(tensor.raw) - _LENGTH.size:
        raise RefusedRequestError(
            f"input {tensor.name!r} does not hold one element after its length in four little-endian bytes"
        )
    return tensor.raw[_LENGTH.size :]


def pack_element(element: bytes) -> bytes:
    """Return one element of a BYTES tensor in the raw form."""
    return _LENGTH.pack(len(element)) + element


def pack_json(name: str, datatype: str, data: list[Any]) -> bytes:
    """Return the raw form of a tensor whose elements came as JSON, flat or nested; a picture comes in base64.

    Raises:
        RefusedRequestError: an element is not of that type.
    """
    packers = {UINT8: _pack_numbers, BYTES: _pack_base64}
    if datatype not in packers:
        raise RefusedRequestError(f"input {name!r} has the datatype {datatype!r}; this model takes UINT8 or BYTES")
    try:
        return packers[datatype](_flatten(data))
    except (TypeError, ValueError, binascii.Error) as exc:
        words = "whole numbers from 0 to 255" if datatype == UINT8 else "one picture in base64"
        raise RefusedRequestError(f"input {name!r}: `data` must hold {words}") from exc


def _flatten(data: list[Any]) -> list[Any]:
    while data and isinstance(data[0], list):
        data = list(chain.from_iterable(data))
    return data


def _pack_numbers(flat: list[Any]) -> bytes:
    # Not numpy.asarray: one long text among many numbers would make every element as long as it.
    return bytes(flat)


def _pack_base64(flat: list[Any]) -> bytes:
    (text,) = flat
    return pack_element(base64.b64decode(text, validate=True))


def choose_outputs(found: Mapping[str, OutputTensor], wanted: Sequence[str]) -> tuple[OutputTensor, ...]:
    """Return the wanted outputs in the order of the request, or all.

    Raises:
        RefusedRequestError: an output is unknown or asked for twice.
    """
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise RefusedRequestError(f"unknown output {unknown[0]!r}; there are {', '.join(found)}")
    if len(set(wanted)) != len(wanted):
        raise RefusedRequestError("an output is asked for twice")
    return tuple(found[name] for name in wanted or found)
