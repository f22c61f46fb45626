"""People in front of the garments: they see every prediction and dismiss some, imperfectly and sometimes late.

About 30 % of the wrong predictions and 3 % of the right ones are dismissed.
"""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import numpy as np

from flows.sandbox.audience import AudienceConfig, FetchImage, Verdict, run_audience
from flows.sandbox.journal import Sighting
from flows.sandbox.simulator import load_simulator_config
from flows.sandbox.world_schedule import Schedule, WorldConfig


class FashionUsersConfig(AudienceConfig):
    """People who know garments."""

    world: WorldConfig
    class_names: tuple[str, ...]
    correct_fraction: float = 0.2
    """Share of dismissals of a wrong prediction that name the right class."""


class FashionSpectator:
    """Sees at a glance what a garment is."""

    def __init__(self, config: FashionUsersConfig) -> None:
        self._config = config
        self._schedules = {camera: Schedule(config.world, camera) for camera in config.agents}

    def look(
        self,
        camera_id: str,
        prediction: dict[str, Any],
        fetch: FetchImage,  # noqa: ARG002 (knows without looking)
    ) -> tuple[Sighting, list[Verdict]]:
        """Return the truth and, now and then, a dismissal."""
        label = self._schedules[camera_id].burst_at(prediction["frame_index"]).label
        right = prediction["class_index"] == label
        sighting = Sighting(
            camera_id=camera_id,
            frame_index=prediction["frame_index"],
            release_id=prediction["release_id"],
            at=datetime.fromisoformat(prediction["captured_at"]),
            answers=((1.0, right),),
            mistakes=int(not right),
        )
        verdict = plan_dismissal(self._config, camera_id, prediction, label)
        return sighting, [verdict] if verdict is not None else []


def plan_dismissal(
    config: FashionUsersConfig, camera_id: str, prediction: dict[str, Any], label: int
) -> Verdict | None:
    """Decide whether the person dismisses this prediction, when, and in which words."""
    camera_number = config.world.camera_number(camera_id)
    rng = np.random.default_rng([config.world.seed, 77, camera_number, prediction["frame_index"]])
    wrong = prediction["class_index"] != label
    if rng.random() >= (config.dismiss_wrong if wrong else config.dismiss_right):
        return None
    delay_s = config.draw_delay_s(rng)
    body: dict[str, Any] = {
        "verdict": "dismissed",
        "reason": "wrong_class" if wrong else "not_interesting",
        "user": f"person-{camera_number}",
        "feedback_id": f"fb-{camera_id}-{prediction['prediction_id']}",
    }
    if wrong and rng.random() < config.correct_fraction:
        body |= {"verdict": "corrected", "label": config.class_names[label]}
    return Verdict(delay_s, body)


def main(argv: list[str]) -> int:
    """Watch and dismiss until stopped."""
    config = load_simulator_config(argv, FashionUsersConfig)
    run_audience(config, FashionSpectator(config))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
