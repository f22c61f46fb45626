"""The truth of the plaza clip: a box for every person in every frame, self-made (see docs/plaza-truth.md)."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from flows.sandbox.plaza_clip import FRAMES

TRUTH_FILE = "plaza_truth.csv"
CHECKED_FILE = "plaza_checked.csv"


@dataclass(frozen=True)
class TruthBox:
    """A person in one frame: a corner box in pixels of the captured image; `x_max` and `y_max` are exclusive edges.

    A `track_id` is one person from entering the picture to leaving it; who comes back later gets a new one. A box by
    the hand check, which follows nobody through time, has its number within the frame instead.
    """

    track_id: int
    x_min: float
    y_min: float
    x_max: float
    y_max: float


def load_truth() -> Mapping[int, tuple[TruthBox, ...]]:
    """Every frame number of the clip (0..794) with its persons by rising `track_id`; none is an empty tuple."""
    boxes = _read(TRUTH_FILE)
    return MappingProxyType({frame: boxes.get(frame, ()) for frame in range(FRAMES)})


def load_checked() -> Mapping[int, tuple[TruthBox, ...]]:
    """The frames that were boxed a second time by hand, independently of the truth, to measure the truth."""
    return MappingProxyType(_read(CHECKED_FILE))


def _read(name: str) -> dict[int, tuple[TruthBox, ...]]:
    """A shipped table of `frame,track_id,x_min,y_min,x_max,y_max`, sorted by frame and id."""
    found: defaultdict[int, list[TruthBox]] = defaultdict(list)
    with files("flows.sandbox").joinpath(name).open(encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            corners = (float(row[edge]) for edge in ("x_min", "y_min", "x_max", "y_max"))
            found[int(row["frame"])].append(TruthBox(int(row["track_id"]), *corners))
    return {frame: tuple(boxes) for frame, boxes in found.items()}
