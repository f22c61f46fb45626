"""How many labels choosing has saved: a control taught with nothing but the explored picks, held against our models."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow, get_run_logger

from curate.catalog.models import IMPORTED, DatasetItem, DatasetVersion, ModelRow, Split
from curate.catalog.splits import teaching_items
from curate.catalog.verdicts import score_prediction
from curate.compression.export import export_onnx
from curate.compression.inference import OnnxModel
from curate.errors import CatalogError
from curate.metrics.evidence import Float64Array
from curate.selection.estimate.savings import CurvePoint, LabelsSaved, labels_saved
from curate.training.tasks import TrainedModel, task_of
from flows._blobs import fetch_model_file
from flows._field_report import SAVINGS_FACT
from flows._report import publish_field_report
from flows._stage import stage_task
from flows._views import predict_pictured
from flows._wiring import Services, services
from flows.select_samples import require_round
from flows.train_candidate import fetch_trained, load_items, require_dataset

MOST_POINTS = 8
"""Of our models so many at most make the curve."""
_LEARNED = (Split.TRAIN, Split.VALIDATION)
_CONTROL = "control"


@flow(name="measure-savings")
def measure_savings(round_number: int | None = None) -> dict[str, Any] | None:
    """Measure a round, by default the newest; None when that has been measured, or there is none."""
    with services().catalog.exclusive("measure-savings"):
        found = measure(round_number)
    get_run_logger().info("labels saved: %s", found)
    return found


@stage_task("train the control and compare")
def measure(round_number: int | None) -> dict[str, Any] | None:
    """Measure, note it among the round's facts, and publish the round's field report anew."""
    wired = services()
    number = newest_unmeasured(wired) if round_number is None else round_number
    if number is None:
        return None
    measured = measure_round(wired, number)
    phase = require_round(wired, number).phase
    wired.catalog.advance_round(number, phase, {SAVINGS_FACT: measured}, now=datetime.now(UTC))
    publish_field_report(number)
    return measured


def newest_unmeasured(wired: Services) -> int | None:
    """Return the newest round that taught a model of captures, None if it has been measured."""
    taught = {model.round_number for model in wired.catalog.models() if "float" in model.artifacts}
    rounds = [each for each in wired.catalog.rounds() if each.number in taught and each.number > 0]
    return rounds[-1].number if rounds and SAVINGS_FACT not in rounds[-1].facts else None


def measure_round(wired: Services, round_number: int) -> dict[str, Any]:
    """Train the round's control and read off our curve what it cost us to get as far, as JSON values.

    Explored picks are what random labels would have been, but for copies: the saving is understated by those. Control
    and models learn by the same recipe, keep what was imported alike, and answer the same audits.

    Raises:
        CatalogError: there is no such round, or it has taught no model.
    """
    require_round(wired, round_number)
    models = _models_until(wired, round_number)
    dataset = require_dataset(wired, models[-1].dataset_version)
    explored = _explored(wired)
    exam = [item for item in dataset.items if item.split is Split.TEST and item.inclusion_probability]
    labels = field_labels(keep_only(dataset, explored))
    ours = [(model, field_labels(require_dataset(wired, model.dataset_version))) for model in models]
    curve = _thin([(model, count) for model, count in ours if count > 0])
    if len({count for _, count in curve}) < 2 or not labels or not exam:
        why = "a curve needs two rounds, explored labels and audits"
        return asdict(LabelsSaved(None, None, labels, why)) | {"frames": len(exam)}
    control = _train_control(wired, models, explored)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "control.onnx"
        export_onnx(control, path)
        reached = _score(wired, path, exam)
    points = [CurvePoint(count, _score(wired, _float_file(wired, model), exam)) for model, count in curve]
    weights = np.array([1.0 / (item.inclusion_probability or 1.0) for item in exam])
    seed = wired.settings.round.seed + round_number
    found = labels_saved(points, CurvePoint(labels, reached), weights, [item.group for item in exam], seed=seed)
    return asdict(found) | {"frames": len(exam)}


def field_labels(dataset: DatasetVersion) -> int:
    """Return how many labels of the field teach; audits cost both sides the same."""
    return sum(item.split in _LEARNED and item.device_id != IMPORTED for item in dataset.items)


def _thin(curve: Sequence[tuple[ModelRow, int]]) -> list[tuple[ModelRow, int]]:
    """Return at most `MOST_POINTS` of the models, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(curve) - 1, min(len(curve), MOST_POINTS)).round().astype(int)
    return [curve[place] for place in sorted(set(places.tolist()))]


def keep_only(dataset: DatasetVersion, sample_ids: Collection[str]) -> DatasetVersion:
    """Return the version with what was imported, and of the field with nothing but these samples."""
    kept = (item for item in dataset.items if item.device_id == IMPORTED or item.sample_id in sample_ids)
    return replace(dataset, items=tuple(kept))


def _train_control(wired: Services, models: Sequence[ModelRow], explored: Collection[str]) -> TrainedModel:
    """Where a model goes on from the one before, the control does, too: from the first model on, round by round."""
    recipe, names = wired.settings.recipe, wired.settings.labels.class_names
    goes_on = recipe.start == "incumbent"
    turns = models[1:] if goes_on else models[-1:]
    control = fetch_trained(wired, models[0]) if goes_on else None
    for model in turns:
        dataset = keep_only(require_dataset(wired, model.dataset_version), explored)
        items = [teaching_items(dataset, split, recipe.imported_until) for split in _LEARNED]
        if items[0]:
            train, validation = (load_items(wired, each) for each in items)
            seed = wired.settings.round.seed + model.round_number
            control = task_of(recipe).train(train, validation, names, recipe, seed=seed, warm_start=control)
    if control is None:
        raise CatalogError("there is no round to train a control for")
    return control


def _score(wired: Services, path: Path, exam: Sequence[DatasetItem]) -> Float64Array:
    """Return how right the model of a file is on each audit, in [0, 1]: float64 [n]."""
    names = wired.settings.labels.class_names
    said = predict_pictured(wired, OnnxModel(path), _CONTROL, exam).predictions
    pairs = zip(said, exam, strict=True)
    return np.array([score_prediction(prediction, item.label, names) for prediction, item in pairs], np.float64)


def _float_file(wired: Services, model: ModelRow) -> Path:
    return fetch_model_file(wired.store, model.artifacts["float"], wired.settings.cache_dir)


def _models_until(wired: Services, round_number: int) -> list[ModelRow]:
    """Our models up to the round's own, one a round, released or not: each says what its labels were good for."""
    by_round: Mapping[int, ModelRow] = {
        model.round_number: model
        for model in wired.catalog.models()
        if "float" in model.artifacts and model.round_number <= round_number
    }
    if round_number not in by_round:
        raise CatalogError(f"round {round_number} has taught no model yet", hint="turn it with `gleaner round`")
    return [by_round[number] for number in sorted(by_round)]


def _explored(wired: Services) -> frozenset[str]:
    return frozenset(row.sample_id for row in wired.catalog.selections() if row.explored)
