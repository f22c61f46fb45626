"""How often the drift watch cries wolf, and how soon it sees a change, on simulated cameras.

    python benchmarks/drift.py [--runs 200] [--write benchmarks/drift.md]

A camera shows scenes of some minutes, drawn from sights whose mix changes with the hour; a capture is a scene with
noise. The watch sees what it would in the field: one capture in each half hour, a week as reference, then a month.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from curate.selection.drift.watch import DriftPolicy, Sights, watch_camera
from edge_agent.bench.command import replace_table

POLICY = DriftPolicy()
START = datetime(2026, 1, 5, tzinfo=UTC)
KINDS, WIDTH = 10, 32


@dataclass(frozen=True)
class Street:
    """What one camera sees. `scene_s` is how long a scene lasts on average, `daily` how far the mix of sights swings
    with the hour, `weather` how far each whole day differs from others; after the change embeddings move by `shift` (in
    units of their noise), the model's doubt by `doubt` (log-odds), and `newcomers` of the scenes show a new sight.
    """

    name: str
    scene_s: float = 300.0
    daily: float = 1.0
    weather: float = 0.0
    shift: float = 0.0
    doubt: float = 0.0
    newcomers: float = 0.0
    days: float = 30.0


STILL = (
    Street("independent captures", scene_s=0.0, daily=0.0),
    Street("scenes of 5 minutes, mix follows the hour"),
    Street("scenes of 15 minutes, mix follows the hour", scene_s=900.0),
    Street("scenes of an hour (beyond what is promised)", scene_s=3600.0),
    Street("every day has its own weather (beyond what is promised)", weather=0.3),
)
CHANGED = (
    Street("embeddings move by 1 noise width", shift=1.0, days=7),
    Street("embeddings move by 2 noise widths", shift=2.0, days=7),
    Street("only the model's doubt rises, by 1 in log-odds", doubt=1.0, days=7),
    Street("a quarter of the scenes is new", newcomers=0.25, days=7),
    Street("dusk: moves by 2, doubt by 1", shift=2.0, doubt=1.0, days=7),
)


def draw_sights(street: Street, policy: DriftPolicy, rng: np.random.Generator) -> tuple[Sights, int]:
    """Draw what one camera sent, one capture in each block of time, and how many of them are the reference."""
    count = int((policy.reference_days + street.days) * 86400 / policy.spacing_s)
    reference = int(policy.reference_days * 86400 / policy.spacing_s)
    hours = np.arange(count) * policy.spacing_s / 3600
    stays = rng.random(count) < (np.exp(-policy.spacing_s / street.scene_s) if street.scene_s else 0.0)
    scene = np.cumsum(~stays) - 1 + int(stays[0])
    first = np.unique(scene, return_index=True)[1]
    changed = np.arange(count) >= reference
    kinds, places = _sights(street, hours[first], rng)
    anchors = rng.normal(size=(KINDS + 1, WIDTH)) * 3
    kind = np.where(changed[first] & (rng.random(len(first)) < street.newcomers), KINDS, kinds)[scene]
    away = rng.normal(size=WIDTH)
    vectors = anchors[kind] + places[scene] + rng.normal(size=(count, WIDTH))
    vectors += np.outer(changed, street.shift * np.sqrt(WIDTH) * away / np.linalg.norm(away))
    if street.weather:
        vectors += rng.normal(size=(int(hours[-1] // 24) + 1, WIDTH))[(hours // 24).astype(int)] * street.weather
    hardness = rng.normal(size=KINDS + 1)[kind] + rng.normal(size=len(first))[scene] + rng.normal(size=count)
    doubts = expit(hardness - 1 + street.doubt * changed)
    at = tuple(START + timedelta(hours=float(hour)) for hour in hours)
    return Sights(vectors.astype(np.float32), doubts, at), reference


def _sights(
    street: Street, hours: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw each scene's kind and its own place around it."""
    phase = 2 * np.pi * (hours[:, None] / 24 + np.arange(KINDS) / KINDS)
    chance = np.exp(street.daily * np.sin(phase))
    chance /= chance.sum(axis=1, keepdims=True)
    kinds = (rng.random(len(hours))[:, None] > np.cumsum(chance, axis=1)).sum(axis=1)
    return np.minimum(kinds, KINDS - 1), rng.normal(size=(len(hours), WIDTH))


def first_alarm(street: Street, run: int, policy: DriftPolicy = POLICY) -> float | None:
    """Return hours from the end of the reference to the alarm, None without one."""
    rng = np.random.default_rng([run, 7])
    sights, reference = draw_sights(street, policy, rng)
    found = watch_camera(sights, reference, policy, seed=run)
    if found.since is None:
        return None
    return (found.since - sights.at[reference]).total_seconds() / 3600 + policy.spacing_s / 3600


def measure_still(street: Street, runs: int) -> str:
    """False alarms: the share of camera-months with one."""
    alarms = sum(first_alarm(street, run) is not None for run in range(runs))
    return f"| {street.name} | {alarms / runs:.3f} | {alarms} of {runs} |"


def measure_changed(street: Street, runs: int) -> str:
    """How long a change takes to be seen, in hours, and whether it is within a week."""
    times = [first_alarm(street, run) for run in range(runs)]
    seen = np.array([np.inf if each is None else each for each in times])
    middle, late = np.quantile(seen, [0.5, 0.9], method="higher")
    return f"| {street.name} | {middle:.1f} h | {late:.1f} h | {np.isfinite(seen).mean():.2f} |"


def main() -> None:
    """Measure, print, and write the tables where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    lines = ["| nothing changes | false alarms a camera-month | runs |", "|---|---|---|"]
    for street in STILL:
        lines.append(measure_still(street, options.runs))
        print(lines[-1], flush=True)
    lines += ["", "| a change | seen after, median | 9 of 10 | seen within a week |", "|---|---|---|---|"]
    for street in CHANGED:
        lines.append(measure_changed(replace(street), options.runs))
        print(lines[-1], flush=True)
    if options.write:
        options.write.write_text(replace_table(options.write.read_text(), "\n".join([*lines, ""])))


if __name__ == "__main__":
    main()
