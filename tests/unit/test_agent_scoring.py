"""Scores of one distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.scoring import (
    SCORE_NAMES,
    BadOutputError,
    evaluate_scores,
    pack_embedding,
    verify_embedding,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_known_values() -> None:
    """The three scores of a simple distribution are what their formulas say."""
    scores = evaluate_scores(array(0.5, 0.25, 0.25, 0.0))
    assert scores == pytest.approx({"least_confidence": 0.5, "margin": 0.75, "entropy": 0.75})


@pytest.mark.parametrize(("values", "expected"), [((0.25,) * 4, 1.0), ((0.0, 1.0, 0.0), 0.0)])
def test_extremes(values: tuple[float, ...], expected: float) -> None:
    """Margin and entropy are 1 for a uniform answer, and every score is 0 for a certain one."""
    scores = evaluate_scores(array(*values))
    assert scores["entropy"] == pytest.approx(expected, abs=1e-6)
    assert scores["margin"] == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=20).filter(lambda values: sum(values) > 0.01))
def test_scores_stay_in_the_unit_interval(values: list[float]) -> None:
    """Every distribution gets exactly the named scores, each in [0, 1]."""
    total = sum(values)
    scores = evaluate_scores(array(*(value / total for value in values)))
    assert set(scores) == SCORE_NAMES
    assert all(0.0 <= score <= 1.0 for score in scores.values())


@pytest.mark.parametrize(
    "bad",
    [
        array(0.5, 0.4),
        array(float("nan"), 1.0),
        array(1.0, float("nan")),
        array(0.5, float("nan"), 0.5),
        array(1.5, -0.5),
        array(float("inf"), 0.0),
        array(1.0),
        np.full((2, 2), 0.25, np.float32),
    ],
)
def test_what_is_no_distribution_is_refused(bad: np.ndarray) -> None:
    """NaN, wrong sums, values outside [0, 1] and wrong shapes are errors, wherever they stand."""
    with pytest.raises(BadOutputError):
        evaluate_scores(bad)


def test_embeddings_must_be_finite_and_survive_float16() -> None:
    """NaN and infinity are refused; a huge finite value is packed as float16's largest, not as infinity."""
    for bad in (array(float("nan")), array(float("inf"), 0.0), np.zeros((1, 2), np.float32)):
        with pytest.raises(BadOutputError):
            verify_embedding(bad)
    verify_embedding(array(1e9, -2.0))
    assert np.frombuffer(pack_embedding(array(1e9, -2.0)), "<f2").tolist() == [65504.0, -2.0]
