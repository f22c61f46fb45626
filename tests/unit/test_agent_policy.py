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
from edge_agent.capture.budget_arm import BudgetArm
from edge_agent.capture.policy import CapturePolicy, PolicyRefusedError, decide_dismissed, inclusion_probability

Stream = Callable[[np.random.Generator, int], np.ndarray]


def arm_of(budget_fraction: float, cooldown_frames: int = 0) -> BudgetArm:
    return BudgetArm(Arm.UNCERTAIN, budget_fraction, cooldown_frames)


def keeps(arm: BudgetArm, score: float) -> bool:
    return arm.decide(score, "margin").kept


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
    arm = arm_of(budget)
    kept = sum(keeps(arm, float(score)) for score in stream)
    assert kept / len(stream) == pytest.approx(budget, rel=0.2)


def test_the_uncertain_arm_keeps_the_least_sure() -> None:
    """What it keeps is far less sure than what it leaves."""
    stream = np.random.default_rng(3).random(4000)
    arm = arm_of(0.1)
    kept = np.array([keeps(arm, float(score)) for score in stream])
    assert stream[kept].min() > 0.75
    assert stream[~kept].mean() < 0.5


@pytest.mark.parametrize("cooldown", [1, 5, 12])
def test_the_cooldown_is_kept(cooldown: int) -> None:
    """After one capture the uncertain arm rests for at least that many frames."""
    arm = arm_of(0.9, cooldown)
    kept = [i for i, score in enumerate(np.random.default_rng(1).random(600)) if keeps(arm, float(score))]
    assert len(kept) > 10
    assert min(b - a for a, b in pairwise(kept)) == cooldown + 1


def test_no_budget_keeps_nothing_and_all_of_it_keeps_nearly_all() -> None:
    """Budgets of 0 and 1 are honoured."""
    rng = np.random.default_rng(2)
    none, everything = arm_of(0.0), arm_of(1.0)
    assert not any(keeps(none, float(score)) for score in rng.random(500))
    assert sum(keeps(everything, float(score)) for score in rng.random(500)) > 450


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
    arm = arm_of(0.1)
    for _ in range(300):
        keeps(arm, 0.9)
    arm.forget_scores()
    rng = np.random.default_rng(5)
    kept = sum(keeps(arm, float(score)) for score in rng.random(400) * 0.2)
    assert kept >= 20


def decide_all(policy: CapturePolicy, stream: list[dict[str, float]]) -> list[tuple[str, ...]]:
    return [policy.decide(item).arms for item in stream]


def test_the_temporal_arm_keeps_what_wavers_and_never_what_does_not() -> None:
    """It takes the larger of flicker and lost_track within its budget, and keeps no frame where both are 0."""
    spec = CapturePolicySpec(random_probability=1e-12, uncertain_budget_fraction=0.0, temporal_budget_fraction=0.05)
    policy = CapturePolicy(spec, np.random.default_rng(0))
    rng = np.random.default_rng(4)
    odd = [i % 5 == 0 for i in range(2000)]
    stream = [
        scores(0.1) | ({"flicker": rng.random(), "lost_track": rng.random()} if is_odd else {"flicker": 0.0})
        for is_odd in odd
    ]
    kept = ["temporal" in arms for arms in decide_all(policy, stream)]
    assert sum(kept) / len(kept) == pytest.approx(0.05, rel=0.2)
    assert not any(is_kept and not is_odd for is_kept, is_odd in zip(kept, odd, strict=True))
    calm = CapturePolicy(spec, np.random.default_rng(0))
    assert not any(decide_all(calm, [scores(0.5) | {"flicker": 0.0}] * 500))


def test_an_arm_without_a_budget_leaves_no_outcome() -> None:
    """Novel and temporal with a budget of 0 stand in no decision; with one they do."""
    embedding = np.ones(4, np.float32)
    without = CapturePolicy(CapturePolicySpec(), np.random.default_rng(0), Distances([0.5]))
    assert {o.arm for o in without.decide(scores(0.1), embedding=embedding).outcomes} == {
        Arm.RANDOM,
        Arm.UNCERTAIN,
        Arm.DISMISSED,
    }
    spec = CapturePolicySpec(novel_budget_fraction=0.1, temporal_budget_fraction=0.1)
    having = CapturePolicy(spec, np.random.default_rng(0), Distances([0.5]))
    assert {o.arm for o in having.decide(scores(0.1), embedding=embedding).outcomes} == set(Arm)


class Distances:
    """A novelty that gives these distances, over and over."""

    def __init__(self, values: list[float]) -> None:
        self.values = values
        self.asked = 0

    def distance(self, embedding: np.ndarray, space: str) -> float | None:
        self.asked += 1
        return self.values[self.asked % len(self.values)]

    def remember(self, embedding: np.ndarray, space: str) -> None:
        """Nothing."""


@settings(max_examples=20, deadline=None)
@given(budgets=st.tuples(*[st.sampled_from([0.0, 0.05, 0.2])] * 3), cooldown=st.integers(0, 6), seed=st.integers(0, 99))
def test_the_random_arm_is_never_starved(budgets: tuple[float, float, float], cooldown: int, seed: int) -> None:
    """Its coins and its probability are the same whatever the other arms may keep."""
    uncertain, novel, temporal = budgets
    spec = CapturePolicySpec(
        random_probability=0.2,
        uncertain_budget_fraction=uncertain,
        novel_budget_fraction=novel,
        temporal_budget_fraction=temporal,
        cooldown_frames=cooldown,
    )
    plain = CapturePolicySpec(random_probability=0.2, uncertain_budget_fraction=0.0)
    drawn = []
    for policy_spec in (spec, plain):
        policy = CapturePolicy(policy_spec, np.random.default_rng(seed), Distances([0.1, 0.7, 0.3]))
        decisions = [
            policy.decide(scores(i % 9 / 9) | {"flicker": i % 3 / 3}, embedding=np.ones(3, np.float32))
            for i in range(120)
        ]
        drawn.append(["random" in decision.arms for decision in decisions])
        assert {d.outcomes[0].probability for d in decisions} == {0.2}
        assert all(d.inclusion_probability == pytest.approx(inclusion_probability(d.outcomes)) for d in decisions)
    assert drawn[0] == drawn[1]


def test_a_frame_that_was_forced_through_the_gate_states_how_likely_that_was() -> None:
    """An arm that keeps it states the forced share; at reach 0 only the random arm decides and no budget moves."""
    spec = CapturePolicySpec(random_probability=0.25, uncertain_budget_fraction=0.9)
    policy = CapturePolicy(spec, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for _ in range(40):
        policy.decide(scores(float(rng.random())))
    forced = policy.decide(scores(0.99), drawn=False, reach=0.02)
    assert forced.arms == ("uncertain",)
    assert forced.inclusion_probability == pytest.approx(1 - 0.75 * 0.98)
    before = policy.decide(scores(0.0), drawn=False).traces[0].credit
    alone = policy.decide(scores(0.99), drawn=True, reach=0.0)
    assert (alone.arms, alone.inclusion_probability, alone.traces) == (("random",), 0.25, ())
    assert policy.decide(scores(0.0), drawn=False).traces[0].credit == pytest.approx(before + 0.9)


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=120),
    budget=st.sampled_from([0.0, 0.1, 0.6]),
    cooldown=st.integers(0, 3),
)
def test_every_decision_can_be_explained(values: list[float], budget: float, cooldown: int) -> None:
    """The words of a trace follow from its numbers, and exactly the kept ones give a reason that names the score."""
    arm = BudgetArm(Arm.NOVEL, budget, cooldown, floor=0.0)
    for value in values:
        trace = arm.decide(value, "distance")
        words = trace.explain()
        assert (words == "it is among the top of recent frames") == trace.kept
        if trace.kept:
            assert trace.threshold is not None
            assert trace.score >= trace.threshold
            assert not trace.resting_frames
            assert f"{value:.3f}" in trace.reason()
        elif "rests" in words:
            assert trace.resting_frames
        elif "too few" in words:
            assert trace.threshold is None
        elif "overdrawn" in words:
            assert trace.threshold == float("inf")
