"""How much less it weighs what was seen long ago."""

from __future__ import annotations

import numpy as np

from curate.selection.base import CandidatePool, Float64Array
from curate.selection.sights import Sights

LEAST = 1e-300
"""However long ago: it may be all that there is."""


def moments_of(pool: CandidatePool) -> Float64Array:
    """Return when each row was captured, float64 [N] seconds; NaN where that is not known."""
    return np.full(len(pool), np.nan) if pool.captured_s is None else pool.captured_s


def last_seen(sights: Sights) -> Float64Array:
    """Return when each sight's newest row was captured, float64 [S] seconds; -inf where that is not known."""
    seconds = moments_of(sights.pool)
    newest = np.full(len(sights.size), -np.inf)
    np.maximum.at(newest, sights.cluster, np.where(np.isfinite(seconds), seconds, -np.inf))
    return newest


def newest_moment(moments_s: Float64Array) -> float:
    """Return the newest known moment; -inf if none is."""
    return float(moments_s[np.isfinite(moments_s)].max(initial=-np.inf))


def weigh_age(moments_s: Float64Array, half_life_s: float | None, newest_s: float) -> Float64Array:
    """Return a weight that halves for each half-life before `newest_s`, float64 [N]; 1 where no moment is known."""
    weights = np.ones(len(moments_s))
    if half_life_s is not None:
        known = np.isfinite(moments_s)
        weights[known] = np.maximum(0.5 ** ((newest_s - moments_s[known]) / half_life_s), LEAST)
    return weights
