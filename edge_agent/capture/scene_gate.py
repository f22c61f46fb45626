"""Tells which frames need no model, because nothing has changed since the last answer. Pure.

The idea is Reducto's (Li et al., "Reducto: On-Camera Filtering for Resource-Efficient Real-Time Video Analytics",
SIGCOMM 2020): cheap differences of pixels with a threshold that adapts to what the answers do. There a server finds
the threshold; here the frames that are answered all the same do.

A frame is compared with the frame of the last answer, never with the one before it, so slow changes add up. Few of its
pixels are looked at, in tiles. A tile's difference counts in units of what that tile usually differs by from one frame
to the next, and the frame has changed when one tile exceeds the threshold.

The gate measures its own error. One in `force_every` of the frames it would skip is answered all the same, chosen by a
coin that knows nothing of the frame, and so is one that the random arm draws; how often their fresh answers disagree
with the ones they would have been given estimates without bias how many skipped frames carry a wrong answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.contracts.device_settings import SceneGateSpec

SAMPLES_A_SIDE: Final = 192
"""About how many pixels are looked at along the longer side."""
TILE: Final = 4
"""Samples a side of a tile."""

NOISE_FLOOR: Final = 1.0
"""Grey levels of mean difference that mean nothing in any tile: rounding, and the last bit of a codec."""
NOISE_CEILING: Final = 12.0
"""However restless a tile is, larger differences than some times this are looked at."""
_RISE, _FALL = 1.1, 0.97
"""A tile's noise is a running quantile of its differences, in steps of these factors: what three in four of them,
log(rise) / (log(rise) - log(fall)), do not exceed (stochastic approximation of a quantile, Robbins and Monro 1951)."""

LOOSEST, STRICTEST = 8.0, 2.0
"""The threshold to begin with, in units of noise, at sensitivity 0 and 1."""
_RANGE: Final = 4.0
"""How far the threshold adapts to either side, as a factor."""
_STEP: Final = 0.5
"""Size of a step of the threshold, on a logarithmic scale."""

Samples = NDArray[np.int16]


class GateLook(NamedTuple):
    """What the gate saw in one frame. Numbers only: words are made for those who ask."""

    unchanged: bool
    """Nothing has changed, and the last answer is young enough to stand for this frame too."""
    forced: bool
    """Unchanged, and to be answered all the same, to see whether that is so."""
    change: float
    """The largest difference of a tile, in units of its noise; infinite without a frame to compare with."""
    threshold: float
    reach: float = 1.0
    """The probability with which a frame like this one is answered for the gate's sake: 1 when it has changed, the
    forced share when it was forced, 0 when it is skipped."""

    @property
    def skips(self) -> bool:
        """Whether the last answer is to stand for the frame, as far as the gate is concerned."""
        return self.unchanged and not self.forced


@dataclass(frozen=True, slots=True)
class GateCounts:
    """What the gate did so far. Only sums: those of several cameras add up."""

    frames: int = 0
    """Frames it looked at."""
    skipped: int = 0
    """Frames for which the last answer stood."""
    checked: int = 0
    """Unchanged frames that were answered all the same."""
    wrong: int = 0
    """Of those, how many got an answer that disagrees with the one that would have stood for them."""

    def plus(self, other: GateCounts) -> GateCounts:
        """Return the sum."""
        return GateCounts(
            self.frames + other.frames,
            self.skipped + other.skipped,
            self.checked + other.checked,
            self.wrong + other.wrong,
        )


class SceneGate:
    """The gate of one camera. Not thread-safe: one capture loop owns it, `counts` apart."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._reference: Samples | None = None
        self._reference_s = 0.0
        self._seen: Samples | None = None
        self._seen_s = 0.0
        self._noise: NDArray[np.float32] | None = None
        self._spec: SceneGateSpec | None = None
        self._threshold = self._lowest = self._highest = 0.0
        self.counts = GateCounts()

    def forget(self) -> None:
        """Have nothing to compare with: another model answers, or the last frame got no answer."""
        self._reference = None

    def look(self, image: NDArray[np.uint8], now_s: float, spec: SceneGateSpec) -> GateLook:
        """Compare one frame, uint8 [H, W, 3], with the frame of the last answer; `now_s` is monotonic."""
        if spec is not self._spec:
            self._follow(spec)
        samples = take_samples(image)
        self._learn_noise(samples)
        self._seen, self._seen_s = samples, now_s
        change = self._measure(samples)
        young = now_s - self._reference_s <= spec.max_reuse_s
        unchanged = young and change < self._threshold
        forced = unchanged and bool(self._rng.random() * spec.force_every < 1.0)
        reach = 1.0 if not unchanged else 1.0 / spec.force_every if forced else 0.0
        return GateLook(unchanged, forced, change, self._threshold, reach)

    def note_skipped(self) -> None:
        """Take note that the last answer stands for the frame that was looked at."""
        self._count(skipped=1)

    def note_answer(self, look: GateLook, agrees: bool | None) -> None:
        """Take note of a fresh answer to the frame that was looked at.

        Args:
            look: what `look` returned for it.
            agrees: whether it agrees with the answer that would have stood for the frame; None when there was none.
        """
        self._reference, self._reference_s = self._seen, self._seen_s
        if agrees is None:
            self._count()
        elif look.unchanged:
            self._count(checked=1, wrong=int(not agrees))
            self._adapt(1.0, wrong=not agrees)
        else:
            self._count()
            # Let through in vain. Of the frames it would skip one in `force_every` tells something; so does this one.
            self._adapt(1.0 / self._force_every if agrees else 0.0, wrong=False)

    def _count(self, *, skipped: int = 0, checked: int = 0, wrong: int = 0) -> None:
        self.counts = self.counts.plus(GateCounts(1, skipped, checked, wrong))

    def _adapt(self, weight: float, *, wrong: bool) -> None:
        """Move the threshold so that the share of wrong answers among the checked ones tends to `target_error`.

        The step is proportional to the target less the error just seen (Gibbs and Candes, "Adaptive Conformal
        Inference Under Distribution Shift", 2021, section 2): whatever the frames do, the mean error converges.
        """
        self._threshold *= math.exp(_STEP * weight * (self._target_error - wrong))
        self._threshold = min(self._highest, max(self._lowest, self._threshold))

    def _follow(self, spec: SceneGateSpec) -> None:
        self._spec = spec
        self._force_every = spec.force_every
        self._target_error = target_error(spec.sensitivity)
        self._threshold = LOOSEST * (STRICTEST / LOOSEST) ** spec.sensitivity
        self._lowest, self._highest = self._threshold / _RANGE, self._threshold * _RANGE

    def _learn_noise(self, samples: Samples) -> None:
        """Compare with the frame before, not with the answered one: what changes slowly is no noise."""
        if self._seen is None or self._noise is None or self._seen.shape != samples.shape:
            rows, columns = samples.shape
            self._noise = np.full((rows // TILE, columns // TILE), NOISE_FLOOR, np.float32)
            return
        noise = self._noise
        noise *= np.where(tile_differences(samples, self._seen) > noise, np.float32(_RISE), np.float32(_FALL))
        np.clip(noise, NOISE_FLOOR, NOISE_CEILING, out=noise)

    def _measure(self, samples: Samples) -> float:
        """Return the largest difference of a tile from the answered frame, in units of its noise."""
        reference = self._reference
        if reference is None or self._noise is None or reference.shape != samples.shape or not samples.size:
            return math.inf
        return float((tile_differences(samples, reference) / self._noise).max())


def target_error(sensitivity: float) -> float:
    """Return the share of skipped frames that may carry a wrong answer: a tenth at sensitivity 0, a hundredth at 1."""
    return math.pow(10.0, -1.0 - sensitivity)


def take_samples(image: NDArray[np.uint8]) -> Samples:
    """Return some pixels' green, int16 [4 R, 4 C], of a frame, uint8 [H, W, 3]; nothing of one smaller than a tile."""
    step = max(1, -(-max(image.shape[:2]) // SAMPLES_A_SIDE))
    green = image[step // 2 :: step, step // 2 :: step, 1]
    rows, columns = green.shape[0] // TILE * TILE, green.shape[1] // TILE * TILE
    return green[:rows, :columns].astype(np.int16)


def tile_differences(left: Samples, right: Samples) -> NDArray[np.float32]:
    """Return the mean absolute difference of each tile, float32 [R, C], of samples [4 R, 4 C]."""
    apart = np.abs(left - right)
    # Sums of slices: several times faster than a reduction over short axes.
    rows = apart[0::TILE] + apart[1::TILE] + apart[2::TILE] + apart[3::TILE]
    tiles = rows[:, 0::TILE] + rows[:, 1::TILE] + rows[:, 2::TILE] + rows[:, 3::TILE]
    return np.asarray(np.divide(tiles, TILE * TILE, dtype=np.float32))
