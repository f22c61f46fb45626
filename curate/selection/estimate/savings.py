"""What choosing saves, in labels and in bytes; pure. "Not told" is an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from curate.contracts.telemetry import DeviceCounters
from curate.errors import SelectionError
from curate.metrics.evidence import Float64Array, block_numbers, block_replicates

REPLICATES = 2000
MIN_BLOCKS = 10
MIN_READABLE = 0.95
"""Share of the replicates on which the curve has to reach the control, or be above it throughout, to be read."""


@dataclass(frozen=True, eq=False)
class CurvePoint:
    """A model taught by `labels` labels of the field, and whether it was right on each held-out frame, float64 [n]."""

    labels: int
    correct: Float64Array


@dataclass(frozen=True)
class LabelsSaved:
    """`share` is how many labels our choice needs, as a share of what random ones need for the same accuracy; below 1
    is a saving. None: the curves cannot tell, and `why` says it in words.
    """

    share: float | None
    ci95: tuple[float, float] | None
    control_labels: int
    why: str


@dataclass(frozen=True)
class BytesSaved:
    """Bytes that uploading every answered frame would have cost, and what was uploaded."""

    all_frames: int
    uploaded: int

    @property
    def share(self) -> float | None:
        """Uploaded over all; None before the first frame."""
        return self.uploaded / self.all_frames if self.all_frames else None


def labels_saved(
    ours: Sequence[CurvePoint],
    control: CurvePoint,
    weights: Float64Array,
    blocks: Sequence[str],
    *,
    seed: int = 0,
    confidence: float = 0.95,
) -> LabelsSaved:
    """Read off our learning curve how many labels reach what the control has reached with random ones.

    All models answer the same n held-out frames: `weights` float64 [n] and `blocks` [n] as in `estimate_field`. Our
    accuracies are made to rise with the labels (pooling of adjacent violators, Ayer et al. 1955) and joined by lines
    over the logarithm of the labels; outside its points the curve is not prolonged. The interval is a percentile
    bootstrap over blocks, the same replicates for every model. It holds for the models as they are: how another
    training seed or another draw of random labels would have come out is not in it.
    Raises `SelectionError` on ragged columns or fewer than two points of ours.
    """
    points = sorted(ours, key=lambda point: point.labels)
    _verify_curve(points, control, weights, blocks)
    if block_numbers(blocks)[1] < MIN_BLOCKS:
        return LabelsSaved(None, None, control.labels, "too few held-out scenes to tell")
    drawn = np.vstack([weights, block_replicates(weights, blocks, REPLICATES, seed)])
    drawn = drawn / drawn.sum(axis=1, keepdims=True)
    at = np.log([point.labels for point in points])
    accuracies = drawn @ np.column_stack([point.correct for point in points])
    reached = drawn @ control.correct
    sizes = np.array([_read_curve(at, row, goal) for row, goal in zip(accuracies, reached, strict=True)])
    readable = np.isfinite(sizes)
    if float(readable[1:].mean()) < MIN_READABLE or not readable[0]:
        return LabelsSaved(None, None, control.labels, _why_unreadable(sizes[1:]))
    shares = np.exp(sizes[readable]) / control.labels
    tail = (1 - confidence) / 2
    low, high = np.quantile(shares[1:], [tail, 1 - tail])
    return LabelsSaved(float(shares[0]), (float(low), float(high)), control.labels, "")


def bytes_saved(counters: Iterable[DeviceCounters]) -> BytesSaved:
    """Sum what uploading all frames would have cost and what was uploaded over devices.

    Frames that the scene gate spared the model were never encoded; each counts as the mean of those that were.
    """
    everything, uploaded = 0.0, 0
    for each in counters:
        answered = each.frames_inferred + each.frames_skipped.get("unchanged", 0)
        everything += each.bytes_seen * (answered / each.frames_inferred if each.frames_inferred else 1.0)
        uploaded += each.bytes_uploaded
    return BytesSaved(round(everything), uploaded)


def _verify_curve(
    points: Sequence[CurvePoint], control: CurvePoint, weights: Float64Array, blocks: Sequence[str]
) -> None:
    if len({point.labels for point in points}) < 2:
        raise SelectionError("a learning curve needs models of two sizes", hint="turn another round")
    if min(point.labels for point in (*points, control)) < 1:
        raise SelectionError("a model on a learning curve was taught by no label")
    if not {len(point.correct) for point in (*points, control)} == {len(weights)} == {len(blocks)}:
        raise SelectionError("the models of a learning curve answered different frames")


def _read_curve(at: Float64Array, accuracy: Float64Array, goal: float) -> float:
    """Return the log of the labels at which the rising curve reaches `goal`; -inf below its start, inf beyond."""
    rising = _rising(accuracy)
    if goal < rising[0]:
        return -np.inf
    if goal > rising[-1]:
        return np.inf
    first = int(np.searchsorted(rising, goal, side="left"))
    if first == 0:
        return float(at[0])
    share = (goal - rising[first - 1]) / (rising[first] - rising[first - 1])
    return float(at[first - 1] + share * (at[first] - at[first - 1]))


def _rising(values: Float64Array) -> Float64Array:
    """Return the closest sequence that never falls (equal weights)."""
    sums: list[float] = []
    counts: list[int] = []
    for value in values.tolist():
        sums.append(value)
        counts.append(1)
        while len(sums) > 1 and sums[-2] / counts[-2] > sums[-1] / counts[-1]:
            sums[-2:], counts[-2:] = [sums[-2] + sums[-1]], [counts[-2] + counts[-1]]
    return np.repeat(np.array(sums) / np.array(counts), counts)


def _why_unreadable(sizes: Float64Array) -> str:
    below, above = float((sizes == -np.inf).mean()), float((sizes == np.inf).mean())
    if below > MIN_READABLE:
        return "our smallest model is already better than the control: fewer labels would have done, how few is unknown"
    if above > MIN_READABLE:
        return "our largest model is still worse than the control"
    return "the held-out frames cannot tell the curves apart"
