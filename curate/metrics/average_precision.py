"""Evidence of a detector: what was matched on which frame, and the COCO measures of any weighting of the frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from curate.metrics.evidence import (
    Difference,
    Float64Array,
    IntArray,
    Interval,
    block_numbers,
    bootstrap_variance,
    effective_blocks,
    wilson,
)

BoolArray = NDArray[np.bool_]
Measure = Literal["AP50", "AP50-95", "recall at 1 false positive a frame"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# As COCOeval writes it: 0.7 comes out one bit above 7/10, and its numbers depend on that.
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
REPLICATES = 1000
MAX_CHUNK_NUMBERS = 1 << 21
# The smallest number that held coverage in simulation (docstring of `DetectionEvidence.interval`).
PRETENDED_BLOCKS = 1


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """A precision-recall curve at IoU 0.5, one point a detection taken in by falling score; all float64 [D]."""

    recall: Float64Array
    precision: Float64Array
    score: Float64Array


@dataclass(frozen=True, eq=False)
class DetectionEvidence:
    """What COCO's matching found on n frames; D detections by falling score, K classes, 10 IoU thresholds.

    `frame` int64 [D] and `class_index` int64 [D] say whose a detection is; `matched` bool [10, D] whether it found a
    true box of its class at that IoU; `truths` int64 [n, K] counts the true boxes. `measure` is what `value`,
    `interval` and `difference` speak of; `measuring` turns to another. Everything is NaN where no (weighted) frame
    holds a true box: an average precision of nothing does not exist.
    """

    frame: IntArray
    class_index: IntArray
    scores: Float64Array
    matched: BoolArray
    truths: IntArray
    measure: Measure = "AP50"

    def __len__(self) -> int:
        return len(self.truths)

    @property
    def metric(self) -> str:
        """The measure's name."""
        return self.measure

    def measuring(self, measure: Measure) -> Self:
        """Return the same evidence, speaking of another measure."""
        return replace(self, measure=measure)

    def take(self, frames: Sequence[int] | IntArray) -> Self:
        """Return the evidence of the given frames (each at most once), numbered anew in the given order."""
        index = np.asarray(frames, np.int64)
        number = np.full(len(self), -1, np.int64)
        number[index] = np.arange(len(index))
        kept = np.flatnonzero(number[self.frame] >= 0)
        return replace(
            self,
            frame=number[self.frame[kept]],
            class_index=self.class_index[kept],
            scores=self.scores[kept],
            matched=self.matched[:, kept],
            truths=self.truths[index],
        )

    def values(self, weights: Float64Array) -> Float64Array:
        """Return the measure under each row of `weights` float64 [R, n] >= 0: float64 [R]."""
        chunk = max(1, MAX_CHUNK_NUMBERS // max(1, len(self.scores)))
        rows = [_MEASURES[self.measure](self, weights[i : i + chunk]) for i in range(0, len(weights), chunk)]
        return np.concatenate(rows) if rows else np.empty(0)

    def value(self, weights: Float64Array | None = None) -> float:
        """Return the measure; with `weights` float64 [n] a frame counts as often as its weight says."""
        weight = np.ones(len(self)) if weights is None else weights
        return float(self.values(weight[None, :])[0])

    def interval(self, weights: Float64Array, blocks: Sequence[str], confidence: float = 0.95) -> Interval:
        """Return Wilson's interval over the effective size that a bootstrap over blocks finds.

        The cluster bootstrap gives the variance between blocks; v (1 - v) over it is an effective sample size, and
        Wilson's score interval over that (as for accuracies) stays within [0, 1]. Few blocks are met twice: Student's t
        counts blocks by the true boxes they hold, since blocks of empty frames tell little about recall, and the
        variance is averaged with that of one pretended block whose frames are all right or all wrong.
        In simulation (8 blocks of 3-9 frames and 25 of 1-3; 1 and 6 objects a frame; AP50 0.51-0.99; blocks from not
        alike to mostly alike; weights up to 1:2.5; 36 cells, 400 runs each) it covered 94 to 100 % (mean 98 %), the
        recall as well; a percentile bootstrap covered as little as 26 %. With 8 blocks it is wider than it had to be.
        """
        value, variance = self.value(weights), bootstrap_variance(self.values, weights, blocks, REPLICATES, 0)
        if not (np.isfinite(value) and np.isfinite(variance)):
            return 0.0, 1.0
        count, alike, spread = block_numbers(blocks)[1], self._effective_blocks(weights, blocks), value * (1.0 - value)
        if spread <= 0:
            return wilson(value, alike, alike - 1, confidence)
        steadied = (count * variance + PRETENDED_BLOCKS * spread / alike) / (count + PRETENDED_BLOCKS)
        return wilson(value, spread / steadied, alike - 1, confidence)

    def difference(self, incumbent: Self, weights: Float64Array, blocks: Sequence[str]) -> Difference:
        """Return the paired difference: both models are weighed by the same bootstrap replicates of the blocks.

        As for accuracies, two pretended frames that disagree in opposite ways keep the error from vanishing; the
        degrees of freedom are those of `interval`. How often a gate then errs: `curate.release.gate.judge_candidate`.
        """
        mean, n = self.value(weights) - incumbent.value(weights), len(self)
        variance = bootstrap_variance(
            lambda drawn: self.values(drawn) - incumbent.values(drawn), weights, blocks, REPLICATES, 0
        )
        if not np.isfinite(variance):
            return Difference(mean, 1.0, 0)
        error = float(np.sqrt(variance * n**2 + 1.0)) / (n + 2)
        return Difference(mean, error, self._effective_blocks(weights, blocks) - 1)

    def curve(self, class_index: int = 0, weights: Float64Array | None = None) -> PrecisionRecall:
        """Return a class's precision-recall curve at IoU 0.5, before COCO's interpolation; empty without true boxes."""
        weight = (np.ones(len(self)) if weights is None else weights)[None, :]
        mine = np.flatnonzero(self.class_index == class_index)
        positives = float((weight @ self.truths[:, class_index])[0]) if len(self) else 0.0
        if positives <= 0:
            return PrecisionRecall(np.empty(0), np.empty(0), np.empty(0))
        taken = weight[:, self.frame[mine]]
        hits, total = _cumulated(taken * self.matched[0, mine])[0], _cumulated(taken)[0]
        precision = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
        return PrecisionRecall(hits / positives, precision, self.scores[mine])

    def _effective_blocks(self, weights: Float64Array, blocks: Sequence[str]) -> float:
        """Return how many blocks of equally many (weighted) true boxes would tell as much."""
        return effective_blocks(weights * self.truths.sum(axis=1), blocks)


def _average_precision(evidence: DetectionEvidence, weights: Float64Array, thresholds: Sequence[int]) -> Float64Array:
    """Return COCO's 101-point interpolated AP, mean over classes with truth and over thresholds: float64 [R]."""
    scaled = _scaled(weights)
    values = []
    for index in range(evidence.truths.shape[1]):
        mine = np.flatnonzero(evidence.class_index == index)
        positives = scaled @ evidence.truths[:, index].astype(np.float64)
        taken = scaled[:, evidence.frame[mine]]
        total = _cumulated(taken)
        values += [_interpolated(_cumulated(taken * evidence.matched[t, mine]), total, positives) for t in thresholds]
    if not values:
        return np.full(len(weights), np.nan)
    stacked = np.stack(values)
    found = np.isfinite(stacked)
    mean = np.where(found, stacked, 0.0).sum(axis=0) / np.maximum(found.sum(axis=0), 1)
    return np.where(found.any(axis=0), mean, np.nan)


def _interpolated(hits: Float64Array, total: Float64Array, positives: Float64Array) -> Float64Array:
    """Return the AP of R curves from cumulated true positives and detections [R, D] and the weight of truth [R].

    At each of 101 recalls the best precision of any point that reaches it counts (Everingham et al. 2010, section 4.2;
    COCOeval). A point takes the levels up to its recall that no earlier point took.
    """
    if hits.shape[1] == 0:
        return np.where(positives > 0, 0.0, np.nan)
    recall = hits / np.where(positives > 0, positives, 1.0)[:, None]
    recall[recall > 1.0 - 1e-12] = 1.0  # all found is all found, in whatever order weights were summed
    precision = hits / (total + np.spacing(1.0))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALL_LEVELS, recall, side="right")
    reached[:, 1:] -= reached[:, :-1].copy()
    return np.where(positives > 0, (reached * best).sum(axis=1) / len(RECALL_LEVELS), np.nan)


def _recall_at_false_positives(evidence: DetectionEvidence, weights: Float64Array, rate: float) -> Float64Array:
    """Return the recall at IoU 0.5, over all classes, of the lowest score cut with at most `rate` false boxes a frame.

    Boxes of equal score come in together: no cut lies between them. float64 [R].
    """
    positives = weights @ evidence.truths.sum(axis=1).astype(np.float64)
    taken = weights[:, evidence.frame]
    matched = evidence.matched[0]
    hits, false = _cumulated(taken * matched), _cumulated(taken * ~matched)
    a_cut = np.append(evidence.scores[1:] != evidence.scores[:-1], True)[: len(evidence.scores)]
    allowed = (false <= rate * weights.sum(axis=1, keepdims=True) * (1 + 1e-12)) & a_cut
    found = np.where(allowed, hits, 0.0).max(axis=1, initial=0.0)
    return np.where(positives > 0, np.minimum(found / np.where(positives > 0, positives, 1.0), 1.0), np.nan)


def _scaled(weights: Float64Array) -> Float64Array:
    """Scale each row to a maximum of 1: equal weights then count exactly, as COCOeval counts."""
    top = weights.max(axis=1, keepdims=True, initial=0.0)
    return np.asarray(weights / np.where(top > 0, top, 1.0))


def _cumulated(values: Float64Array) -> Float64Array:
    return np.cumsum(values, axis=1, dtype=np.float64)


_MEASURES: Mapping[Measure, Callable[[DetectionEvidence, Float64Array], Float64Array]] = {
    "AP50": lambda evidence, weights: _average_precision(evidence, weights, (0,)),
    "AP50-95": lambda evidence, weights: _average_precision(evidence, weights, range(len(IOU_THRESHOLDS))),
    "recall at 1 false positive a frame": lambda evidence, weights: _recall_at_false_positives(evidence, weights, 1.0),
}
