"""An arm that keeps the frames with the highest scores, as many as its budget allows. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Final, NamedTuple

from curate.contracts.capture import Arm

WINDOW_FRAMES: Final = 512
"""How many recent scores the threshold is a quantile of."""
WARMUP_FRAMES: Final = 16
"""Scores needed before a quantile means anything."""
HORIZON_FRAMES: Final = 256
"""A surplus or deficit against the budget is worked off over about this many frames."""

_RESTING, _WARMING_UP, _OVERDRAWN, _NO_CREDIT, _BELOW, _NOTHING, _KEPT = (
    "it rests after its last capture",
    "it has seen too few frames to judge",
    "its budget is overdrawn",
    "it ties with recent frames and the budget has no room for ties",
    "it does not exceed recent frames",
    "there is nothing of the kind",
    "it is among the top of recent frames",
)


class ArmTrace(NamedTuple):
    """What an arm looked at when it decided a frame. Numbers only: words are made for those who ask."""

    arm: Arm
    kept: bool
    score_name: str
    score: float
    floor: float
    """Scores up to this one are never kept."""
    threshold: float | None
    """What recent frames asked for; None before there were enough of them, infinite when the budget was overdrawn."""
    budget_fraction: float
    credit: float
    """Captures the budget owed, this frame's share included; negative when overdrawn."""
    resting_frames: int
    """Frames it still had to rest."""

    def explain(self) -> str:
        """Return why it was kept or not, in words."""
        if self.kept:
            return _KEPT
        if self.score <= self.floor:
            return _NOTHING
        if self.resting_frames:
            return _RESTING
        if self.threshold is None:
            return _WARMING_UP
        if math.isinf(self.threshold):
            return _OVERDRAWN
        return _NO_CREDIT if self.score == self.threshold else _BELOW

    def reason(self) -> str:
        """Return the sentence that travels with a capture."""
        return (
            f"{self.arm.value}: {self.score_name} {self.score:.3f} is among the top of recent frames "
            f"(budget {self.budget_fraction:.1%})"
        )


class BudgetArm:
    """Keeps the highest scores within a budget, given as a share of the frames it is asked about.

    The threshold is a moving quantile of recent scores, shifted by what the budget still owes or has overdrawn:
    the balanced incremental quantile filter (Kottke, Krempl, Spiliopoulou: Probabilistic Active Learning in
    Datastreams, IDA 2015), with the correction applied to the quantile's level instead of its value, so
    that it does not depend on the scores' scale.
    """

    def __init__(self, arm: Arm, budget_fraction: float, cooldown_frames: int, *, floor: float = -math.inf) -> None:
        """A score of at most `floor` says that there is nothing to keep: it is never kept, whatever is owed."""
        self._arm = arm
        self._budget_fraction = budget_fraction
        self._cooldown_frames = cooldown_frames
        self._floor = floor
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._credit = 0.0
        self._resting = 0

    def forget_scores(self) -> None:
        """Drop the window: another model's scores say nothing about this one's. What the budget owes stays."""
        self._recent.clear()
        self._sorted.clear()

    def decide(self, score: float, score_name: str) -> ArmTrace:
        """Decide one frame, in stream order."""
        budget = self._budget_fraction
        self._credit = credit = min(self._credit + budget, budget * HORIZON_FRAMES)
        resting, threshold = self._resting, self._threshold()
        kept = (
            not resting
            and threshold is not None
            and score > self._floor
            # Equal scores would all pass or all fail a threshold; the credit says how many of them may.
            and (score > threshold or (score == threshold and credit >= 1.0))
        )
        if kept:
            self._credit -= 1.0
            self._resting = self._cooldown_frames
        elif resting:
            self._resting -= 1
        self._recent.append(score)
        insort(self._sorted, score)
        if len(self._recent) > WINDOW_FRAMES:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        return ArmTrace(self._arm, kept, score_name, score, self._floor, threshold, budget, credit, resting)

    def _threshold(self) -> float | None:
        known = len(self._sorted)
        if known < WARMUP_FRAMES:
            return None
        rate = self._budget_fraction + self._credit / HORIZON_FRAMES
        if rate <= 0.0:
            return math.inf
        rank = math.floor((1.0 - min(rate, 1.0)) * known)
        return self._sorted[min(rank, known - 1)]
