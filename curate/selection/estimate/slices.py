"""Where in the field the model is good and where not: by device, camera, class and time of day; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from curate.selection.base import BoolArray
from curate.selection.estimate.field import FieldEstimate

MIN_BURSTS = 5
MAX_WIDTH = 0.5
"""A wider interval would let a reader see what he likes in it."""
HOURS = 6


@dataclass(frozen=True)
class SliceEstimate:
    """One slice's estimate; `told` is whether it says anything: else there are too few audits, and the interval is
    there to show how wide it is. `estimate` is None where no audit fell into the slice, or none with a true box.

    Each interval holds for its own slice: among twenty slices one is expected to miss.
    """

    by: str
    name: str
    captures: int
    estimate: FieldEstimate | None
    told: bool


def estimate_slices(
    columns: Mapping[str, Sequence[str]], estimate: Callable[[BoolArray], FieldEstimate | None]
) -> list[SliceEstimate]:
    """Estimate every slice of the random arm's N captures.

    `columns` names for each way to slice (`device`, `camera`, ...) the slice of every capture [N]; `estimate` gives the
    estimate of the captures that bool [N] names, None where they cannot tell.
    """
    found = []
    for by, names in columns.items():
        named = np.asarray(names, object)
        for name in sorted(set(names)):
            rows = np.asarray(named == name, np.bool_)
            told = estimate(rows)
            found.append(SliceEstimate(by, name, int(rows.sum()), told, _tells(told)))
    return found


def time_of_day(at: datetime) -> str:
    """Return the quarter of the day, UTC: hours one by one would have too few audits each."""
    first = at.hour // HOURS * HOURS
    return f"{first:02d}-{first + HOURS:02d} h UTC"


def _tells(estimate: FieldEstimate | None) -> bool:
    if estimate is None or estimate.bursts < MIN_BURSTS:
        return False
    low, high = estimate.ci95
    return high - low <= MAX_WIDTH
