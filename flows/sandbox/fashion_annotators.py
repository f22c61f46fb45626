"""Annotators who know garments: the world's truth, with about 2 % errors."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field

from curate.annotation.formats import FORMATS
from flows.sandbox.annotators import AnnotatorsConfig, Regions, ViewImage, annotate_until_stopped, draw_for
from flows.sandbox.simulator import load_simulator_config
from flows.sandbox.world_schedule import Schedule, WorldConfig

_FORMAT = FORMATS["classification"]

TruthOf = Callable[[Mapping[str, Any]], int]
"""A task's data to the true class index."""


class FashionAnnotatorsConfig(AnnotatorsConfig):
    """How often they are wrong."""

    error_rate: float = Field(default=0.02, ge=0, le=1)


class FashionAnnotator:
    """Tells garments apart."""

    def __init__(self, config: FashionAnnotatorsConfig, truth_of: TruthOf) -> None:
        self._config = config
        self._truth_of = truth_of

    def answer(self, data: Mapping[str, Any], view: ViewImage) -> Regions | None:  # noqa: ARG002 (knows without looking)
        """Return the region that chooses a class, None for a skip."""
        choice = decide_answer(self._config, data["sample_id"], self._truth_of(data))
        return None if choice is None else _FORMAT.encode({"class": choice})


def decide_answer(config: FashionAnnotatorsConfig, sample_id: str, truth: int) -> str | None:
    """Return the class an annotator chooses for this sample, None for a skip."""
    rng = draw_for(config.seed, sample_id)
    if rng.random() < config.skip_rate:
        return None
    if rng.random() < config.error_rate:
        # Anything but the truth, equally likely.
        truth = (truth + int(rng.integers(1, len(config.class_names)))) % len(config.class_names)
    return config.class_names[truth]


class WorldTruth:
    """The true class of the frame that a task asks about, by its `camera` and `frame`."""

    def __init__(self, world: WorldConfig) -> None:
        self._schedules = {camera.camera_id: Schedule(world, camera.camera_id) for camera in world.cameras}
        self._looking = threading.Lock()

    def __call__(self, data: Mapping[str, Any]) -> int:
        """Look it up. Raises KeyError or ValueError for a task that does not come from this world."""
        with self._looking:  # a schedule grows as it is read
            return self._schedules[data["camera"]].burst_at(int(data["frame"])).label


class FashionWorkConfig(FashionAnnotatorsConfig):
    """What the process reads."""

    world: WorldConfig


def main(argv: list[str]) -> int:
    """Annotate until stopped."""
    config = load_simulator_config(argv, FashionWorkConfig)
    annotate_until_stopped(config, FashionAnnotator(config, WorldTruth(config.world)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
