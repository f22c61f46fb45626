"""Whether a camera's world has changed since its model was made; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curate.errors import SelectionError
from curate.metrics.evidence import Float64Array, IntArray
from curate.selection.base import BoolArray, Float32Array
from curate.selection.drift.martingale import Evidence, conformal_p_values, gather_evidence
from curate.selection.estimate.slices import time_of_day

DIRECTIONS = 12
NEIGHBOURS = 3
MONTH_S = 30 * 86400.0


class DriftPolicy(BaseModel):
    """How cameras are watched for a change of their world."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spacing_s: float = Field(
        default=1800.0, gt=0, description="One random-arm capture of a camera counts in each such block of time."
    )
    reference_days: float = Field(default=7.0, gt=0, description="What came that long before the release is normal.")
    min_reference: int = Field(default=48, ge=20, description="Fewer captures do not say what is normal.")
    false_alarms_per_month: float = Field(
        default=0.01,
        gt=0,
        description="Of a camera whose captures are independent; weather and scenes that last add more.",
    )

    @property
    def threshold(self) -> float:
        """The mean number of captures before a false alarm, at least."""
        return MONTH_S / self.spacing_s / self.false_alarms_per_month


@dataclass(frozen=True, eq=False)
class Sights:
    """n captures of one camera by time, all seen through one model: `embeddings` float32 [n, D], `scores` float64 [n]
    how unsure the model was, `at` [n]. Raises `SelectionError` on ragged columns or numbers that are not finite.
    """

    embeddings: Float32Array
    scores: Float64Array
    at: tuple[datetime, ...]

    def __post_init__(self) -> None:
        if not len(self.embeddings) == len(self.scores) == len(self.at):
            raise SelectionError("every capture of a camera needs an embedding, a score and a time")
        if not (np.isfinite(self.embeddings).all() and np.isfinite(self.scores).all()):
            raise SelectionError("an embedding or a score is not a number")

    def __len__(self) -> int:
        return len(self.at)

    def part(self, rows: slice) -> Sights:
        """Return the captures of a range."""
        return Sights(self.embeddings[rows], self.scores[rows], self.at[rows])


@dataclass(frozen=True)
class DriftFinding:
    """How it stands with one camera. `evidence` is what has gathered, as a share of the bar (1 and more: alarm);
    `since` when the bar was reached; `watched` captures after a reference of `reference`. `told` is False while the
    reference is too small to say anything.
    """

    told: bool
    reference: int
    watched: int
    evidence: float
    since: datetime | None

    @property
    def alarm(self) -> bool:
        """Whether the camera's world has changed, as far as can be told."""
        return self.since is not None


def pick_representatives(at: Sequence[datetime], spacing_s: float) -> list[int]:
    """Return the rows of the first capture in each block of time, in order of time.

    Frames of a burst are alike, and a crowd of them is one observation, not many.
    """
    first: dict[int, int] = {}
    for row in sorted(range(len(at)), key=lambda row: at[row]):
        first.setdefault(int(at[row].timestamp() // spacing_s), row)
    return list(first.values())


def split_reference(at: Sequence[datetime], start: datetime, policy: DriftPolicy) -> int:
    """Return how many captures, by time, are the reference: those before `start`, then as many as it takes."""
    before = sum(each < start for each in at)
    return min(max(before, policy.min_reference), len(at))


def watch_camera(sights: Sights, reference: int, policy: DriftPolicy, seed: int) -> DriftFinding:
    """Compare what a camera shows with its reference, the first `reference` of its captures.

    The first half of the reference says what to look at: directions in which its embeddings vary, and where they lie at
    all. (Not every other capture: neighbours in time share a scene, and the rest of the reference would look more
    familiar than anything later.) The second half and all that follow become scores: how unsure the model is, the place
    along each direction, the distance to the nearest of the first half. Each is ranked among all before it at the same
    time of day, and the ranks are bet against (`martingale`).
    """
    watched = len(sights) - reference
    if reference < policy.min_reference or watched <= 0:
        return DriftFinding(reference >= policy.min_reference, reference, max(watched, 0), 0.0, None)
    evidence = _test(sights, reference, policy, seed)
    alarm = evidence.alarm
    since = None if alarm is None else sights.at[reference + alarm]
    return DriftFinding(True, reference, watched, float(evidence.gathered.max()) / evidence.threshold, since)


def _test(sights: Sights, reference: int, policy: DriftPolicy, seed: int) -> Evidence:
    learned, calibration, stream = np.split(np.arange(len(sights)), [reference // 2, reference])
    scores, two_sided = _scores(sights, learned)
    kinds = [time_of_day(at) for at in sights.at]
    before, after = kinds[reference // 2 : reference], kinds[reference:]
    rng = np.random.default_rng(seed)
    columns = [conformal_p_values(column[calibration], before, column[stream], after, rng) for column in scores.T]
    return gather_evidence(np.column_stack(columns), two_sided, policy.threshold)


def _scores(sights: Sights, learned: IntArray) -> tuple[Float64Array, BoolArray]:
    """Return each capture's scores, float64 [n, S], and which of them may move either way, bool [S]."""
    vectors = sights.embeddings.astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    known = vectors[learned]
    middle = known.mean(axis=0)
    directions = np.linalg.svd(known - middle, full_matrices=False)[2][:DIRECTIONS]
    distances = 1.0 - np.sort(vectors @ known.T, axis=1)[:, ::-1][:, :NEIGHBOURS].mean(axis=1)
    columns = np.column_stack([sights.scores, (vectors - middle) @ directions.T, distances])
    two_sided = np.array([True] * (1 + len(directions)) + [False])
    return columns, two_sided
