"""One bad device: how much of what it crafted is chosen, with and without what stands in its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from curate.selection.base import SelectionPolicy
from label_choosers import Turn, bare, gleaner, predict
from label_race import fit
from label_worlds import CLASSES, Matrix, Rows, World, fashion, plain

HONEST, DEVICES, CRAFTED, LABELLED, BUDGET = 4950, 20, 50, 100, 200
POISONER: Final = "cam-bad"


@dataclass(frozen=True)
class Defence:
    """What stands in the way: a policy, and whether the bad device is new to the fleet."""

    policy: SelectionPolicy
    new: bool = False


def _policy(**changes: Any) -> SelectionPolicy:
    return SelectionPolicy.model_validate(changes)


DEFENCES: Final[Mapping[str, Defence]] = {
    "default, the device is new": Defence(_policy(), new=True),
    "default, the device is known": Defence(_policy()),
    "no quota": Defence(_policy(max_device_share=1)),
    "no random share": Defence(_policy(explore_share=0)),
    "neither": Defence(_policy(max_device_share=1, explore_share=0)),
    "max_device_share 0.2": Defence(_policy(max_device_share=0.2)),
    "max_device_share 0.1": Defence(_policy(max_device_share=0.1)),
    "max_device_share 0.05": Defence(_policy(max_device_share=0.05)),
    "margin alone": Defence(bare("margin")),
    "k-center alone": Defence(bare("k_center")),
    "random": Defence(bare("random")),
}


def outliers(world: World, rng: np.random.Generator) -> Matrix:
    """Nothing like anything, nor like each other."""
    rows = rng.normal(size=(CRAFTED, world.embeddings.shape[1]))
    lengths = np.sqrt((world.embeddings**2).sum(axis=1)).mean()
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True) * lengths, np.float32)


def imitations(world: World, rng: np.random.Generator) -> Matrix:
    """Beside what coverage alone would ask first, by a poisoner who knows the whole pool and the policy."""
    turn = _turn(world, world.start, rng)
    best = gleaner(bare("uherding"), certain=True)(replace(turn, budget=CRAFTED)).teach
    return np.asarray(world.embeddings[best] * rng.uniform(0.8, 1.2, world.embeddings[best].shape), np.float32)


CRAFTS: Final[Mapping[str, Callable[[World, np.random.Generator], Matrix]]] = {
    "outliers": outliers,
    "imitations": imitations,
}


def measure_poison(seeds: int, cache_dir: Path, known: set[tuple[str, str, str, int]]) -> Iterator[dict[str, Any]]:
    """Yield for every craft, seed and policy the share of crafted captures among those that teach and that test."""
    for craft, make in CRAFTS.items():
        for seed in range(seeds):
            missing = [name for name in DEFENCES if ("poison", craft, name, seed) not in known]
            if not missing:
                continue
            turn = poisoned_turn(cache_dir, make, seed)
            for name in missing:
                seen = replace(turn, probation=_sent_by_poisoner(turn.world)) if DEFENCES[name].new else turn
                choice = gleaner(DEFENCES[name].policy, dismissals=True)(seen)
                yield {
                    "set": "poison",
                    "world": craft,
                    "method": name,
                    "seed": seed,
                    "taught": _share(turn.world, choice.teach),
                    "tested": _share(turn.world, choice.test),
                }


def poisoned_turn(cache_dir: Path, make: Callable[[World, np.random.Generator], Matrix], seed: int) -> Turn:
    """Twenty devices of a plain pool, and one that sends 1 % of it: crafted, as uncertain as can be, all dismissed."""
    rng = np.random.default_rng([seed, 2])
    honest = plain(fashion(cache_dir), HONEST, 10, rng)
    devices = tuple(f"cam-{number}" for number in rng.integers(0, DEVICES, HONEST).tolist())
    honest = replace(honest, devices=devices, start=rng.choice(HONEST, LABELLED, replace=False))
    crafted = make(honest, rng)
    count = len(crafted)
    moments = honest.captured_s.max() + 120.0 * np.arange(1, count + 1)
    world = replace(
        honest,
        embeddings=np.concatenate([honest.embeddings, crafted]),
        labels=np.concatenate([honest.labels, np.zeros(count, np.int64)]),
        devices=devices + (POISONER,) * count,
        groups=honest.groups + tuple(f"{POISONER}/{row}" for row in range(count)),
        captured_s=np.concatenate([honest.captured_s, moments]),
        random_probability=np.ones(HONEST + count),
    )
    turn = _turn(world, honest.start, rng)
    turn.probabilities[HONEST:] = 1 / CLASSES
    turn.dismissed[HONEST:] = True
    return turn


def _turn(world: World, taught: Rows, rng: np.random.Generator) -> Turn:
    model = fit(world, taught)
    said = predict(model, world.embeddings)
    nobody = np.zeros(len(world), np.bool_)
    return Turn(world, taught, np.empty(0, np.int64), model, said, nobody, BUDGET, int(rng.integers(2**31)))


def _sent_by_poisoner(world: World) -> NDArray[np.bool_]:
    return np.array([device == POISONER for device in world.devices], np.bool_)


def _share(world: World, rows: Rows) -> float:
    return float(_sent_by_poisoner(world)[rows].mean()) if len(rows) else 0.0
