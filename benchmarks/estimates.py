"""How honest the field estimates are: coverage and efficiency in simulated fleets.

    python benchmarks/estimates.py [--runs 1000] [--write benchmarks/estimates.md]

Every run draws a fleet of cameras whose frames come in bursts, the product's own audit draw, and active picks that look
for mistakes; the truth is the share of all frames of the period that the model got right.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from curate.metrics.correctness import Correctness
from curate.selection.audit import draw_audit
from curate.selection.estimate.assisted import AuditedArm, best_trust, estimate_assisted
from curate.selection.estimate.field import FieldEstimate, estimate_weighted
from curate.selection.estimate.slices import estimate_slices
from curate.selection.estimate.surrogate import Answers, describe_captures, predict_correctness
from curate.selection.estimate.weighting import post_stratify
from edge_agent.bench.command import replace_table

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """One simulated fleet. `skill` is the mean log-odds of a right answer, `alike` in [0, 1] how far the frames of a
    burst are right or wrong together, `fall` what half of the cameras lose in log-odds halfway through, `cut` the share
    of the period that one camera's uploads are missing, `candour` how much confidence says about being right.
    """

    name: str
    skill: float = 1.0
    alike: float = 0.5
    fall: float = 0.0
    cut: float = 0.0
    candour: float = 1.0
    cameras: int = 4
    frames: int = 1500
    random_probability: float = 0.06
    audits: int = 60
    active: int = 140


@dataclass(frozen=True, eq=False)
class Period:
    """Every frame of a period: which camera and burst, when in [0, 1], how confident, whether right, whether a person
    objected.
    """

    camera: NDArray[np.int64]
    burst: NDArray[np.int64]
    moment: Numbers
    confidence: Numbers
    correct: Numbers
    objected: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sampled:
    """What a round knows of a period: its random-arm captures, the audits among them, and the active answers."""

    rows: NDArray[np.int64]
    audited: NDArray[np.int64]
    drawn: Numbers
    surrogate: Numbers
    weights: Numbers


WORLDS = (
    *(World(f"accuracy {name}, bursts {alike:.0%} alike", skill=skill, alike=alike)
      for name, skill in (("about 0.6", 0.5), ("about 0.75", 1.4), ("about 0.9", 3.2)) for alike in (0.0, 0.5, 1.0)),
    World("half the cameras fall halfway", fall=2.0),
    World("the same, bursts wholly alike", fall=2.0, alike=1.0),
    World("the same, confidence says nothing", fall=2.0, candour=0.0),
    World("confidence says much", candour=3.0),
    World("240 audits", audits=240, active=560, frames=6000),
    World("30 audits", audits=30, active=70),
)  # fmt: skip
CUT = (
    World("one link cut for 70 % of the period", cut=0.7),
    World("the same, half the cameras fall halfway", cut=0.7, fall=2.0),
)
SLICED = (
    World("60 audits on 4 cameras", fall=2.0),
    World("60 audits on 4 cameras, bursts wholly alike", fall=2.0, alike=1.0),
    World("60 audits on 12 cameras", fall=2.0, cameras=12, frames=500),
    World("accuracy about 0.9, 60 audits on 4 cameras", skill=3.2),
)


def draw_period(world: World, rng: np.random.Generator) -> Period:
    """Draw every frame. Bursts last 10 frames on average; half of what makes a frame hard is shared by its burst."""
    total = world.cameras * world.frames
    camera = np.repeat(np.arange(world.cameras), world.frames)
    moment = np.tile(np.arange(world.frames) / world.frames, world.cameras)
    starts = (rng.random(total) < 0.1) | (moment == 0)
    burst = np.cumsum(starts) - 1
    shared = rng.normal(size=(2, burst[-1] + 1))[:, burst]
    falls = (camera % 2 == 1) & (moment > 0.5)
    own_skill = rng.normal(0, 0.7, world.cameras)[camera]
    odds = world.skill + own_skill + 1.2 * shared[0] + 1.2 * rng.normal(size=total)
    # The model does not know that it has fallen, as models do not.
    confidence = expit(0.7 + world.candour * odds + rng.normal(size=total))
    chance = ndtr(np.sqrt(world.alike) * shared[1] + np.sqrt(1 - world.alike) * rng.normal(size=total))
    correct = (chance < expit(odds - world.fall * falls)).astype(np.float64)
    objected = rng.random(total) < np.where(correct > 0, 0.02, 0.3)
    return Period(camera, burst, moment, confidence, correct, objected)


def sample_period(world: World, period: Period, rng: np.random.Generator, *, reweigh: bool = True) -> Sampled:
    """Draw the random arm, the audits and the active picks, and learn the surrogate, as a round does."""
    there = (period.camera != 0) | (period.moment >= world.cut)
    rows = np.flatnonzero(there & (rng.random(len(there)) < world.random_probability))
    cameras = [f"cam-{camera}" for camera in period.camera[rows].tolist()]
    draws = draw_audit(np.full(len(rows), world.random_probability), cameras, world.audits, rng)
    audited = np.array([draw.row for draw in draws], np.int64)
    drawn = np.array([draw.inclusion_probability for draw in draws]) / world.random_probability
    weights: Numbers = np.full(len(rows), 1 / world.random_probability)
    if reweigh:
        told = {f"cam-{camera}": float(world.frames) for camera in range(world.cameras)}
        weights = post_stratify(weights, cameras, told).weights
    chosen = _choose_actively(world, period, rows, audited, rng)
    names = sorted(set(cameras))
    features = describe_captures(period.confidence[rows], cameras, names, period.objected[rows])
    of_chosen = [f"cam-{camera}" for camera in period.camera[chosen].tolist()]
    answers = Answers(
        describe_captures(period.confidence[chosen], of_chosen, names, period.objected[chosen]), period.correct[chosen]
    )
    bursts = [str(burst) for burst in period.burst[rows].tolist()]
    surrogate = predict_correctness(features, bursts, audited, period.correct[rows[audited]], answers, rng)
    return Sampled(rows, audited, drawn, surrogate, weights)


def _choose_actively(
    world: World, period: Period, rows: NDArray[np.int64], audited: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Half of the picks look for mistakes among uncertain and dismissed uploads, half explore the random arm."""
    free = ~np.isin(period.burst, period.burst[rows[audited]]) & ((period.camera != 0) | (period.moment >= world.cut))
    uploads = np.flatnonzero(free & (period.objected | (period.confidence < np.quantile(period.confidence, 0.05))))
    doubt = period.confidence[uploads] - 0.5 * period.objected[uploads]
    hunted = uploads[np.argsort(doubt)[: world.active // 2]]
    left = np.setdiff1d(rows[free[rows]], hunted)
    return np.concatenate([hunted, rng.permutation(left)[: world.active - len(hunted)]])


def arm_of(period: Period, sampled: Sampled) -> AuditedArm:
    """Return what the estimator is given."""
    bursts = tuple(str(burst) for burst in period.burst[sampled.rows].tolist())
    correct = period.correct[sampled.rows[sampled.audited]]
    return AuditedArm(sampled.weights, bursts, sampled.surrogate, sampled.audited, correct, sampled.drawn)


def plainly(arm: AuditedArm) -> FieldEstimate:
    """Estimate from the audits alone."""
    bursts = [arm.bursts[row] for row in arm.audited.tolist()]
    estimate = estimate_weighted(Correctness(arm.correct), arm.weights[arm.audited] / arm.drawn, bursts)
    if estimate is None:
        raise RuntimeError("every run has audits")
    return estimate


METHODS: dict[str, Callable[[AuditedArm], FieldEstimate]] = {"plain": plainly, "assisted": estimate_assisted}


@dataclass(frozen=True)
class Score:
    """How one method did in one world: coverage, bias, root mean square error and mean width."""

    coverage: float
    bias: float
    rmse: float
    width: float


def score_world(world: World, runs: int, seed: int, *, reweigh: bool = True) -> dict[str, Score]:
    """Run a world many times and hold both methods against its truth."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in METHODS}
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        period = draw_period(world, rng)
        arm, truth = arm_of(period, sample_period(world, period, rng, reweigh=reweigh)), float(period.correct.mean())
        for name, method in METHODS.items():
            estimate = method(arm)
            low, high = estimate.ci95
            found[name].append((estimate.estimate - truth, float(low <= truth <= high), high - low))
    return {name: _score(rows) for name, rows in found.items()}


def _score(rows: Sequence[tuple[float, float, float]]) -> Score:
    error, held, width = np.array(rows).T
    return Score(float(held.mean()), float(error.mean()), float(np.sqrt((error**2).mean())), float(width.mean()))


def score_slices(world: World, runs: int, seed: int) -> tuple[float, float, float]:
    """Estimate every camera by itself: how often the intervals held, the same of those that tell, and how many tell."""
    held, tells = [], []
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        period = draw_period(world, rng)
        sampled = sample_period(world, period, rng)
        arm = arm_of(period, sampled)
        names = [str(camera) for camera in period.camera[sampled.rows].tolist()]
        for each in estimate_slices({"camera": names}, partial(_estimate_part, arm, best_trust(arm))):
            truth = float(period.correct[period.camera == int(each.name)].mean())
            low, high = each.estimate.ci95 if each.estimate else (0.0, 1.0)
            held.append(low <= truth <= high)
            tells.append(each.told)
    told = np.array(tells)
    return float(np.mean(held)), float(np.mean(np.array(held)[told])), float(told.mean())


def _estimate_part(arm: AuditedArm, trust: float, rows: NDArray[np.bool_]) -> FieldEstimate | None:
    part = arm.within(rows)
    return None if part is None else estimate_assisted(part, trust=trust)


def _row(name: str, scores: dict[str, Score]) -> str:
    plain, assisted = scores["plain"], scores["assisted"]
    gain = (plain.rmse / assisted.rmse) ** 2
    return (
        f"| {name} | {plain.coverage:.3f} | {assisted.coverage:.3f} | {plain.bias:+.3f} | {assisted.bias:+.3f} "
        f"| {plain.rmse:.3f} | {assisted.rmse:.3f} | {gain:.2f} | {plain.width:.2f} | {assisted.width:.2f} |"
    )


HEAD = (
    "| world | covered: plain | assisted | bias: plain | assisted | error: plain | assisted | variance ratio "
    "| width: plain | assisted |\n|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure, print, and write the table where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    lines = [HEAD]
    for world in (*WORLDS, *CUT):
        lines.append(_row(world.name, score_world(world, options.runs, options.seed)))
        print(lines[-1], flush=True)
    for world in CUT:
        plain = replace(world, name=f"{world.name}, not re-weighed by reported frames")
        lines.append(_row(plain.name, score_world(world, options.runs, options.seed, reweigh=False)))
        print(lines[-1], flush=True)
    lines += ["", "| one camera by itself | covered | of those that tell | that tell |", "|---|---|---|---|"]
    for world in SLICED:
        held, of_told, told = score_slices(world, max(1, options.runs // 2), options.seed)
        lines.append(f"| {world.name} | {held:.3f} | {of_told:.3f} | {told:.2f} |")
        print(lines[-1], flush=True)
    if options.write:
        options.write.write_text(replace_table(options.write.read_text(), "\n".join([*lines, ""])))


if __name__ == "__main__":
    main()
