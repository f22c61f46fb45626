"""Evidence from predictions and labels, whatever the kind, as the estimate and the gate read it."""

from __future__ import annotations

import numpy as np
import pytest

from curate.contracts.prediction import ClassificationPrediction, DetectedBox, DetectionPrediction
from curate.errors import CatalogError
from curate.metrics.evidence import bootstrap_variance, wilson
from curate.metrics.kinds import judge_predictions
from curate.release.gate import GatePolicy, judge_candidate
from curate.selection.estimate.field import estimate_field

CLASSES = ("bicycle", "person")


def classified(*probabilities: float) -> ClassificationPrediction:
    return ClassificationPrediction(prediction_id="p", release_id="r", probabilities=list(probabilities))


def detected(*scores: float) -> DetectionPrediction:
    """One box 10 pixels wide at each multiple of 20; its score as a person."""
    boxes = [
        DetectedBox(box_id=f"b{i}", x_min=20 * i, y_min=0, x_max=20 * i + 10, y_max=30, probabilities=[0.0, score])
        for i, score in enumerate(scores)
    ]
    return DetectionPrediction(prediction_id="p", release_id="r", boxes=boxes)


def people(*columns: int) -> dict[str, object]:
    box = {"class": "person", "y_min": 0, "y_max": 30}
    return {"boxes": [box | {"x_min": 20 * i, "x_max": 20 * i + 10} for i in columns]}


def test_classes_are_right_or_wrong() -> None:
    """Classification is measured by the share of right answers."""
    labels = [{"class": "person"}, {"class": "bicycle"}]
    evidence = judge_predictions("classification", [classified(0.2, 0.8), classified(0.1, 0.9)], labels, CLASSES)
    assert (evidence.metric, len(evidence), evidence.value()) == ("accuracy", 2, 0.5)


def test_boxes_are_measured_by_average_precision() -> None:
    """Detection is measured by AP50 of the wire's boxes against the label's."""
    evidence = judge_predictions("detection", [detected(0.9, 0.8), detected()], [people(0), people()], CLASSES)
    assert (evidence.metric, len(evidence), evidence.value()) == ("AP50", 2, pytest.approx(1.0))
    missed = judge_predictions("detection", [detected(0.9, 0.8), detected()], [people(1), people(0)], CLASSES)
    assert missed.value() == pytest.approx(0.5 * 51 / 101)


def test_either_kind_feeds_estimate_and_gate() -> None:
    """The estimate and the gate take any kind's evidence and say which metric they speak of."""
    right, wrong = [{"class": "person"}] * 40, [people(0)] * 40
    groups, policy = [f"b{i // 2}" for i in range(40)], GatePolicy()
    classes = judge_predictions(
        "classification", [classified(0.2, 0.8)] * 30 + [classified(0.8, 0.2)] * 10, right, CLASSES
    )
    boxes = judge_predictions("detection", [detected(0.9)] * 30 + [detected()] * 10, wrong, CLASSES)
    for evidence, metric in ((classes, "accuracy"), (boxes, "AP50")):
        estimate = estimate_field(evidence, [0.1] * 40, groups)
        assert estimate is not None
        assert (estimate.metric, estimate.n, estimate.bursts) == (metric, 40, 20)
        assert estimate.ci95[0] < estimate.estimate < estimate.ci95[1]
        decision = judge_candidate(evidence, evidence, [10.0] * 40, groups, policy, int8_ratio=0.3, parity=0.99)
        assert decision.promote
        assert metric in decision.reasons[0]


def test_audits_of_an_empty_scene_tell_nothing() -> None:
    """Without a true box on any frame there is no estimate, and the gate has not enough evidence."""
    evidence = judge_predictions("detection", [detected(0.9)] * 40, [people()] * 40, CLASSES)
    blocks = [f"b{i}" for i in range(40)]
    assert estimate_field(evidence, [0.1] * 40, blocks) is None
    decision = judge_candidate(evidence, evidence, [1.0] * 40, blocks, GatePolicy(), int8_ratio=0.3, parity=1)
    assert not decision.promote
    assert "lets AP50 be measured" in decision.reasons[0]


def test_what_does_not_fit_is_refused() -> None:
    """An unknown kind, ragged rows and predictions of another kind are CatalogErrors."""
    with pytest.raises(CatalogError, match="segmentation"):
        judge_predictions("segmentation", [], [], CLASSES)
    with pytest.raises(CatalogError, match="labels"):
        judge_predictions("detection", [detected()], [], CLASSES)
    with pytest.raises(CatalogError, match="boxes"):
        judge_predictions("detection", [classified(0.5, 0.5)], [people()], CLASSES)


def test_bootstrap_variance_is_that_of_the_mean_of_blocks() -> None:
    """For a plain mean the bootstrap finds the variance between blocks over their number."""
    block_means = np.random.default_rng(0).normal(size=30)
    values, blocks = np.repeat(block_means, 3), [f"{i // 3}" for i in range(90)]
    variance = bootstrap_variance(lambda w: w @ values / w.sum(axis=1), np.ones(90), blocks, 4000, 0)
    assert variance == pytest.approx(block_means.var(ddof=1) / 30, rel=0.1)
    assert np.isnan(bootstrap_variance(lambda w: w @ values, np.ones(90), ["one"] * 90, 100, 0))


def test_wilson_without_freedom_is_everything() -> None:
    """An interval from a single block spans all values, and narrows to nothing with ever more evidence."""
    assert wilson(0.5, 100, 0, 0.95) == (0.0, 1.0)
    assert wilson(0.5, 1e12, 100, 0.95) == pytest.approx((0.5, 0.5), abs=1e-5)
