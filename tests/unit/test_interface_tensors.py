"""Tensors of the Open Inference Protocol: what is read, and what is refused before it costs anything."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_agent.interfaces.refusals import RefusedRequestError
from edge_agent.interfaces.tensors import (
    BYTES,
    FP32,
    PICTURE_INPUT,
    PIXELS_INPUT,
    UINT8,
    InputTensor,
    OutputTensor,
    choose_outputs,
    pack_element,
    pack_json,
    read_pixels,
)

SIZE = 4
PIXELS = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (10, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def read(*inputs: InputTensor) -> Any:
    return read_pixels(inputs, height=SIZE, width=SIZE, max_pixels=1000)


def test_pixels_are_read_as_they_are() -> None:
    """A UINT8 tensor of the model's shape is that frame."""
    found = read(InputTensor(PIXELS_INPUT, UINT8, (1, SIZE, SIZE, 3), PIXELS.tobytes()))
    assert np.array_equal(found, PIXELS)


def test_a_picture_keeps_its_size() -> None:
    """A picture is decoded and not resized: boxes are told in its own pixels."""
    found = read(InputTensor(PICTURE_INPUT, BYTES, (1,), pack_element(png(20, 10))))
    assert found.shape == (10, 20, 3)
    assert found[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (InputTensor("frames", UINT8, (1, SIZE, SIZE, 3), PIXELS.tobytes()), "unknown input"),
        (InputTensor(PIXELS_INPUT, FP32, (1, SIZE, SIZE, 3), PIXELS.tobytes()), "datatype"),
        (InputTensor(PIXELS_INPUT, UINT8, (2, SIZE, SIZE, 3), PIXELS.tobytes() * 2), "shape"),
        (InputTensor(PIXELS_INPUT, UINT8, (-1, SIZE, SIZE, 3), PIXELS.tobytes()), "shape"),
        (InputTensor(PIXELS_INPUT, UINT8, (2**40, 2**40, 2**40), b""), "shape"),
        (InputTensor(PIXELS_INPUT, UINT8, (), b""), "shape"),
        (InputTensor(PIXELS_INPUT, UINT8, (1, SIZE, SIZE, 3), PIXELS.tobytes()[:-1]), "bytes"),
        (InputTensor(PICTURE_INPUT, UINT8, (1,), pack_element(png(1, 1))), "datatype"),
        (InputTensor(PICTURE_INPUT, BYTES, (2,), pack_element(png(1, 1)) * 2), "one picture"),
        (InputTensor(PICTURE_INPUT, BYTES, (1,), b""), "length"),
        (InputTensor(PICTURE_INPUT, BYTES, (1,), b"\xff\xff\xff\xff1234"), "length"),
        (InputTensor(PICTURE_INPUT, BYTES, (1,), pack_element(b"no picture")), "cannot decode"),
        (InputTensor(PICTURE_INPUT, BYTES, (1,), pack_element(png(1000, 1000))), "more than 1000"),
        (InputTensor(PICTURE_INPUT, BYTES, (1,), pack_element(png(5, 5)[:45])), "cannot decode"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(tensor: InputTensor, words: str) -> None:
    """Wrong names, types, shapes, lengths and pictures are refused; a huge shape costs nothing."""
    with pytest.raises(RefusedRequestError, match=words):
        read(tensor)


def test_one_input_is_one() -> None:
    """None, or two, is refused."""
    one = InputTensor(PIXELS_INPUT, UINT8, (1, SIZE, SIZE, 3), PIXELS.tobytes())
    with pytest.raises(RefusedRequestError, match="exactly one"):
        read()
    with pytest.raises(RefusedRequestError, match="exactly one"):
        read(one, one)


def test_json_numbers_come_flat_or_nested() -> None:
    """Both forms of the same tensor give the same bytes."""
    assert pack_json("x", UINT8, PIXELS.tolist()) == pack_json("x", UINT8, PIXELS.ravel().tolist()) == PIXELS.tobytes()


def test_a_picture_comes_in_base64() -> None:
    """JSON holds no bytes, so a picture is base64 there."""
    raw = png(3, 3)
    assert pack_json("image", BYTES, [base64.b64encode(raw).decode()]) == pack_element(raw)


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        (UINT8, [256]),
        (UINT8, [-1]),
        (UINT8, [1.5]),
        (UINT8, ["1"]),
        (UINT8, [1, [2]]),
        (UINT8, [[1], 2]),
        (UINT8, [[[]], "x" * 10_000]),
        (UINT8, [None]),
        (UINT8, [{"a": 1}]),
        (BYTES, ["not base64!"]),
        (BYTES, ["AAAA", "AAAA"]),
        (BYTES, [7]),
        (BYTES, []),
        ("FP64", [1.0]),
    ],
)
def test_wrong_json_elements_are_refused(datatype: str, data: list[Any]) -> None:
    """What is not of the type is refused, however it is nested."""
    with pytest.raises(RefusedRequestError):
        pack_json("x", datatype, data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=20,
)


@given(st.sampled_from([UINT8, BYTES]), st.lists(_JSON, max_size=5))
def test_any_json_is_packed_or_refused(datatype: str, data: list[Any]) -> None:
    """Whatever JSON holds, the answer is bytes or a refusal, never another error."""
    try:
        packed = pack_json("x", datatype, data)
    except RefusedRequestError:
        return
    assert isinstance(packed, bytes)


@given(st.binary(max_size=200), st.lists(st.integers(-(2**63), 2**63), max_size=5), st.sampled_from([UINT8, BYTES]))
def test_any_bytes_are_read_or_refused(raw: bytes, shape: list[int], datatype: str) -> None:
    """Whatever bytes and shape come, the answer is a frame or a refusal."""
    for name in (PIXELS_INPUT, PICTURE_INPUT):
        try:
            found = read(InputTensor(name, datatype, tuple(shape), raw))
        except RefusedRequestError:
            continue
        assert found.dtype == np.uint8


def test_outputs_are_chosen_by_name() -> None:
    """The wanted outputs come in the order of the request; unknown and repeated names are refused."""
    outputs = {name: OutputTensor(name, FP32, (1, 1), np.zeros((1, 1), np.float32)) for name in ("a", "b")}
    assert [output.name for output in choose_outputs(outputs, ["b", "a"])] == ["b", "a"]
    assert [output.name for output in choose_outputs(outputs, [])] == ["a", "b"]
    for wrong in (["c"], ["a", "a"]):
        with pytest.raises(RefusedRequestError):
            choose_outputs(outputs, wrong)
