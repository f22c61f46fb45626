"""How many frames a random-arm capture stands for, once devices have said how many they saw; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from curate.contracts.telemetry import DeviceCounters
from curate.metrics.evidence import Float64Array

UNCHANGED = "unchanged"
"""Frames skipped for this reason were open to the random arm all the same: its coin falls before the scene gate."""


@dataclass(frozen=True)
class FramesTold:
    """A device's running total of frames that its random arm could draw from, at a moment."""

    at: datetime
    frames: int

    @classmethod
    def of(cls, at: datetime, counters: DeviceCounters) -> FramesTold:
        """Read the total from a device's counters."""
        return cls(at, counters.frames_inferred + counters.frames_skipped.get(UNCHANGED, 0))


def frames_between(told: Sequence[FramesTold], start: datetime, end: datetime) -> float | None:
    """Return how many frames a device saw from `start` to `end`, by its own word; None where it cannot be told.

    Between two reports frames are taken to come evenly. Beyond the last report nothing is assumed: a device that was
    never heard of again counts until then. Totals that fall back (a device that lost its spool) tell nothing.
    """
    ordered = sorted(told, key=lambda each: each.at)
    frames = np.array([each.frames for each in ordered], np.float64)
    if len(ordered) < 2 or end <= start or (np.diff(frames) < 0).any():
        return None
    at = np.array([each.at.timestamp() for each in ordered])
    begin, finish = np.interp([start.timestamp(), end.timestamp()], at, frames)
    return float(finish - begin)


@dataclass(frozen=True, eq=False)
class FrameWeights:
    """`weights` float64 [N] is how many frames each capture stands for; `unseen_share` is the share of all reported
    frames on devices that have no capture among the N: nothing here speaks of them.
    """

    weights: Float64Array
    unseen_share: float


def post_stratify(weights: Float64Array, devices: Sequence[str], frames: Mapping[str, float | None]) -> FrameWeights:
    """Scale the weights [N] of each device's captures so that they add up to the frames it saw.

    A camera whose link was cut has fewer captures here than it drew, and would count for less than it saw (Holt & Smith
    1979 on post-stratification). `frames` of a device that has not told is None, and 0 although it has captures when
    its newest heartbeat is older than they are: then no device is scaled, since told and estimated totals would not
    compare. What such a camera has not sent yet is taken to be like what it has.
    """
    present = set(devices)
    totals = {name: total for name, total in frames.items() if total is not None}
    if any(totals.get(name, 0.0) <= 0 for name in present):
        return FrameWeights(weights, 0.0)
    named = np.asarray(devices)
    scaled = weights.astype(np.float64, copy=True)
    for name in present:
        mine = named == name
        scaled[mine] *= totals[name] / scaled[mine].sum()
    unseen = sum(total for name, total in totals.items() if name not in present)
    return FrameWeights(scaled, unseen / max(sum(totals.values()), 1.0))
