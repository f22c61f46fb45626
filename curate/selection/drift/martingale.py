"""Watching for a change, however often one looks: conformal p-values, bets on them, and an alarm; pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.metrics.evidence import Float64Array
from curate.selection.base import BoolArray

POWERS = (0.2, 0.5)
"""How boldly each bet is placed: a small power wins fast on a plain change, a large one slowly on a faint one."""
RARE = 0.05
"""Rarer than this earns no more: a scene that stands before the camera for a while must not look like a change."""

MOST_LOG = 300.0
"""Sums of evidence are held below overflow; every bar is far lower."""


def conformal_p_values(
    calibration: Float64Array,
    calibration_kinds: Sequence[str],
    stream: Float64Array,
    stream_kinds: Sequence[str],
    rng: np.random.Generator,
) -> Float64Array:
    """Return how large each of the stream's n scores is among all earlier ones of its kind, float64 [n] in (0, 1).

    While calibration and stream are exchangeable within each kind, these are independent and uniform, whatever the
    scores are (smoothed Mondrian conformal transducer: Vovk, Gammerman & Shafer 2005, chapters 2 and 4). A
    kind is what may differ without alarm, such as the time of day.
    """
    seen: dict[str, list[float]] = {}
    for score, kind in zip(calibration.tolist(), calibration_kinds, strict=True):
        insort(seen.setdefault(kind, []), score)
    p_values = np.empty(len(stream))
    ties = rng.random(len(stream))
    for row, (score, kind) in enumerate(zip(stream.tolist(), stream_kinds, strict=True)):
        before = seen.setdefault(kind, [])
        left, right = bisect_left(before, score), bisect_right(before, score)
        p_values[row] = (len(before) - right + ties[row] * (right - left + 1)) / (len(before) + 1)
        insort(before, score)
    return p_values


@dataclass(frozen=True, eq=False)
class Evidence:
    """What has gathered against "nothing has changed" after each of n observations, float64 [n], and the bar."""

    gathered: Float64Array
    threshold: float

    @property
    def alarm(self) -> int | None:
        """The first observation at which the bar was reached, None while it was not."""
        over = np.flatnonzero(self.gathered >= self.threshold)
        return int(over[0]) if len(over) else None


def gather_evidence(p_values: Float64Array, two_sided: BoolArray, threshold: float) -> Evidence:
    """Bet against the uniformity of p-values float64 [n, S] of S scores, all along.

    Each bet is a bounded power of a p-value (or of what it lacks to one, where `two_sided` bool [S] says so) that is
    worth 1 on average without a change; a Shiryaev-Roberts sum lets it begin anew at every observation, and the sums
    are averaged over bets and scores (e-detector: Shin, Ramdas & Rinaldo 2022, arXiv:2203.03532; power bets: Vovk et
    al. 2021, arXiv:2102.10439). Without a change the mean number of observations before the alarm is at least the bar
    (their bound on the average run length), however often one looks. Strictly that holds for each score's own sum;
    that stopping on their mean costs nothing was checked in simulation (benchmarks/drift.md).
    """
    sides = [p_values, 1.0 - p_values[:, two_sided]]
    columns = np.concatenate(sides, axis=1)
    bets = np.concatenate([_bet(columns, power) for power in POWERS], axis=1)
    won = np.cumsum(np.log(bets), axis=0)
    begun = np.logaddexp.accumulate(np.vstack([np.zeros(won.shape[1]), -won[:-1]]), axis=0)
    gathered = np.exp(np.minimum(won + begun, MOST_LOG)).mean(axis=1)
    return Evidence(gathered, threshold)


def _bet(p_values: Float64Array, power: float) -> Float64Array:
    """Return what a bet on small p-values pays: the same for all up to `RARE`, and 1 on average if they are uniform."""
    return np.asarray(power * np.maximum(p_values, RARE) ** (power - 1.0) / (1.0 - (1.0 - power) * RARE**power))
