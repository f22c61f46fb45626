"""What a model's answers to audited frames prove: one protocol for every kind of model, one estimate, one gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """Candidate minus incumbent: the estimate, its standard error between blocks, and its degrees of freedom.

    `mean` is NaN where the frames have nothing to be right or wrong about. With no freedom (a single block) nothing is
    known, and every bound is -1 or 1.
    """

    mean: float
    error: float
    freedom: float

    def bound(self, level: float) -> float:
        """Return the quantile of the difference at `level`, within [-1, 1]."""
        t = float(stdtrit(self.freedom, level)) if self.freedom > 0 else float("inf") * (1 if level > 0.5 else -1)
        return float(np.clip(self.mean + t * self.error, -1.0, 1.0))


class Evidence(Protocol):
    """A model's answers to n frames, held against the truth; what is measured on them lies in [0, 1], more is better.

    `weights` float64 [n] > 0 is 1/π of each frame; `blocks` [n] names what frames share (camera and block of time):
    frames of one block are alike, so the block, not the frame, is the unit of evidence.
    """

    @property
    def metric(self) -> str:
        """What is measured, in the words a person reads."""

    def __len__(self) -> int:
        """The number of frames, those without any object included."""

    def take(self, frames: Sequence[int] | IntArray) -> Self:
        """The evidence of the given frames, each at most once, in the given order."""

    def value(self, weights: Float64Array | None = None) -> float:
        """The metric over the weighted frames (all alike by default); NaN where there is nothing to measure."""

    def interval(self, weights: Float64Array, blocks: Sequence[str], confidence: float = 0.95) -> Interval:
        """Bounds of the metric in the field the frames were drawn from."""

    def difference(self, incumbent: Self, weights: Float64Array, blocks: Sequence[str]) -> Difference:
        """This model minus another on the same frames, paired."""


def block_numbers(blocks: Sequence[str]) -> tuple[IntArray, int]:
    """Return each frame's block number, int64 [n], and how many blocks there are."""
    numbers = np.unique(np.asarray(blocks), return_inverse=True)[1].astype(np.int64)
    return numbers, int(numbers.max()) + 1 if len(numbers) else 0


def block_replicates(weights: Float64Array, blocks: Sequence[str], replicates: int, seed: int) -> Float64Array:
    """Return weights float64 [replicates, n] of samples that draw whole blocks with replacement.

    The cluster bootstrap (Davison & Hinkley 1997, section 3.8, "strategy 1"): every block is drawn with all its frames
    as often as a multinomial says, so frames that share a block are never told apart.
    """
    block_of, count = block_numbers(blocks)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=replicates)
    return np.asarray(draws[:, block_of] * weights, np.float64)


def bootstrap_variance(
    values: Callable[[Float64Array], Float64Array],
    weights: Float64Array,
    blocks: Sequence[str],
    replicates: int,
    seed: int,
) -> float:
    """Return the variance of a statistic between blocks, B/(B-1) times that of its bootstrap replicates.

    `values` maps weights [R, n] to [R]. Replicates that have nothing to measure (NaN) are left out; with fewer than
    half left, or a single block, the variance is NaN: unknown.
    """
    count = block_numbers(blocks)[1]
    if count < 2:
        return float("nan")
    drawn = values(block_replicates(weights, blocks, replicates, seed))
    drawn = drawn[np.isfinite(drawn)]
    if 2 * len(drawn) < replicates:
        return float("nan")
    return float(drawn.var()) * count / (count - 1)


def effective_blocks(weights: Float64Array, blocks: Sequence[str]) -> float:
    """Return how many equally heavy blocks would weigh as these do: (Σ w_b)² / Σ w_b² (Kish)."""
    heavy = np.bincount(block_numbers(blocks)[0], weights)
    squares = float((heavy**2).sum())
    return float(heavy.sum() ** 2) / squares if squares > 0 else 0.0


def wilson(mean: float, effective: float, freedom: float, confidence: float) -> Interval:
    """Return Wilson's score interval with a Student-t quantile; with no freedom left (<= 0) nothing is known.

    `effective` is the number of independent frames that would be as informative, mean (1 - mean) / variance.
    """
    if not (freedom > 0 and effective > 0):
        return 0.0, 1.0
    t = float(stdtrit(freedom, 0.5 + confidence / 2))
    scale = 1.0 + t**2 / effective
    centre = (mean + t**2 / (2 * effective)) / scale
    half = t / scale * float(np.sqrt(mean * (1 - mean) / effective + (t / (2 * effective)) ** 2))
    return max(0.0, centre - half), min(1.0, centre + half)
