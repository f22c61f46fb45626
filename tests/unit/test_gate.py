"""The release gate: who is let through, who is not, and how often it errs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import ArrayLike
from pydantic import ValidationError

from curate.errors import ReleaseError
from curate.metrics.correctness import Correctness
from curate.release.gate import GateDecision, GatePolicy, judge_candidate

POLICY = GatePolicy()


def gate(
    candidate: ArrayLike,
    incumbent: ArrayLike | None,
    weights: Sequence[float] | None = None,
    bursts: Sequence[str] | None = None,
    *,
    ratio: float = 0.3,
    parity: float = 0.99,
) -> GateDecision:
    """Judge models that were right (1) or wrong (0) on each capture, which weigh alike and come alone unless told."""
    found = Correctness(np.asarray(candidate, np.float64))
    return judge_candidate(
        found,
        None if incumbent is None else Correctness(np.asarray(incumbent, np.float64)),
        [50.0] * len(found) if weights is None else weights,
        [f"b{i}" for i in range(len(found))] if bursts is None else bursts,
        POLICY,
        int8_ratio=ratio,
        parity=parity,
    )


def test_a_clearly_better_candidate_is_promoted() -> None:
    """Ten points more on eighty labels pass, with the difference and its interval reported."""
    decision = gate([1] * 64 + [0] * 16, [1] * 56 + [0] * 24)
    assert decision.promote
    assert decision.difference == pytest.approx(0.1)
    assert decision.ci95 is not None
    assert decision.ci95[0] < 0.1 < decision.ci95[1]
    assert (decision.n, decision.candidate_value) == (80, pytest.approx(0.8))


def test_a_clearly_worse_candidate_is_refused_with_both_reasons() -> None:
    """Twenty points less fail the bound and the minimum, and both are said."""
    decision = gate([1] * 40 + [0] * 40, [1] * 56 + [0] * 24)
    assert not decision.promote
    assert any("not ruled out" in reason for reason in decision.reasons)
    assert any("below the minimum" in reason for reason in decision.reasons)


def test_an_equal_candidate_is_promoted_with_room_for_error() -> None:
    """Identical answers are no loss, yet the interval is not a point."""
    decision = gate([1] * 60 + [0] * 20, [1] * 60 + [0] * 20)
    assert decision.promote
    assert decision.difference == 0
    assert decision.ci95 is not None
    assert decision.ci95[0] < -0.01 < 0.01 < decision.ci95[1]


def test_too_few_labels_are_not_enough_evidence() -> None:
    """However good the answers, fewer labels than the policy asks for refuse the candidate."""
    decision = gate([1] * 29, [0] * 29)
    assert not decision.promote
    assert "not enough evidence" in decision.reasons[0]
    assert gate([], []).promote is False


@pytest.mark.parametrize(
    ("ratio", "parity", "word"),
    [(0.36, 0.99, "file"), (0.3, 0.97, "agrees"), (float("nan"), 0.99, "file"), (0.3, float("nan"), "agrees")],
)
def test_a_bad_file_is_refused_however_accurate(ratio: float, parity: float, word: str) -> None:
    """Size and parity bind on their own, and a number that was never measured does not count as met."""
    decision = gate([1] * 80, [0] * 80, ratio=ratio, parity=parity)
    assert not decision.promote
    assert word in decision.reasons[0]


def test_bursts_count_once() -> None:
    """The same answers in few bursts are less evidence: a lucky burst does not carry a release."""
    candidate, incumbent = [1] * 30 + [0] * 24 + [1] * 6, [0] * 6 + [1] * 24 + [0] * 30
    alone = gate(candidate, incumbent)
    bunched = gate(candidate, incumbent, bursts=[f"b{i // 6}" for i in range(60)])
    assert alone.ci95 is not None
    assert bunched.ci95 is not None
    assert bunched.ci95[0] < alone.ci95[0]
    assert not gate([1] * 60, [0] * 60, bursts=["b"] * 60).promote


def test_weights_decide_what_the_field_sees() -> None:
    """A candidate better on rare captures and worse on those that stand for most frames is refused."""
    candidate, incumbent = [1] * 40 + [0] * 40, [0] * 40 + [1] * 40
    decision = gate(candidate, incumbent, [1.0] * 40 + [10.0] * 40)
    assert not decision.promote
    assert decision.difference == pytest.approx(-9 / 11)


def test_first_release_needs_only_itself() -> None:
    """Without an incumbent the accuracy is held against a floor and the file against its own limits."""

    def first(right: int, *, ratio: float = 0.3, n: int = 40) -> GateDecision:
        return gate(([1] * right + [0] * (40 - right))[:n], None, ratio=ratio)

    assert first(28).promote
    assert first(28).difference is None
    assert not first(10).promote
    assert not first(28, ratio=0.5).promote
    assert not first(20, n=20).promote


def test_nonsense_is_refused() -> None:
    """Ragged columns and impossible weights raise ReleaseError; a typo in the policy does not load."""
    for weights in ([1.0, 1.0], [0.0], [float("nan")]):
        with pytest.raises(ReleaseError):
            gate([1], [1], weights)
    with pytest.raises(ReleaseError):
        gate([1, 1], [1])
    with pytest.raises(ValidationError):
        GatePolicy.model_validate({"tolerence": 0.1})


def promotion_rate(truth: float, n: int, disagreement: float, runs: int = 500) -> float:
    """Share of promoted candidates that are truly `truth` better, from models that disagree on that share."""
    rng = np.random.default_rng([n, int(100 * disagreement), int(1000 * (1 + truth))])
    shares = [(disagreement + truth) / 2, (disagreement - truth) / 2, 1 - disagreement]
    promoted = 0
    for _ in range(runs):
        difference = rng.choice([1, -1, 0], size=n, p=shares)
        bursts = np.sort(rng.integers(0, n // 2, size=n)).astype(str).tolist()
        promoted += gate(difference > 0, difference < 0, bursts=bursts).promote
    return promoted / runs


@pytest.mark.parametrize(
    ("truth", "n", "disagreement", "at_least", "at_most"),
    [
        (-0.08, 60, 0.12, 0.0, 0.08),
        (-0.08, 120, 0.2, 0.0, 0.08),
        (0.05, 120, 0.12, 0.94, 1.0),
        (0.08, 120, 0.2, 0.96, 1.0),
        (-0.15, 60, 0.2, 0.0, 0.02),
    ],
)
def test_operating_characteristic(truth: float, n: int, disagreement: float, at_least: float, at_most: float) -> None:
    """Better candidates pass and worse ones fail as often as the policy's defaults were chosen for."""
    assert at_least <= promotion_rate(truth, n, disagreement) <= at_most


def test_settings_go_by_their_former_names_too() -> None:
    """A file written when every model classified still loads, and what it says beats a default merged in beside it."""
    policy = GatePolicy.model_validate({"min_parity_top1": 0.9, "min_parity": 0.98, "min_first_accuracy": 0.3})
    assert (policy.min_parity, policy.min_first_value) == (0.9, 0.3)
    assert GatePolicy.model_validate(policy.model_dump()) == policy
