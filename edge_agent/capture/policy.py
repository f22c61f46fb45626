"""Which frames are worth keeping. Every arm decides by itself and states the probability with which it keeps."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from curate.answers.registry import SCORE_NAMES
from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.capture import Arm, ArmOutcome
from curate.errors import AgentError

WINDOW_FRAMES: Final = 512
"""How many recent scores the threshold is a quantile of."""
WARMUP_FRAMES: Final = 16
"""Scores needed before a quantile means anything."""
HORIZON_FRAMES: Final = 256
"""A surplus or deficit against the budget is worked off over about this many frames."""

_NOT_DISMISSED: Final = ArmOutcome(arm=Arm.DISMISSED, probability=0.0, kept=False)
_NOT_UNCERTAIN: Final = ArmOutcome(arm=Arm.UNCERTAIN, probability=0.0, kept=False)
_UNCERTAIN: Final = ArmOutcome(arm=Arm.UNCERTAIN, probability=1.0, kept=True)
_DISMISSED: Final = ArmOutcome(arm=Arm.DISMISSED, probability=1.0, kept=True)


class PolicyRefusedError(AgentError):
    """A capture policy from the cloud cannot be followed on this device."""


@dataclass(frozen=True, slots=True)
class CaptureDecision:
    """What every arm said about one frame, and the probability that at least one would keep it."""

    outcomes: tuple[ArmOutcome, ...]
    inclusion_probability: float
    reasons: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether at least one arm keeps the frame."""
        return any(outcome.kept for outcome in self.outcomes)

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms that keep the frame."""
        return tuple(outcome.arm.value for outcome in self.outcomes if outcome.kept)


def inclusion_probability(outcomes: Iterable[ArmOutcome]) -> float:
    """Return 1 - prod(1 - p) over independent arms."""
    return 1.0 - math.prod(1.0 - outcome.probability for outcome in outcomes)


def decide_dismissed(decision: CaptureDecision, reason: str) -> CaptureDecision:
    """Return the decision after a person dismissed the prediction: that arm keeps for certain, the others as drawn."""
    others = tuple(outcome for outcome in decision.outcomes if outcome.arm is not Arm.DISMISSED)
    outcomes = (*others, _DISMISSED)
    return CaptureDecision(outcomes, inclusion_probability(outcomes), (*decision.reasons, reason))


def verify_policy(spec: CapturePolicySpec) -> None:
    """Accept a policy this agent can follow, with this kind of model or another.

    Raises:
        PolicyRefusedError: it asks for a score that no kind of model has.
    """
    if spec.uncertainty_score not in SCORE_NAMES:
        raise PolicyRefusedError(
            f"policy {spec.version}: unknown uncertainty score {spec.uncertainty_score!r}",
            hint=f"This agent computes {', '.join(sorted(SCORE_NAMES))}.",
        )


class UncertainArm:
    """Keeps the least sure frames, as many as the budget allows.

    The threshold is a moving quantile of recent scores, shifted by what the budget still owes or has overdrawn:
    the balanced incremental quantile filter (Kottke, Krempl, Spiliopoulou: Probabilistic Active Learning in
    Datastreams, IDA 2015), with the correction applied to the quantile's level instead of its value, so
    that it does not depend on the scores' scale.
    """

    def __init__(self, budget_fraction: float, cooldown_frames: int) -> None:
        self.budget_fraction = budget_fraction
        self.cooldown_frames = cooldown_frames
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._credit = 0.0
        self._resting = 0

    def forget_scores(self) -> None:
        """Drop the window: another model's scores say nothing about this one's. What the budget owes stays."""
        self._recent.clear()
        self._sorted.clear()

    def decide(self, score: float) -> bool:
        """Decide one frame, in stream order."""
        self._credit = min(self._credit + self.budget_fraction, self.budget_fraction * HORIZON_FRAMES)
        kept = self._wants(score)
        if kept:
            self._credit -= 1.0
            self._resting = self.cooldown_frames
        elif self._resting:
            self._resting -= 1
        self._remember(score)
        return kept

    def _wants(self, score: float) -> bool:
        rate = self.budget_fraction + self._credit / HORIZON_FRAMES
        if self._resting or rate <= 0.0 or len(self._sorted) < WARMUP_FRAMES:
            return False
        rank = math.floor((1.0 - min(rate, 1.0)) * len(self._sorted))
        threshold = self._sorted[min(rank, len(self._sorted) - 1)]
        # Equal scores would all pass or all fail a threshold; the credit says how many of them may.
        return score > threshold or (score == threshold and self._credit >= 1.0)

    def _remember(self, score: float) -> None:
        self._recent.append(score)
        insort(self._sorted, score)
        if len(self._recent) > WINDOW_FRAMES:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]


class CapturePolicy:
    """All arms over one stream of frames. Not thread-safe: one capture loop owns it."""

    def __init__(self, spec: CapturePolicySpec, rng: np.random.Generator) -> None:
        verify_policy(spec)
        self._rng = rng
        self._adopt(spec)

    @property
    def spec(self) -> CapturePolicySpec:
        """The policy followed now."""
        return self._spec

    def replace_spec(self, spec: CapturePolicySpec) -> None:
        """Follow another policy from the next frame on.

        Raises:
            PolicyRefusedError: the policy cannot be followed; the old one stays.
        """
        verify_policy(spec)
        self._adopt(spec)

    def forget_scores(self) -> None:
        """Tell the arms that another model answers from now on."""
        self._uncertain.forget_scores()

    def decide(self, scores: Mapping[str, float], score_name: str | None = None) -> CaptureDecision:
        """Decide one frame, in stream order, from its scores; `score_name` stands in for the policy's own."""
        spec = self._spec
        name = score_name or spec.uncertainty_score
        score = scores[name]
        random_kept = bool(self._rng.random() < spec.random_probability)
        uncertain_kept = self._uncertain.decide(score)
        reasons: list[str] = []
        if random_kept:
            reasons.append(f"random: drawn with probability {spec.random_probability:g}")
        if uncertain_kept:
            reasons.append(
                f"uncertain: {name} {score:.3f} is among the top of recent frames "
                f"(budget {spec.uncertain_budget_fraction:.1%})"
            )
        outcomes = (
            self._drawn if random_kept else self._not_drawn,
            _UNCERTAIN if uncertain_kept else _NOT_UNCERTAIN,
            _NOT_DISMISSED,
        )
        return CaptureDecision(outcomes, 1.0 if uncertain_kept else spec.random_probability, tuple(reasons))

    def _adopt(self, spec: CapturePolicySpec) -> None:
        self._spec = spec
        self._uncertain = UncertainArm(spec.uncertain_budget_fraction, spec.cooldown_frames)
        self._drawn = ArmOutcome(arm=Arm.RANDOM, probability=spec.random_probability, kept=True)
        self._not_drawn = ArmOutcome(arm=Arm.RANDOM, probability=spec.random_probability, kept=False)
