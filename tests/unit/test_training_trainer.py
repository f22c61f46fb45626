"""Training on a tiny world with a tiny network: a property per test, a second or so in all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from curate.errors import TrainingError
from curate.training import metrics
from curate.training.architectures import Standardise
from curate.training.classifier import TrainedClassifier, load_classifier, persist_classifier
from curate.training.data import LabelledImages
from curate.training.recipe import NetworkShape, TrainingRecipe
from curate.training.trainer import EpochReport, train_classifier

NAMES = ("rows", "columns", "blank")
RECIPE = TrainingRecipe(
    network=NetworkShape(stem_width=8, widths=(8, 16), depths=(1, 1), embedding_dim=8),
    epochs=3,
    steps_per_epoch=20,
    batch_size=16,
    threads=1,
)


def world(count: int, seed: int) -> LabelledImages:
    """Noisy frames 16x16 with horizontal bars, vertical bars, or nothing."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 3
    bars = np.where(np.arange(16) % 8 < 4, 180.0, 40.0)
    patterns = np.stack([np.tile(bars[:, None], (1, 16)), np.tile(bars[None], (16, 1)), np.full((16, 16), 110.0)])
    images = patterns[labels][..., None] + rng.normal(0, 15, (count, 16, 16, 3))
    return LabelledImages(images.clip(0, 255).astype(np.uint8), labels)


@pytest.fixture(scope="module")
def model() -> TrainedClassifier:
    """A classifier of the small world."""
    return train_classifier(world(60, 0), world(24, 1), NAMES, RECIPE, seed=7)


def test_it_learns(model: TrainedClassifier) -> None:
    """Sixty labels of an easy world suffice for nearly all unseen frames, and its own report says so."""
    unseen = world(90, 2)
    probabilities, embeddings = model.predict(unseen.images)
    assert metrics.accuracy(probabilities, unseen.labels) > 0.9
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3)
    assert model.metadata.validation["accuracy"] > 0.9
    assert model.metadata.label_count == 60


def test_same_seed_same_weights(model: TrainedClassifier) -> None:
    """Training again gives bit-identical weights and temperature, whatever the global generator is at."""
    torch.manual_seed(12345)
    again = train_classifier(world(60, 0), world(24, 1), NAMES, RECIPE, seed=7)
    other = train_classifier(world(60, 0), world(24, 1), NAMES, RECIPE, seed=8)
    weights = model.network.state_dict()
    assert all(torch.equal(value, again.network.state_dict()[name]) for name, value in weights.items())
    assert again.metadata == model.metadata
    assert not torch.equal(weights["head.weight"], other.network.state_dict()["head.weight"])


def test_global_state_is_left_alone() -> None:
    """Neither torch's thread count nor its random stream shows that a training has run, even one that failed."""
    threads, stream = torch.get_num_threads(), torch.get_rng_state()
    short = RECIPE.model_copy(update={"epochs": 1, "steps_per_epoch": 1, "threads": threads + 1})
    train_classifier(world(6, 0), world(0, 1), NAMES, short, seed=0)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), stream)


def test_without_validation_labels_the_temperature_is_one() -> None:
    """An empty validation split trains, leaves confidences as they are and claims no quality."""
    short = RECIPE.model_copy(update={"epochs": 1, "steps_per_epoch": 2})
    trained = train_classifier(world(6, 0), LabelledImages.empty(16, 16), NAMES, short, seed=0)
    assert trained.metadata.temperature == 1.0
    assert trained.metadata.validation == {}


def test_one_label_is_enough_to_run() -> None:
    """Fewer labels than a batch are repeated rather than refused."""
    short = RECIPE.model_copy(update={"epochs": 1, "steps_per_epoch": 2, "mixup_alpha": 0.2})
    probabilities, _ = train_classifier(world(1, 0), world(0, 1), NAMES, short, seed=0).predict(world(4, 1).images)
    assert np.isfinite(probabilities).all()


def test_epochs_are_reported_in_order() -> None:
    """The callback sees every epoch once, with a finite loss and the validation accuracy."""
    seen: list[EpochReport] = []
    train_classifier(world(30, 0), world(9, 1), NAMES, RECIPE, seed=0, on_epoch=seen.append)
    assert [report.epoch for report in seen] == [1, 2, 3]
    assert all(np.isfinite(report.loss) and 0 <= report.validation["accuracy"] <= 1 for report in seen)


def test_watching_does_not_change_the_outcome(model: TrainedClassifier) -> None:
    """Reporting on epochs leaves the weights bit-identical to a training nobody watched."""
    watched = train_classifier(world(60, 0), world(24, 1), NAMES, RECIPE, seed=7, on_epoch=lambda report: None)
    assert all(torch.equal(v, watched.network.state_dict()[k]) for k, v in model.network.state_dict().items())


def test_warm_start_keeps_known_classes_by_name(model: TrainedClassifier) -> None:
    """With all of the old weights kept and almost no step taken, reordered classes still mean the same."""
    names = ("blank", "new", "rows", "columns")
    barely = RECIPE.model_copy(
        update={"warm_start_keep": 1.0, "epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-8, "ema_decay": 0.9}
    )
    old = world(60, 0)
    renamed = LabelledImages(old.images, np.array([2, 3, 0], np.int64)[old.labels])
    warm = train_classifier(renamed, world(0, 1), names, barely, seed=0, warm_start=model)
    probabilities, _ = warm.predict(renamed.images)
    known = probabilities[:, [0, 2, 3]].argmax(axis=1)
    assert np.mean(np.array([0, 2, 3])[known] == renamed.labels) > 0.9


def test_dim_light_changes_little_where_frames_are_standardised() -> None:
    """A fifth of the light leaves the answers of such a network nearly as they were; an empty frame stays quiet."""
    relative = RECIPE.model_copy(update={"network": RECIPE.network.model_copy(update={"standardise": True})})
    frames, dim = world(60, 3).images, (world(60, 3).images * 0.2).astype(np.uint8)
    drift = {}
    for recipe in (RECIPE, relative):
        taught = train_classifier(world(60, 0), world(24, 1), NAMES, recipe, seed=7)
        bright, dark = (taught.predict(images)[0] for images in (frames, dim))
        drift[recipe.network.standardise] = float(np.abs(bright - dark).mean())
    assert drift[True] < 0.05
    assert drift[True] < 0.5 * drift[False]
    standardised = Standardise()(torch.full((1, 3, 8, 8), -0.5) + 0.001 * torch.randn(1, 3, 8, 8))
    assert standardised.abs().max() < 0.2


def test_warm_start_of_another_shape_is_refused(model: TrainedClassifier) -> None:
    """A warm start that cannot fit says so instead of training from scratch silently."""
    wider = RECIPE.model_copy(update={"network": NetworkShape(stem_width=8, widths=(8, 32), depths=(1, 1))})
    with pytest.raises(TrainingError, match="shape"):
        train_classifier(world(6, 0), world(3, 1), NAMES, wider, seed=0, warm_start=model)


def test_inputs_that_make_no_sense_are_refused() -> None:
    """No labels, labels outside the classes, tiny frames and a single class each raise TrainingError."""
    with pytest.raises(TrainingError, match="no label"):
        train_classifier(world(0, 0), world(3, 1), NAMES, RECIPE, seed=0)
    with pytest.raises(TrainingError, match="classes"):
        train_classifier(world(6, 0), world(3, 1), NAMES[:2], RECIPE, seed=0)
    tiny = LabelledImages(np.zeros((3, 3, 16, 3), np.uint8), np.zeros(3, np.int64))
    with pytest.raises(TrainingError, match="too small"):
        train_classifier(tiny, LabelledImages.empty(3, 16), NAMES, RECIPE, seed=0)
    with pytest.raises(TrainingError, match="two or more"):
        train_classifier(world(6, 0), world(3, 1), ("only",), RECIPE, seed=0)


def test_a_classifier_survives_the_disk(model: TrainedClassifier, tmp_path: Path) -> None:
    """What is persisted and loaded predicts bit for bit the same and leaves no temporary file."""
    persist_classifier(model, tmp_path / "deep" / "model.safetensors")
    loaded = load_classifier(tmp_path / "deep" / "model.safetensors")
    frames = world(9, 3).images
    assert loaded.metadata == model.metadata
    assert all(np.array_equal(a, b) for a, b in zip(model.predict(frames), loaded.predict(frames), strict=True))
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "pickle"])
def test_a_damaged_file_is_refused(model: TrainedClassifier, tmp_path: Path, damage: str) -> None:
    """A missing, empty, cut or pickled file raises TrainingError and nothing in it is executed."""
    path = tmp_path / "model.safetensors"
    persist_classifier(model, path)
    whole = path.read_bytes()
    content = {
        "missing": None,
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "pickle": b"\x80\x04cos\nsystem\n.",
    }
    path.unlink()
    if content[damage] is not None:
        path.write_bytes(content[damage])
    with pytest.raises(TrainingError):
        load_classifier(path)


def test_no_frames_give_no_predictions(model: TrainedClassifier) -> None:
    """Predicting on nothing returns empty arrays of the right width."""
    probabilities, embeddings = model.predict(np.zeros((0, 16, 16, 3), np.uint8))
    assert probabilities.shape == (0, 3)
    assert embeddings.shape == (0, 8)
