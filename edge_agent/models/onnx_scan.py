"""What an ONNX file refers to beyond itself, read from its bytes without the `onnx` package. Pure.

External tensor data reads files of the model's choosing and custom operator domains run code of its choosing, so a
device takes neither. Only the fields on the way to those two facts are followed; field numbers are from onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from curate.errors import SelfCheckError

ALLOWED_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""The standard operators and those compiled into ONNX Runtime, which its quantiser uses."""
REFUSED_OPERATORS: Final = frozenset({"EPContext"})
"""Built in, yet loads a file named by the model."""
_MAX_DEPTH: Final = 64


class _Wire(IntEnum):
    VARINT = 0
    FIXED64 = 1
    LENGTH = 2
    FIXED32 = 5


_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_OP_TYPE: Final = ("Node", 4)
_DOMAIN: Final = ("Node", 7)
_EXTERNAL_DATA: Final = ("Tensor", 13)
_DATA_LOCATION: Final = ("Tensor", 14)


def verify_self_contained(model: bytes) -> None:
    """Accept a serialised ModelProto that holds all its data and uses only built-in operators.

    Raises:
        SelfCheckError: external data, a foreign operator domain, or not an ONNX file.
    """
    try:
        _verify_message(memoryview(model), "Model", 0)
    except (IndexError, ValueError) as exc:
        raise SelfCheckError(f"not an ONNX model: {exc}") from exc


def _verify_message(data: memoryview, kind: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise SelfCheckError("the model's graphs are nested too deeply")
    children = _CHILDREN[kind]
    for number, value in _fields(data):
        field = (kind, number)
        if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0):
            raise SelfCheckError(
                "the model keeps tensors in other files", hint="Export it as one file (external_data=False)."
            )
        if isinstance(value, int):
            continue
        if field == _DOMAIN and (domain := _text(value)) not in ALLOWED_DOMAINS:
            raise SelfCheckError(f"the model uses operators of the domain {domain!r}")
        if field == _OP_TYPE and (operator := _text(value)) in REFUSED_OPERATORS:
            raise SelfCheckError(f"the model uses the operator {operator}, which loads other files")
        if (child := children.get(number)) is not None:
            _verify_message(value, child, depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, varint or bytes) of one message; fixed-width values are passed over."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        if tag >= 1 << 32:
            raise ValueError("a field number is too large")
        number, wire = tag >> 3, tag & 7
        if wire == _Wire.VARINT:
            value, position = _varint(data, position)
            yield number, value
        elif wire == _Wire.LENGTH:
            size, position = _varint(data, position)
            if position + size > len(data):
                raise ValueError("a field is longer than its message")
            yield number, data[position : position + size]
            position += size
        elif wire == _Wire.FIXED64:
            position += 8
        elif wire == _Wire.FIXED32:
            position += 4
        else:
            raise ValueError(f"unknown wire type {wire}")
    if position != len(data):
        raise ValueError("the last field is cut off")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is too long")


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")
