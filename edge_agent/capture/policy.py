"""Which frames are worth keeping. Every arm decides by itself and states the probability with which it keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

import numpy as np

from curate.answers.base import Floats
from curate.answers.registry import SCORE_NAMES
from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.capture import Arm, ArmOutcome
from curate.errors import AgentError
from edge_agent.capture.budget_arm import ArmTrace, BudgetArm

TEMPORAL_SCORES: Final = ("flicker", "lost_track")
"""Scores of kinds that know time; the temporal arm takes the largest of those an answer has."""
DISTANCE: Final = "distance"
"""What the novel arm calls its score: how far the frame's embedding lies from everything that was kept."""

_COINS: Final = 256

_NOT_DISMISSED: Final = ArmOutcome(arm=Arm.DISMISSED, probability=0.0, kept=False)
_DISMISSED: Final = ArmOutcome(arm=Arm.DISMISSED, probability=1.0, kept=True)


class PolicyRefusedError(AgentError):
    """A capture policy from the cloud cannot be followed on this device."""


class Novelty(Protocol):
    """What was kept before, as the novel arm sees it. Embeddings [D] of one space only compare with their own."""

    def distance(self, embedding: Floats, space: str) -> float | None:
        """Return how far the embedding lies from everything kept, in [0, 1]; None when it cannot be said."""

    def remember(self, embedding: Floats, space: str) -> None:
        """Take note that a frame with this embedding was kept."""


class CaptureDecision(NamedTuple):
    """What every arm said about one frame. Recorded as it was found; what follows from it is worked out for those who
    ask, since few frames are ever asked about."""

    random: ArmOutcome
    kept: bool
    """Whether at least one arm keeps the frame."""
    traces: tuple[ArmTrace, ...] = ()
    """What the arms with a budget looked at; nothing of those that were not asked."""
    reach: float = 1.0
    """The probability with which those arms see a frame like this one."""
    dismissed: bool = False
    """Whether a person said that the prediction is wrong."""
    notes: tuple[str, ...] = ()
    """What people and the scene gate have to add, in words."""

    @property
    def outcomes(self) -> tuple[ArmOutcome, ...]:
        """What every arm decided, and with which probability it would have kept the frame."""
        asked = (_outcome(trace.arm, trace.kept, self.reach) for trace in self.traces)
        return (self.random, *asked, _DISMISSED if self.dismissed else _NOT_DISMISSED)

    @property
    def inclusion_probability(self) -> float:
        """The probability that at least one arm keeps a frame like this one."""
        if self.dismissed or any(trace.kept for trace in self.traces):
            return inclusion_probability(self.outcomes)
        return self.random.probability

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms that keep the frame."""
        return tuple(outcome.arm.value for outcome in self.outcomes if outcome.kept)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was kept, in words; made when asked for."""
        drawn = (o.probability for o in self.outcomes if o.arm is Arm.RANDOM and o.kept)
        return (
            *(f"random: drawn with probability {probability:g}" for probability in drawn),
            *(trace.reason() for trace in self.traces if trace.kept),
            *self.notes,
        )


def inclusion_probability(outcomes: Iterable[ArmOutcome]) -> float:
    """Return 1 - prod(1 - p) over independent arms."""
    return 1.0 - math.prod(1.0 - outcome.probability for outcome in outcomes)


def decide_dismissed(decision: CaptureDecision, reason: str) -> CaptureDecision:
    """Return the decision after a person dismissed the prediction: that arm keeps for certain, the others as drawn."""
    return decision._replace(kept=True, dismissed=True, notes=(*decision.notes, reason))


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


class CapturePolicy:
    """All arms over one camera's frames. Not thread-safe: one capture loop owns it."""

    def __init__(self, spec: CapturePolicySpec, rng: np.random.Generator, novelty: Novelty | None = None) -> None:
        """Begin without scores. Without `novelty` the novel arm has nothing to compare with and keeps nothing."""
        verify_policy(spec)
        self._rng = rng
        self._novelty = novelty
        self._coins: list[float] = []
        """Drawn many at a time, used from the end in the order in which they were drawn."""
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
        for arm in (self._uncertain, self._temporal, self._novel):
            if arm is not None:
                arm.forget_scores()

    def draw(self) -> bool:
        """Toss the random arm's coin for one frame, before anything about the frame is known."""
        if not self._coins:
            self._coins = self._rng.random(_COINS)[::-1].tolist()
        return self._coins.pop() < self._random_probability

    def decide(
        self,
        scores: Mapping[str, float],
        score_name: str | None = None,
        *,
        embedding: Floats | None = None,
        space: str = "",
        drawn: bool | None = None,
        reach: float = 1.0,
    ) -> CaptureDecision:
        """Decide one frame, in stream order.

        Args:
            scores: the answer's scores.
            score_name: stands in for the policy's own uncertainty score.
            embedding: [D], for the novel arm.
            space: whose embedding it is, a release's.
            drawn: the random arm's coin when `draw` was called for this frame already.
            reach: the probability with which the arms with a budget see a frame like this one. The scene gate lets
                few unchanged frames through; an arm that keeps one of them would have kept it this likely. At 0
                they are not asked: the frame was answered for the random arm alone.
        """
        random_kept = self.draw() if drawn is None else drawn
        random = self._drawn if random_kept else self._not_drawn
        if reach <= 0.0:
            return CaptureDecision(random, random_kept)
        traces = self._ask(scores, score_name or self._spec.uncertainty_score, embedding, space)
        kept = random_kept
        for trace in traces:
            kept = kept or trace.kept
        return CaptureDecision(random, kept, traces, reach)

    def decide_unchanged(self) -> CaptureDecision:
        """Return the decision on a frame that the scene gate skips: not drawn, and nobody else was asked."""
        return self._unchanged

    def remember(self, embedding: Floats, space: str) -> None:
        """Take note that a frame is on its way to the spool, whichever arm wanted it."""
        if self._novelty is not None and self._novel is not None:
            self._novelty.remember(embedding, space)

    def _ask(
        self, scores: Mapping[str, float], name: str, embedding: Floats | None, space: str
    ) -> tuple[ArmTrace, ...]:
        """Ask every arm that has a budget; those without one cost nothing."""
        traces = [self._uncertain.decide(scores[name], name)]
        if self._temporal is not None:
            score, which = 0.0, TEMPORAL_SCORES[0]
            for each in TEMPORAL_SCORES:
                if each in scores and (found := scores[each]) >= score:
                    score, which = found, each
            traces.append(self._temporal.decide(score, which))
        if self._novel is not None and self._novelty is not None and embedding is not None:
            distance = self._novelty.distance(embedding, space)
            if distance is not None:
                traces.append(self._novel.decide(distance, DISTANCE))
        return tuple(traces)

    def _adopt(self, spec: CapturePolicySpec) -> None:
        self._spec = spec
        self._random_probability = spec.random_probability
        rest = spec.cooldown_frames
        self._uncertain = BudgetArm(Arm.UNCERTAIN, spec.uncertain_budget_fraction, rest)
        self._temporal = _optional_arm(Arm.TEMPORAL, spec.temporal_budget_fraction, rest)
        self._novel = _optional_arm(Arm.NOVEL, spec.novel_budget_fraction, rest)
        self._drawn = ArmOutcome(arm=Arm.RANDOM, probability=spec.random_probability, kept=True)
        self._not_drawn = ArmOutcome(arm=Arm.RANDOM, probability=spec.random_probability, kept=False)
        self._unchanged = CaptureDecision(self._not_drawn, kept=False)


def _optional_arm(arm: Arm, budget_fraction: float, cooldown_frames: int) -> BudgetArm | None:
    """Return the arm, or None without a budget. A score of 0 says that nothing is new, or that nothing wavers."""
    return BudgetArm(arm, budget_fraction, cooldown_frames, floor=0.0) if budget_fraction > 0.0 else None


@lru_cache(maxsize=64)
def _outcome(arm: Arm, kept: bool, reach: float) -> ArmOutcome:
    return ArmOutcome(arm=arm, probability=reach if kept else 0.0, kept=kept)
