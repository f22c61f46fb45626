"""Simulated people in front of the cameras: they see every prediction and dismiss some, imperfectly and sometimes late.

About 30 % of the wrong predictions and 3 % of the right ones are dismissed. The choice is a function of the seed, the
camera and the frame, so a restarted process makes the same one. What they saw, with the truth, goes to a journal that
only the report reads.
"""

from __future__ import annotations

import heapq
import json
import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import httpx
import numpy as np

from flows.sandbox.simulator import SimulatorConfig, load_simulator_config, stop_event
from flows.sandbox.world_schedule import Schedule, WorldConfig

log = logging.getLogger(__name__)

_PAGE = 500


class UsersConfig(SimulatorConfig):
    """Which agents the people use, how they behave, and where their journal goes."""

    world: WorldConfig
    agents: dict[str, str]
    """Camera id to the address of its agent's API."""
    class_names: tuple[str, ...]
    journal_dir: Path
    poll_s: float = 0.5
    dismiss_wrong: float = 0.30
    dismiss_right: float = 0.03
    late_fraction: float = 0.15
    """Share of dismissals that come late."""
    late_s: tuple[float, float] = (30.0, 120.0)
    correct_fraction: float = 0.2
    """Share of dismissals of a wrong prediction that name the right class."""


@dataclass(frozen=True, order=True)
class _Plan:
    due_s: float
    camera_id: str = field(compare=False)
    prediction_id: str = field(compare=False)
    body: dict[str, Any] = field(compare=False)


def plan_feedback(
    config: UsersConfig, camera_id: str, prediction: dict[str, Any], label: int, now_s: float
) -> _Plan | None:
    """Decide whether the person dismisses this prediction, when, and in which words."""
    camera_number = config.world.camera_number(camera_id)
    rng = np.random.default_rng([config.world.seed, 77, camera_number, prediction["frame_index"]])
    wrong = prediction["class_index"] != label
    if rng.random() >= (config.dismiss_wrong if wrong else config.dismiss_right):
        return None
    delay_s = rng.uniform(*config.late_s) if rng.random() < config.late_fraction else rng.uniform(0.1, 2.0)
    body: dict[str, Any] = {
        "verdict": "dismissed",
        "reason": "wrong_class" if wrong else "not_interesting",
        "user": f"person-{camera_number}",
        "feedback_id": f"fb-{camera_id}-{prediction['prediction_id']}",
    }
    if wrong and rng.random() < config.correct_fraction:
        body |= {"verdict": "corrected", "label": config.class_names[label]}
    return _Plan(now_s + delay_s, camera_id, prediction["prediction_id"], body)


class Audience:
    """The people of all cameras, in one process."""

    def __init__(self, config: UsersConfig, client: httpx.Client) -> None:
        self._config = config
        self._client = client
        self._cursors: dict[str, tuple[str, int]] = dict.fromkeys(config.agents, ("", 0))
        self._due: list[_Plan] = []
        self._schedules = {camera: Schedule(config.world, camera) for camera in config.agents}
        self._journals = {camera: _open_journal(config.journal_dir, camera) for camera in config.agents}
        self.sent: Counter[str] = Counter()

    def turn(self, now_s: float) -> None:
        """Look at what is new on every camera, then send the verdicts that are due."""
        for camera_id, address in self._config.agents.items():
            try:
                self._watch(camera_id, address, now_s)
            except (httpx.HTTPError, KeyError, ValueError) as exc:
                log.info("cannot watch %s: %s", camera_id, exc)
        while self._due and self._due[0].due_s <= now_s:
            self._send(heapq.heappop(self._due), now_s)

    def _watch(self, camera_id: str, address: str, now_s: float) -> None:
        boot, cursor = self._cursors[camera_id]
        while True:
            # An agent that was restarted sees by the boot that it must start over.
            asked: dict[str, str | int] = {"after": cursor, "limit": _PAGE, "boot": boot}
            answer = self._client.get(f"{address}/v1/predictions", params=asked)
            answer.raise_for_status()
            page = answer.json()
            for prediction in page["predictions"]:
                label = self._schedules[camera_id].burst_at(prediction["frame_index"]).label
                self._note(camera_id, prediction, label)
                if plan := plan_feedback(self._config, camera_id, prediction, label, now_s):
                    heapq.heappush(self._due, plan)
            boot, cursor = page["boot_id"], page["next_cursor"]
            self._cursors[camera_id] = (boot, cursor)
            if len(page["predictions"]) < _PAGE:
                return

    def _note(self, camera_id: str, prediction: dict[str, Any], label: int) -> None:
        line = {
            "frame": prediction["frame_index"],
            "release": prediction["release_id"],
            "predicted": prediction["class_index"],
            "truth": label,
            "at": prediction["captured_at"],
        }
        self._journals[camera_id].write(json.dumps(line) + "\n")
        self._journals[camera_id].flush()

    def _send(self, plan: _Plan, now_s: float) -> None:
        url = f"{self._config.agents[plan.camera_id]}/v1/predictions/{plan.prediction_id}/feedback"
        try:
            answer = self._client.post(url, json=plan.body)
        except httpx.HTTPError:
            # The agent is down: the person tries again a little later, with the same feedback id.
            heapq.heappush(self._due, _Plan(now_s + 2.0, plan.camera_id, plan.prediction_id, plan.body))
            return
        self.sent[f"{plan.camera_id}:{answer.status_code}"] += 1
        if answer.status_code >= 500:
            heapq.heappush(self._due, _Plan(now_s + 2.0, plan.camera_id, plan.prediction_id, plan.body))


def _open_journal(folder: Path, camera_id: str) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f"{camera_id}.jsonl").open("a")


def main(argv: list[str]) -> int:
    """Watch and dismiss until stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = load_simulator_config(argv, UsersConfig)
    stopping = stop_event()
    with httpx.Client(timeout=5.0) as client:
        audience = Audience(config, client)
        while not stopping.wait(config.poll_s):
            audience.turn(time.monotonic())
    log.info("verdicts sent: %s", dict(audience.sent))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
