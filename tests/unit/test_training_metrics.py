"""Metrics and calibration of probabilities: pure, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import TrainingError
from curate.training import metrics
from curate.training.calibration import COLDEST, HOTTEST, fit_temperature

PROBABILITIES = np.array([[0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]], np.float32)
LABELS = np.array([0, 1, 1, 1], np.int64)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise softmax in float64."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def test_accuracy_counts_winners_on_the_label() -> None:
    """Accuracy is the share of rows won by the label."""
    assert metrics.accuracy(PROBABILITIES, LABELS) == 0.75


def test_per_class_accuracy_is_unknown_without_labels() -> None:
    """Recall is taken per label class and is NaN, not 0, for a class nobody labelled."""
    recall = metrics.per_class_accuracy(PROBABILITIES, LABELS)
    assert recall[:2].tolist() == [1.0, pytest.approx(2 / 3)]
    assert np.isnan(recall[2])


def test_confusion_matrix_has_labels_in_rows() -> None:
    """A label 1 predicted as 0 is counted in row 1, column 0."""
    assert metrics.confusion_matrix(PROBABILITIES, LABELS).tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]


def test_negative_log_likelihood_by_hand() -> None:
    """NLL is the mean of minus the log of the label's probability."""
    expected = -np.log([0.9, 0.3, 0.7, 0.8]).mean()
    assert metrics.negative_log_likelihood(PROBABILITIES, LABELS) == pytest.approx(expected, abs=1e-6)


def test_a_label_of_probability_zero_costs_much_but_not_infinity() -> None:
    """NLL stays finite where a label got probability 0, so that gates can compare it."""
    assert 20 < metrics.negative_log_likelihood(PROBABILITIES[:1], np.array([2])) < 40


def test_calibration_error_by_hand() -> None:
    """With two bins, rows 1-4 (all above 0.5) share one bin: the error is |mean confidence - accuracy|."""
    assert metrics.expected_calibration_error(PROBABILITIES, LABELS, bins=2) == pytest.approx(0.0, abs=1e-6)
    assert metrics.expected_calibration_error(PROBABILITIES[:1], np.array([1]), bins=2) == pytest.approx(0.9)


def test_no_labels_give_unknown_not_zero() -> None:
    """Every scalar metric of nothing is NaN."""
    nothing = (np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    scalars = (metrics.accuracy, metrics.negative_log_likelihood, metrics.expected_calibration_error)
    assert all(np.isnan(metric(*nothing)) for metric in scalars)


@pytest.mark.parametrize("labels", [np.array([0, 1]), np.array([0, 1, 2, 3]), np.array([0, 1, 1, -1])])
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray) -> None:
    """Labels of another count or outside the classes raise instead of indexing somewhere."""
    with pytest.raises(TrainingError):
        metrics.accuracy(PROBABILITIES, labels)


@given(true_temperature=st.floats(0.4, 3.0), seed=st.integers(0, 2**16))
def test_temperature_recovers_what_distorted_the_logits(true_temperature: float, seed: int) -> None:
    """Labels drawn from softmax(z) and logits given as z * T yield about T back."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 2, (2000, 4))
    cumulative = softmax(honest).cumsum(axis=1)
    labels = (rng.random((2000, 1)) > cumulative).sum(axis=1).clip(0, 3)
    fitted = fit_temperature((honest * true_temperature).astype(np.float32), labels)
    assert fitted == pytest.approx(true_temperature, rel=0.2)


@given(seed=st.integers(0, 2**16), count=st.integers(1, 40))
def test_temperature_never_raises_the_loss(seed: int, count: int) -> None:
    """The fitted temperature does at least as well on its own labels as leaving the logits alone."""
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 3, (count, 5)).astype(np.float32), rng.integers(0, 5, count)
    temperature = fit_temperature(logits, labels)
    assert COLDEST <= temperature <= HOTTEST
    scaled = metrics.negative_log_likelihood(softmax(logits / temperature).astype(np.float32), labels)
    assert scaled <= metrics.negative_log_likelihood(softmax(logits).astype(np.float32), labels) + 1e-5


def test_temperature_without_labels_is_one() -> None:
    """With nothing to calibrate on, confidences are left as they are."""
    assert fit_temperature(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)) == 1.0
