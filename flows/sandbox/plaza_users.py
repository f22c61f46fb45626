"""People of the plaza: they look at a sample of the frames, tap boxes that hold nobody and report people missed.

About 30 % of the wrong boxes they see are tapped and 3 % of the right ones; 10 % of the people missed are reported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from curate.catalog.boxes import LabelledBox
from flows.sandbox.audience import AudienceConfig, FetchImage, Verdict, run_audience
from flows.sandbox.journal import Sighting
from flows.sandbox.plaza_people import PERSON, Comparison, compare, read_predicted, true_boxes
from flows.sandbox.plaza_scene import ClipReader, decode
from flows.sandbox.plaza_truth import TruthBox, load_truth
from flows.sandbox.simulator import load_simulator_config

Json = dict[str, Any]


class PlazaUsersConfig(AudienceConfig):
    """People who know a person when they see one."""

    clip: Path
    seed: int = 0
    look_share: float = Field(default=0.2, gt=0, le=1)
    """Share of the frames that anybody looks at."""
    report_missed: float = Field(default=0.10, ge=0, le=1)


class PlazaSpectator:
    """Compares what is shown with what is there."""

    def __init__(self, config: PlazaUsersConfig, reader: ClipReader, truth: Mapping[int, Sequence[TruthBox]]) -> None:
        self._config = config
        self._reader = reader
        self._truth = truth
        self._numbers = {camera: number for number, camera in enumerate(sorted(config.agents))}

    def look(self, camera_id: str, prediction: Json, fetch: FetchImage) -> tuple[Sighting, list[Verdict]] | None:
        """Return the truth and what the person has to say; None for most frames, and for one that is gone."""
        number = self._numbers[camera_id]
        rng = np.random.default_rng([self._config.seed, 77, number, prediction["frame_index"]])
        if rng.random() >= self._config.look_share:
            return None
        encoded = fetch()
        if encoded is None:
            return None
        scene = self._reader.recognise(decode(encoded))
        truth = true_boxes(self._truth[scene.frame])
        boxes = prediction["boxes"]
        found = compare(read_predicted(boxes), [box["shown"] for box in boxes], truth)
        sighting = Sighting(
            camera_id=camera_id,
            frame_index=prediction["frame_index"],
            release_id=prediction["release_id"],
            at=datetime.fromisoformat(prediction["captured_at"]),
            answers=tuple((box["score"], right) for box, right in zip(boxes, found.right, strict=True)),
            expected=len(truth),
            mistakes=sum(box["shown"] and not right for box, right in zip(boxes, found.right, strict=True)),
            scene=str(scene),
        )
        return sighting, list(self._say(camera_id, prediction, found, truth, rng))

    def _say(
        self,
        camera_id: str,
        prediction: Json,
        found: Comparison,
        truth: Sequence[LabelledBox],
        rng: np.random.Generator,
    ) -> Iterator[Verdict]:
        config = self._config
        about = {"user": f"person-{self._numbers[camera_id]}"}
        name = f"fb-{camera_id}-{prediction['prediction_id']}"
        for box, right in zip(prediction["boxes"], found.right, strict=True):
            if box["shown"] and rng.random() < (config.dismiss_right if right else config.dismiss_wrong):
                reason = "not_interesting" if right else "not_there"
                tap = {"verdict": "dismissed", "reason": reason, "box_id": box["box_id"]}
                yield Verdict(config.draw_delay_s(rng), about | tap | {"feedback_id": f"{name}-{box['box_id']}"})
        for place in found.missed:
            if rng.random() < config.report_missed:
                corners = dict(zip(("x_min", "y_min", "x_max", "y_max"), truth[place].corners, strict=True))
                missed = {"verdict": "corrected", "label": PERSON, "box": corners}
                yield Verdict(config.draw_delay_s(rng), about | missed | {"feedback_id": f"{name}-m{place}"})


def main(argv: list[str]) -> int:
    """Watch and speak until stopped."""
    config = load_simulator_config(argv, PlazaUsersConfig)
    run_audience(config, PlazaSpectator(config, ClipReader.of_field(config.clip), load_truth()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
