"""Writes tiny ONNX files without the `onnx` package, which no camera has: protobuf by hand, the few messages we need.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT, UINT8, INT64 = 1, 2, 7
_TYPES = {np.dtype(np.float32): FLOAT, np.dtype(np.uint8): UINT8, np.dtype(np.int64): INT64}
_IR_VERSION, _OPSET = 9, 18
_INT_ATTRIBUTE = 2

Shape = Sequence[int | str]


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int) -> bytes:
    """Return one operator with whole-number attributes."""
    written = [_text(1, name) + _number(3, value) + _number(20, _INT_ATTRIBUTE) for name, value in attributes.items()]
    return b"".join(
        [
            *(_text(1, name) for name in inputs),
            *(_text(2, name) for name in outputs),
            _text(4, kind),
            *(_bytes(5, attribute) for attribute in written),
        ]
    )


def model(
    nodes: Sequence[bytes],
    *,
    inputs: Mapping[str, tuple[int, Shape]],
    outputs: Mapping[str, tuple[int, Shape]],
    constants: Mapping[str, NDArray[Any]],
) -> bytes:
    """Return a whole model; inputs and outputs are (element type, shape), where a text stands for any size."""
    graph = b"".join(
        [
            *(_bytes(1, item) for item in nodes),
            _text(2, "tiny"),
            *(_bytes(5, _tensor(name, value)) for name, value in constants.items()),
            *(_bytes(11, _value(name, *value)) for name, value in inputs.items()),
            *(_bytes(12, _value(name, *value)) for name, value in outputs.items()),
        ]
    )
    opset = _text(1, "") + _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, opset)


def _tensor(name: str, value: NDArray[Any]) -> bytes:
    dims = b"".join(_number(1, size) for size in value.shape)
    return dims + _number(2, _TYPES[value.dtype]) + _text(8, name) + _bytes(9, np.ascontiguousarray(value).tobytes())


def _value(name: str, element: int, shape: Shape) -> bytes:
    sizes = [_number(1, size) if isinstance(size, int) else _text(2, size) for size in shape]
    tensor = _number(1, element) + _bytes(2, b"".join(_bytes(1, size) for size in sizes))
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value % 2**64)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
