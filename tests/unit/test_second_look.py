"""The second look: what is asked, what the answers are worth, and what the gate makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from curate.metrics.correctness import Correctness
from curate.release.gate import GateDecision, GatePolicy, judge_candidate
from curate.release.second_look import ComparedCapture, SecondLook, draw_questions, weigh_answers

POLICY = GatePolicy()


def compared(number: int, *, differs: bool, audited: bool = False, weight: float = 20.0) -> ComparedCapture:
    """A capture of a burst of its own."""
    return ComparedCapture(sample_id=f"s{number}", weight=weight, burst=f"b{number}", differs=differs, audited=audited)


def captures(doubtful: int, agreed: int, audits: int = 0) -> list[ComparedCapture]:
    """Captures on which the models differ, agree, and differ though audited."""
    kinds = [(True, False)] * doubtful + [(False, False)] * agreed + [(True, True)] * audits
    return [compared(number, differs=differs, audited=audited) for number, (differs, audited) in enumerate(kinds)]


def look(of: Sequence[ComparedCapture], answers: Mapping[str, float], limit: int = 100) -> SecondLook | None:
    """Ask and have it answered."""
    draw = draw_questions(of, limit, np.random.default_rng(0))
    return weigh_answers(draw, {name: value for name, value in answers.items() if name in draw.differing})


def test_only_what_is_in_doubt_is_asked() -> None:
    """Captures with equal answers and those of audits are never asked about, and the limit holds."""
    draw = draw_questions(captures(30, 50, 5), 12, np.random.default_rng(0))
    doubtful = {f"s{number}" for number in range(30)}
    assert len(draw.asked) == 12
    assert set(draw.asked) < doubtful
    assert set(draw_questions(captures(7, 50), 12, np.random.default_rng(0)).asked) == {f"s{n}" for n in range(7)}
    assert draw_questions(captures(0, 9), 12, np.random.default_rng(0)).asked == ()


def test_the_same_seed_asks_the_same() -> None:
    """A draw can be made again, and another seed makes another."""
    first, again, other = (draw_questions(captures(40, 9), 10, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.asked != other.asked


def test_answers_stand_for_all_in_doubt() -> None:
    """With a third of those in doubt asked, the estimate is that of having asked all of them, on average."""
    found = captures(60, 140)
    truth = {f"s{number}": 1.0 if number < 40 else -1.0 for number in range(60)}
    means = []
    for seed in range(400):
        draw = draw_questions(found, 20, np.random.default_rng(seed))
        second = weigh_answers(draw, {name: truth[name] for name in draw.asked})
        assert second is not None
        assert float(second.weights.sum()) == pytest.approx(20.0 * 200)
        means.append(second.difference().mean)
    assert np.mean(means) == pytest.approx(20 / 200, abs=0.005)


def test_the_interval_holds() -> None:
    """Over draws of the field and of the questions the 95 % interval covers the truth at least 93 times of 100."""
    rng, covered, runs, truth = np.random.default_rng(5), 0, 600, 0.3 * 0.2
    for _ in range(runs):
        differs = rng.random(160) < 0.3
        found = [compared(number, differs=bool(one)) for number, one in enumerate(differs)]
        draw = draw_questions(found, 30, rng)
        second = weigh_answers(draw, {name: float(rng.choice([1, -1], p=[0.6, 0.4])) for name in draw.asked})
        assert second is not None
        covered += second.difference().bound(0.025) <= truth <= second.difference().bound(0.975)
    assert covered / runs >= 0.93


def test_weights_count() -> None:
    """A capture that stands for nine times as many frames weighs nine times as much."""
    found = [compared(0, differs=True, weight=90.0), compared(1, differs=True, weight=10.0)]
    second = look(found, {"s0": -1.0, "s1": 1.0})
    assert second is not None
    assert second.difference().mean == pytest.approx(-0.8)


def test_audits_join_and_skipped_answers_fall_out() -> None:
    """An audited capture stands for itself; one that nobody answered is replaced by those answered, or dropped."""
    second = look(captures(4, 10, 2), {"s0": 1.0, "s1": 1.0, "s14": -1.0})
    assert second is not None
    assert (len(second), second.labels) == (13, 3)
    assert second.difference().mean == pytest.approx((4 - 1) / 15)


def test_unanswered_doubt_is_no_look() -> None:
    """Where captures are in doubt and nobody answered, nothing is told; without doubt no answer is needed."""
    assert look(captures(5, 90), {}) is None
    second = look(captures(0, 90), {})
    assert second is not None
    assert second.difference().mean == 0
    assert second.labels == 0


def judge(right: int, wrong: int, same: int, second: SecondLook | None = None, parity: float = 0.99) -> GateDecision:
    """A candidate that is better on `right` audits and worse on `wrong`."""
    candidate = np.array([1.0] * right + [0.0] * wrong + [1.0] * same)
    incumbent = np.array([0.0] * right + [1.0] * wrong + [1.0] * same)
    bursts = [f"b{number}" for number in range(len(candidate))]
    weights = [20.0] * len(candidate)
    return judge_candidate(
        Correctness(candidate),
        Correctness(incumbent),
        weights,
        bursts,
        POLICY,
        int8_ratio=0.3,
        parity=parity,
        second_look=second,
    )


def test_only_a_refusal_that_may_be_a_mistake_is_open() -> None:
    """Promoted, surely worse and badly compressed candidates are settled; doubt, and too few audits, leave it open."""
    assert judge(8, 10, 42).is_open
    assert judge(5, 2, 3).is_open
    assert not judge(12, 4, 44).is_open
    assert not judge(2, 22, 36).is_open
    assert not judge(8, 10, 42, parity=0.5).is_open


def test_a_second_look_decides() -> None:
    """It overrules unlucky audits, and refuses for good what is worse on it, too; the reasons say on what."""
    assert not judge(8, 10, 42).promote
    better = look(captures(60, 140), {f"s{n}": 1.0 if n < 40 else -1.0 for n in range(60)})
    decision = judge(8, 10, 42, better)
    assert decision.promote
    assert decision.difference == pytest.approx(0.1)
    assert "200 random-arm captures, a second look: 60 labels" in decision.reasons[0]
    worse = judge(8, 10, 42, look(captures(60, 140), {f"s{n}": 1.0 if n < 20 else -1.0 for n in range(60)}))
    assert not worse.promote
    assert not worse.is_open
    assert "second look" in worse.reasons[-1]
    assert not judge(8, 10, 42, better, parity=0.5).promote


def test_a_small_second_look_is_not_enough() -> None:
    """Fewer captures than labels the policy asks for leave the decision with the audits."""
    decision = judge(8, 10, 42, look(captures(5, 10), {f"s{n}": 1.0 for n in range(5)}))
    assert not decision.promote
    assert "60 held-out labels" in decision.reasons[-1]
