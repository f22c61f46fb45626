"""What the gate is shown: both models' answers to the audits and, where they were not enough, to a second look."""

from __future__ import annotations

from collections.abc import Sequence

from curate.catalog.models import DatasetItem, DatasetVersion, ModelRow, Sample, Split
from curate.catalog.verdicts import score_prediction
from curate.contracts.prediction import Prediction
from curate.errors import BlobNotFoundError
from curate.metrics.evidence import Evidence
from curate.metrics.kinds import judge_predictions
from curate.release.gate import GateDecision, judge_candidate
from curate.release.second_look import SecondLook, SecondLookDraw, weigh_answers
from flows._labels import agreed_labels
from flows._views import load_model, predict_pictured
from flows._wiring import Services
from flows.train_candidate import require_dataset

CANDIDATE = "candidate"


def decide(wired: Services, candidate: ModelRow) -> GateDecision:
    """Judge a candidate against the release on what people have answered by now."""
    incumbent = wired.catalog.released_model()
    dataset = require_dataset(wired, candidate.dataset_version)
    items = _held_out(dataset, has_incumbent=incumbent is not None)
    return judge_candidate(
        _evidence(wired, candidate, items),
        None if incumbent is None else _evidence(wired, incumbent, items),
        [1.0 / (item.inclusion_probability or 1.0) for item in items],
        [item.group for item in items],
        wired.settings.gate,
        int8_ratio=candidate.metrics["int8_bytes"] / candidate.metrics["float_bytes"],
        parity=_number(candidate.metrics["parity"]),
        second_look=None if incumbent is None else _look_again(wired, candidate, incumbent),
    )


def answers_of(wired: Services, model: ModelRow, pictured: Sequence[Sample | DatasetItem]) -> Sequence[Prediction]:
    """Return what the model's int8 file answers, released or not."""
    return predict_pictured(wired, load_model(wired, model), model.release_id or CANDIDATE, pictured).predictions


def fetch_draw(wired: Services, candidate: ModelRow) -> SecondLookDraw | None:
    """Return what the second look at a candidate compares; None where there was none."""
    try:
        return SecondLookDraw.model_validate_json(wired.store.get(draw_key(candidate)))
    except BlobNotFoundError:
        return None


def draw_key(candidate: ModelRow) -> str:
    """Where in the bucket the draw lies: what a decision rests on can be looked up."""
    return f"models/{candidate.model_id}.second-look.json"


def _held_out(dataset: DatasetVersion, *, has_incumbent: bool) -> list[DatasetItem]:
    """Audits; before anything is in the field that a random arm could have sampled, the validation split."""
    if has_incumbent:
        return [item for item in dataset.items if item.split is Split.TEST and item.inclusion_probability]
    return [item for item in dataset.items if item.split is Split.VALIDATION]


def _evidence(wired: Services, model: ModelRow, items: Sequence[DatasetItem]) -> Evidence:
    """Hold what the model answers to each item against what people settled on."""
    labels = wired.settings.labels
    said = answers_of(wired, model, items)
    return judge_predictions(labels.kind, said, [item.label for item in items], labels.class_names)


def _look_again(wired: Services, candidate: ModelRow, incumbent: ModelRow) -> SecondLook | None:
    draw = fetch_draw(wired, candidate)
    if draw is None:
        return None
    labels, names = agreed_labels(wired, draw.differing), wired.settings.labels.class_names
    labelled = wired.catalog.samples(ids=labels)
    pairs = zip(labelled, *(answers_of(wired, model, labelled) for model in (candidate, incumbent)), strict=True)
    return weigh_answers(
        draw,
        {
            sample.sample_id: score_prediction(theirs, labels[sample.sample_id], names)
            - score_prediction(ours, labels[sample.sample_id], names)
            for sample, theirs, ours in pairs
        },
    )


def _number(stored: float | None) -> float:
    """JSON knows no NaN: the catalog returns None for it."""
    return float("nan") if stored is None else stored
