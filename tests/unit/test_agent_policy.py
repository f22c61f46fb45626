"""The capture policy: probabilities are kept, budgets are tracked, a bad policy is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.capture import Arm, ArmOutcome
from edge_agent.capture.policy import (
    CapturePolicy,
    PolicyRefusedError,
    UncertainArm,
    decide_dismissed,
    inclusion_probability,
)

Stream = Callable[[np.random.Generator, int], np.ndarray]


def scores(value: float) -> dict[str, float]:
    return {"margin": value, "entropy": value, "least_confidence": value}


@settings(max_examples=15, deadline=None)
@given(probability=st.floats(0.02, 0.5), seed=st.integers(0, 2**32))
def test_the_random_arm_keeps_its_share(probability: float, seed: int) -> None:
    """The random arm's frequency lies within five standard errors of its probability, whatever the scores."""
    frames = 4000
    policy = CapturePolicy(
        CapturePolicySpec(random_probability=probability, uncertain_budget_fraction=0.1), np.random.default_rng(seed)
    )
    kept = sum(Arm.RANDOM in policy.decide(scores(i % 7 / 7)).arms for i in range(frames))
    assert abs(kept / frames - probability) < 5 * (probability * (1 - probability) / frames) ** 0.5


def test_random_coins_do_not_depend_on_the_scores() -> None:
    """The same generator draws the same coins on two different streams: the random share is unbiased."""
    drawn = []
    for offset in (0.0, 0.9):
        policy = CapturePolicy(CapturePolicySpec(random_probability=0.3), np.random.default_rng(7))
        drawn.append([Arm.RANDOM in policy.decide(scores((i % 10) / 100 + offset)).arms for i in range(500)])
    assert drawn[0] == drawn[1]


STREAMS: dict[str, Stream] = {
    "uniform": lambda rng, n: rng.random(n),
    "mostly certain": lambda rng, n: rng.beta(0.3, 6.0, n),
    "slow drift up": lambda rng, n: rng.beta(1.0, 8.0, n) + np.linspace(0.0, 0.5, n),
    "sudden dusk": lambda rng, n: np.where(np.arange(n) < n // 2, rng.beta(1, 12, n), rng.beta(6, 3, n)),
    "bursts": lambda rng, n: np.repeat(rng.random(n // 20 + 1), 20)[:n] * 0.9 + rng.random(n) * 0.1,
    "few distinct values": lambda rng, n: rng.choice([0.0, 0.0, 0.0, 0.5], n),
    "constant": lambda rng, n: np.zeros(n),
}


@pytest.mark.parametrize("name", STREAMS)
@settings(max_examples=6, deadline=None)
@given(budget=st.floats(0.03, 0.3), seed=st.integers(0, 2**32))
def test_the_uncertain_arm_tracks_its_budget(name: str, budget: float, seed: int) -> None:
    """On stationary, drifting and bursty streams the kept share stays within 20 % of the budget."""
    stream = STREAMS[name](np.random.default_rng(seed), 6000)
    arm = UncertainArm(budget, cooldown_frames=0)
    kept = sum(arm.decide(float(score)) for score in stream)
    assert kept / len(stream) == pytest.approx(budget, rel=0.2)


def test_the_uncertain_arm_keeps_the_least_sure() -> None:
    """What it keeps is far less sure than what it leaves."""
    stream = np.random.default_rng(3).random(4000)
    arm = UncertainArm(0.1, cooldown_frames=0)
    kept = np.array([arm.decide(float(score)) for score in stream])
    assert stream[kept].min() > 0.75
    assert stream[~kept].mean() < 0.5


@pytest.mark.parametrize("cooldown", [1, 5, 12])
def test_the_cooldown_is_kept(cooldown: int) -> None:
    """After one capture the uncertain arm rests for at least that many frames."""
    arm = UncertainArm(0.9, cooldown_frames=cooldown)
    kept = [i for i, score in enumerate(np.random.default_rng(1).random(600)) if arm.decide(float(score))]
    assert len(kept) > 10
    assert min(b - a for a, b in pairwise(kept)) == cooldown + 1


def test_no_budget_keeps_nothing_and_all_of_it_keeps_nearly_all() -> None:
    """Budgets of 0 and 1 are honoured."""
    rng = np.random.default_rng(2)
    none, everything = UncertainArm(0.0, 0), UncertainArm(1.0, 0)
    assert not any(none.decide(float(score)) for score in rng.random(500))
    assert sum(everything.decide(float(score)) for score in rng.random(500)) > 450


outcome = st.builds(ArmOutcome, arm=st.sampled_from(Arm), probability=st.floats(0.0, 1.0), kept=st.booleans())


@given(st.lists(outcome, min_size=1, max_size=4))
def test_inclusion_probability_is_that_of_any_arm(outcomes: list[ArmOutcome]) -> None:
    """It is 1 - prod(1 - p): at least the largest arm's, at most their sum and 1."""
    value = inclusion_probability(outcomes)
    probabilities = [item.probability for item in outcomes]
    assert max(probabilities) - 1e-12 <= value <= min(1.0, sum(probabilities)) + 1e-9
    assert value == pytest.approx(1 - np.prod([1 - p for p in probabilities]))


@settings(deadline=None)
@given(seed=st.integers(0, 1000))
def test_every_decision_states_all_arms_and_its_probability(seed: int) -> None:
    """Each decision names every arm once, its inclusion probability follows from them, and kept means a reason."""
    rng = np.random.default_rng(seed)
    policy = CapturePolicy(CapturePolicySpec(random_probability=0.2, uncertain_budget_fraction=0.3), rng)
    for score in rng.random(60):
        decision = policy.decide(scores(float(score)))
        assert [o.arm for o in decision.outcomes] == [Arm.RANDOM, Arm.UNCERTAIN, Arm.DISMISSED]
        assert decision.inclusion_probability == pytest.approx(inclusion_probability(decision.outcomes))
        assert len(decision.reasons) == len(decision.arms)
        assert decision.kept == bool(decision.arms)


def test_a_dismissal_keeps_for_certain_and_leaves_the_other_arms_as_drawn() -> None:
    """The dismissed arm joins with probability 1; the random arm's probability and coin stay what they were."""
    policy = CapturePolicy(CapturePolicySpec(random_probability=0.25), np.random.default_rng(0))
    before = next(d for d in (policy.decide(scores(0.1)) for _ in range(50)) if not d.kept)
    after = decide_dismissed(before, "dismissed: a person said so")
    assert after.arms == ("dismissed",)
    assert after.inclusion_probability == 1.0
    assert after.outcomes[0] == ArmOutcome(arm=Arm.RANDOM, probability=0.25, kept=False)
    assert [o.arm for o in after.outcomes] == [Arm.RANDOM, Arm.UNCERTAIN, Arm.DISMISSED]


def test_an_unknown_score_is_refused_and_the_old_policy_stays() -> None:
    """A policy that asks for a score the agent cannot compute changes nothing."""
    policy = CapturePolicy(CapturePolicySpec(version="good"), np.random.default_rng(0))
    with pytest.raises(PolicyRefusedError, match="bald") as caught:
        policy.replace_spec(CapturePolicySpec(version="bad", uncertainty_score="bald"))
    assert caught.value.hint
    assert policy.spec.version == "good"


def test_forgetting_scores_starts_a_new_quantile() -> None:
    """After a model swap, scores of the old model do not set the new model's threshold."""
    arm = UncertainArm(0.1, cooldown_frames=0)
    for _ in range(300):
        arm.decide(0.9)
    arm.forget_scores()
    rng = np.random.default_rng(5)
    kept = sum(arm.decide(float(score)) for score in rng.random(400) * 0.2)
    assert kept >= 20
