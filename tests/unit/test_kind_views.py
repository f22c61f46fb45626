"""What selection and compression make of each kind's answers, and how labels follow a scaled picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.answers.registry import ANSWERS
from curate.catalog.label_kinds import SCALE_LABEL
from curate.compression.golden import build_golden
from curate.compression.inference import OnnxModel
from curate.compression.kinds import KINDS, kind_of
from curate.contracts.prediction import DetectionPrediction, Prediction
from curate.errors import SelectionError
from curate.selection.views import VIEWS, view_frames
from tests.fakes.tiny_detector import SIZE, SPEC, quarters, tiny_detector

BRIGHT, DIM, DARK = 0.9, 0.5, 0.0


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The tiny detector as an exported file: it says what it is."""
    proto = tiny_detector()
    facts = {"kind": SPEC.kind, "class_names": '["lamp"]', "frame_shape": f"[{SIZE}, {SIZE}, 3]"}
    onnx.helper.set_model_props(proto, facts)
    path = tmp_path_factory.mktemp("detector") / "detector.onnx"
    onnx.save(proto, path)
    return OnnxModel(path)


def frames(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.stack([quarters(*row) for row in rows])


def predictions(detector: OnnxModel, images: np.ndarray) -> list[Prediction]:
    outputs, reader = detector.run(images), ANSWERS["detection"]
    return [
        reader.reader(SPEC).read({n: v[row] for n, v in outputs.items()}, SIZE, SIZE).to_prediction(f"p{row}", "r")
        for row in range(len(images))
    ]


def test_every_kind_is_known_to_every_stage() -> None:
    """A kind that can be read can be compressed, compared and scaled, so none is forgotten half-way."""
    assert set(ANSWERS) == set(KINDS) == set(VIEWS) == set(SCALE_LABEL)


def test_a_detector_agrees_with_itself_and_not_with_one_that_sees_other_boxes(detector: OnnxModel) -> None:
    """Parity is AP50 against the boxes that the reference shows: 1 for the same answers, less for a lost box."""
    kind = kind_of(detector)
    lit = detector.run(frames((BRIGHT, DARK, BRIGHT, DARK), (DARK, BRIGHT, DARK, DARK)))
    half = detector.run(frames((BRIGHT, DARK, DARK, DARK), (DARK, BRIGHT, DARK, DARK)))
    same, lost = kind.evaluate_parity(lit, lit), kind.evaluate_parity(lit, half)
    assert (same.agreement, same.divergence, same.max_abs_difference, same.n) == (1.0, 0.0, 0.0, 2)
    assert 0.5 < lost.agreement < 0.8
    assert lost.max_abs_difference > 0.5


def test_a_detector_that_shows_nothing_proves_nothing(detector: OnnxModel) -> None:
    """Without a box in the reference the agreement is unknown, which no gate takes for agreement."""
    dark = detector.run(frames((DARK, DARK, DARK, DARK)))
    assert np.isnan(kind_of(detector).evaluate_parity(dark, dark).agreement)


def test_golden_frames_of_a_detector_hold_the_least_sure_one(detector: OnnxModel, tmp_path: Path) -> None:
    """Three quarters are frames it is sure of, the last is the least sure; the file holds every output."""
    images = frames(*[(BRIGHT, DARK, DARK, DARK)] * 6, (DIM, DIM, DIM, DIM), (BRIGHT, BRIGHT, DARK, DARK))
    chosen = kind_of(detector).choose_golden(detector.run(images), 4)
    assert len(set(chosen.tolist())) == 4
    assert 6 in chosen.tolist()
    assert 6 not in chosen.tolist()[:3]
    path = tmp_path / "detector.onnx"
    proto = tiny_detector()
    onnx.helper.set_model_props(
        proto, {"kind": "detection", "class_names": '["lamp"]', "frame_shape": f"[{SIZE}, {SIZE}, 3]"}
    )
    onnx.save(proto, path)
    (tmp_path / "golden.npz").write_bytes(build_golden(path, images, 4))
    with np.load(tmp_path / "golden.npz", allow_pickle=False) as golden:
        assert set(golden.files) == {"images", "tolerance", *detector.output_names}


def test_frames_are_compared_by_their_boxes(detector: OnnxModel) -> None:
    """The same lamps are alike, other lamps are not, and an unsure frame is more uncertain than a sure one."""
    images = frames(
        (BRIGHT, DARK, DARK, DARK), (BRIGHT, DARK, DARK, DARK), (DARK, DARK, DARK, BRIGHT), (DIM, DIM, DARK, DARK)
    )
    seen = predictions(detector, images)
    view = view_frames("detection", seen, np.zeros((4, 4), np.float32), [(SIZE, SIZE)] * 4)
    cosine = view.embeddings @ view.embeddings.T
    assert cosine[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert cosine[0, 2] < 0.9
    assert view.probabilities is None
    assert view.uncertainty is not None
    assert view.uncertainty[3] > view.uncertainty[0]
    assert view.boxes[3] == pytest.approx(2 * DIM, abs=0.05)


def test_a_prediction_of_another_kind_is_named(detector: OnnxModel) -> None:
    """Frames of two kinds cannot be compared: an error, not a guess."""
    (said,) = predictions(detector, frames((BRIGHT, DARK, DARK, DARK)))
    assert isinstance(said, DetectionPrediction)
    with pytest.raises(SelectionError, match="detection"):
        view_frames("classification", [said], np.zeros((1, 4), np.float32), [(SIZE, SIZE)])
    with pytest.raises(SelectionError, match="segmentation"):
        view_frames("segmentation", [said], np.zeros((1, 4), np.float32), [(SIZE, SIZE)])


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_labels_follow_a_scaled_picture(factor_x: float, factor_y: float) -> None:
    """A class stays what it is; a box moves with its picture and comes back with it."""
    box = {"class": "person", "x_min": 3.0, "y_min": 4.0, "x_max": 10.0, "y_max": 30.0}
    scaled = SCALE_LABEL["detection"]({"boxes": [box]}, factor_x, factor_y)
    assert scaled["boxes"][0]["x_max"] == pytest.approx(10.0 * factor_x)
    assert scaled["boxes"][0]["y_min"] == pytest.approx(4.0 * factor_y)
    back = SCALE_LABEL["detection"](scaled, 1 / factor_x, 1 / factor_y)["boxes"][0]
    assert {name: back[name] for name in box if name != "class"} == pytest.approx(
        {name: value for name, value in box.items() if name != "class"}
    )
    assert SCALE_LABEL["classification"]({"class": "boot"}, factor_x, factor_y) == {"class": "boot"}
