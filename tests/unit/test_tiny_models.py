"""The tiny models that stand for real ones are well-formed ONNX, though written by hand."""

from __future__ import annotations

import onnx
import pytest

from tests.fakes.tiny_detector import tiny_detector_bytes
from tests.fakes.tiny_model import tiny_model_bytes


@pytest.mark.parametrize(
    "raw", [tiny_model_bytes(), tiny_model_bytes(8, bias=0.5, probabilities="raw"), tiny_detector_bytes()]
)
def test_what_is_written_by_hand_is_onnx(raw: bytes) -> None:
    """ONNX's own checker finds no fault, with shapes inferred, and nothing is lost when it writes the model again."""
    model = onnx.load_model_from_string(raw)
    onnx.checker.check_model(model, full_check=True)
    assert onnx.load_model_from_string(model.SerializeToString()) == model
