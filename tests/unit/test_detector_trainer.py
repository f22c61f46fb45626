"""Training a detector on a tiny world: a property per test, some seconds in all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from curate.compression.export import export_onnx
from curate.errors import TrainingError
from curate.training.data import LabelledFrames
from curate.training.detector import TrainedDetector, load_detector
from curate.training.detector_data import read_boxes
from curate.training.detector_quality import match_detections
from curate.training.detector_recipe import DetectorShape
from curate.training.detector_trainer import train_detector
from curate.training.loop import EpochReport
from tests.unit.detector_world import NAMES, RECIPE, SHORT, SIDE, blocks


@pytest.fixture(scope="module")
def model() -> TrainedDetector:
    """A detector of the small world."""
    return train_detector(blocks(32, 0), blocks(12, 1), NAMES, RECIPE, seed=7)


def test_it_learns(model: TrainedDetector) -> None:
    """Two dozen frames of an easy world suffice to find most objects of unseen ones, in the right class."""
    unseen = blocks(16, 2)
    raw = model.predict(unseen.images)
    matches = match_detections(raw.boxes, raw.probabilities, read_boxes(unseen, NAMES))
    assert matches.average_precision() > 0.7
    assert model.validation["ap50"] > 0.7
    assert model.validation["boxes"] == 18


def test_raw_answers_have_the_shapes_everybody_relies_on(model: TrainedDetector) -> None:
    """Boxes lie inside the frame, scores fall, embeddings have length 1; for any number of frames, none too."""
    for count in (0, 5):
        raw = model.predict(blocks(count, 3).images if count else np.zeros((0, SIDE, SIDE, 3), np.uint8))
        assert raw.boxes.shape == (count, 16, 4)
        assert raw.probabilities.shape == (count, 16, 2)
        assert raw.box_embeddings.shape == (count, 16, 8)
        assert raw.embedding.shape == (count, 12)
        assert (raw.boxes >= 0).all()
        assert (raw.boxes <= SIDE).all()
        assert (raw.boxes[..., 2:] >= raw.boxes[..., :2]).all()
        assert (np.diff(raw.probabilities.max(axis=2), axis=1) <= 0).all()
        assert np.allclose(np.linalg.norm(raw.box_embeddings, axis=2), 1, atol=1e-3)
        assert np.allclose(np.linalg.norm(raw.embedding, axis=1), 1, atol=1e-3)


def test_same_seed_same_model(model: TrainedDetector) -> None:
    """Training again, watched, gives bit-identical weights and calibration, whatever the global generator is at."""
    first = train_detector(blocks(6, 0), blocks(4, 1), NAMES, SHORT, seed=7)
    torch.manual_seed(12345)
    again = train_detector(blocks(6, 0), blocks(4, 1), NAMES, SHORT, seed=7, on_epoch=lambda report: None)
    other = train_detector(blocks(6, 0), blocks(4, 1), NAMES, SHORT, seed=8)
    weights = first.learned.state_dict()
    assert all(torch.equal(value, again.learned.state_dict()[name]) for name, value in weights.items())
    assert again.metadata == first.metadata
    assert not torch.equal(weights["network.score.weight"], other.learned.state_dict()["network.score.weight"])


def test_global_state_is_left_alone() -> None:
    """Neither torch's thread count nor its random stream shows that a training has run."""
    threads, stream = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        train_detector(blocks(2, 0), blocks(0, 1), NAMES, SHORT, seed=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), stream)


def test_frozen_stages_keep_the_pretrained_weights() -> None:
    """After a step, the first stages are bit for bit what was shipped, and the later ones are not."""
    trained = train_detector(blocks(2, 0), blocks(0, 1), NAMES, SHORT, seed=0).learned.network.backbone
    other = train_detector(blocks(2, 3), blocks(0, 1), NAMES, SHORT, seed=1).learned.network.backbone
    for position, (left, right) in enumerate(zip(trained.stages, other.stages, strict=True)):
        equal = all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))
        assert equal == (position < SHORT.frozen_stages)
    assert torch.equal(trained.stem.weight, other.stem.weight)


def test_frames_without_any_box_train() -> None:
    """A background of empty frames is an answer: training runs, nothing is claimed of its quality."""
    empty = LabelledFrames(blocks(4, 0).images, ({"boxes": []},) * 4)
    trained = train_detector(empty, empty, NAMES, SHORT, seed=0)
    assert np.isfinite(trained.predict(empty.images).boxes).all()
    assert trained.validation == {"count": 4.0, "boxes": 0.0}
    assert (trained.metadata.calibration_slope, trained.metadata.calibration_offset) == (1.0, 0.0)


def test_epochs_are_reported_in_order() -> None:
    """The callback sees every epoch once, with a finite loss."""
    seen: list[EpochReport] = []
    train_detector(
        blocks(2, 0), blocks(0, 1), NAMES, SHORT.model_copy(update={"epochs": 3}), seed=0, on_epoch=seen.append
    )
    assert [report.epoch for report in seen] == [1, 2, 3]
    assert all(np.isfinite(report.loss) for report in seen)
    assert str(seen[0]).startswith("epoch 1 of 3: loss ")


def test_warm_start_keeps_known_classes_by_name(model: TrainedDetector) -> None:
    """With almost no step taken, reordered classes still find what they found, whatever else is new."""
    names = ("new", "dark", "bright")
    barely = SHORT.model_copy(update={"learning_rate": 1e-9})
    warm = train_detector(blocks(4, 0), blocks(0, 1), names, barely, seed=0, warm_start=model)
    unseen = blocks(8, 2)
    raw = warm.predict(unseen.images)
    matches = match_detections(raw.boxes, raw.probabilities[..., 1:], read_boxes(unseen, names[1:]))
    assert matches.average_precision() > 0.6


def test_inputs_that_make_no_sense_are_refused(model: TrainedDetector) -> None:
    """No frames, no classes, odd sides, foreign labels, another frame size or shape each raise TrainingError."""
    frames, none = blocks(4, 0), blocks(0, 0)
    with pytest.raises(TrainingError, match="no frame"):
        train_detector(none, none, NAMES, SHORT, seed=0)
    with pytest.raises(TrainingError, match="class names"):
        train_detector(frames, none, (), SHORT, seed=0)
    odd = LabelledFrames(np.zeros((1, 60, 64, 3), np.uint8), ({"boxes": []},))
    with pytest.raises(TrainingError, match="multiple of 16"):
        train_detector(odd, LabelledFrames.empty(60, 64), NAMES, SHORT, seed=0)
    with pytest.raises(TrainingError, match="dark"):
        train_detector(frames, none, ("bright",), SHORT, seed=0)
    with pytest.raises(TrainingError, match="trained on"):
        train_detector(LabelledFrames(frames.images, ({"class": "dark"},) * 4), none, NAMES, SHORT, seed=0)
    with pytest.raises(TrainingError, match="differ"):
        train_detector(frames, LabelledFrames.empty(32, 64), NAMES, SHORT, seed=0)
    wider = SHORT.model_copy(update={"network": DetectorShape(stride=8, coarsest_stride=16, neck_width=24)})
    with pytest.raises(TrainingError, match="shape"):
        train_detector(frames, none, NAMES, wider, seed=0, warm_start=model)


def test_a_detector_survives_the_disk(model: TrainedDetector, tmp_path: Path) -> None:
    """What is persisted and loaded predicts bit for bit the same and leaves no temporary file."""
    model.persist(tmp_path / "deep" / "model.safetensors")
    loaded = load_detector(tmp_path / "deep" / "model.safetensors")
    frames = blocks(3, 3).images
    ours, theirs = model.predict(frames), loaded.predict(frames)
    assert loaded.metadata == model.metadata
    assert np.array_equal(ours.boxes, theirs.boxes)
    assert np.array_equal(ours.embedding, theirs.embedding)
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "pickle"])
def test_a_damaged_file_is_refused(model: TrainedDetector, tmp_path: Path, damage: str) -> None:
    """A missing, cut or pickled file raises TrainingError and nothing in it is executed."""
    path = tmp_path / "model.safetensors"
    model.persist(path)
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"\x80\x04cos\nsystem\n.")
    with pytest.raises(TrainingError, match="detector"):
        load_detector(path)


def test_it_exports(model: TrainedDetector, tmp_path: Path) -> None:
    """Export accepts it: ONNX Runtime repeats what torch answers, for any number of frames."""
    export_onnx(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 1_000_000
