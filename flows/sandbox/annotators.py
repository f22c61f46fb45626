"""Simulated annotators: they answer Label Studio's queue through its API, in order, with a few mistakes and skips.

What they answer is a function of the seed and the sample, so a restarted process answers the same. A task is looked at
again before it is answered whenever an earlier answer to it got lost on the way.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from pydantic import Field

from curate.annotation.formats import FORMATS
from flows.sandbox.simulator import SimulatorConfig, load_simulator_config, stop_event
from flows.sandbox.stack_config import PROJECT_TITLE
from flows.sandbox.world_schedule import Schedule, WorldConfig

log = logging.getLogger(__name__)

_FORMAT = FORMATS["classification"]

TruthOf = Callable[[Mapping[str, Any]], int]
"""A task's data to the true class index."""


class AnnotatorsConfig(SimulatorConfig):
    """Where they work and how well."""

    world: WorldConfig
    url: str
    token: str = Field(repr=False)
    class_names: tuple[str, ...] = Field(min_length=2)
    project_title: str = PROJECT_TITLE
    error_rate: float = Field(default=0.02, ge=0, le=1)
    skip_rate: float = Field(default=0.01, ge=0, le=1)
    poll_s: float = Field(default=1.0, gt=0)
    """Pause while the queue is empty or the server is away."""
    answer_s: float = Field(default=0.0, ge=0)
    """Pause after each answer."""
    people: int = 4
    page_size: int = Field(default=50, ge=1)
    timeout_s: float = Field(default=30.0, gt=0)
    stop_file: Path | None = None


def decide_answer(config: AnnotatorsConfig, sample_id: str, truth: int) -> str | None:
    """Return the class an annotator chooses for this sample, None for a skip."""
    digest = hashlib.sha256(f"{config.world.seed}/{sample_id}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
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


class Annotators:
    """The people in front of Label Studio; each takes the next task of the queue."""

    def __init__(self, config: AnnotatorsConfig, client: httpx.Client, truth_of: TruthOf) -> None:
        self._config = config
        self._client = client
        self._truth_of = truth_of
        self._project_id: int | None = None
        self._in_doubt: set[int] = set()
        self._settled: set[int] = set()
        """Answered ones that Label Studio did not count, and those that nobody here can answer."""
        self.given: Counter[str] = Counter()
        self._counting = threading.Lock()

    def turn(self, stopping: threading.Event) -> int:
        """Answer the head of the queue and return how many answers were given.

        Raises httpx.HTTPError when the server is away: the next turn reads the queue again.
        """
        if self._project_id is None:
            self._project_id = self._find_project()
        queue = self._queue() if self._project_id is not None else ()
        with ThreadPoolExecutor(self._config.people) as hands:
            return sum(hands.map(lambda task: self._take(task, stopping), queue))

    def _take(self, task: Mapping[str, Any], stopping: threading.Event) -> bool:
        if stopping.is_set():
            return False
        answered = self._answer(task)
        if self._config.answer_s:
            stopping.wait(self._config.answer_s)
        return answered

    def _find_project(self) -> int | None:
        title = self._config.project_title
        projects = self._get("/api/projects", title=title, include="id,title", page_size=100)["results"]
        return min((project["id"] for project in projects if project["title"] == title), default=None)

    def _queue(self) -> Sequence[dict[str, Any]]:
        """The next unanswered tasks, oldest first.

        Label Studio loses count of answers when a project is deleted meanwhile, so they are looked at themselves.
        """
        empty = [_is_zero("total_annotations"), _is_zero("cancelled_annotations")]
        query = {"filters": {"conjunction": "and", "items": empty}, "ordering": ["tasks:id"]}
        size = self._config.page_size + len(self._settled)
        wanted = {"project": self._project_id, "fields": "all", "include": "id,data,annotations"}
        tasks: list[dict[str, Any]] = self._get("/api/tasks", **wanted, page_size=size, query=json.dumps(query))[
            "tasks"
        ]
        self._settled |= {task["id"] for task in tasks if task["annotations"]}
        return [task for task in tasks if task["id"] not in self._settled]

    def _answer(self, task: Mapping[str, Any]) -> bool:
        task_id = int(task["id"])
        try:
            choice = decide_answer(self._config, task["data"]["sample_id"], self._truth_of(task["data"]))
        except (KeyError, ValueError) as exc:
            log.warning("task %d is not about this world: %r", task_id, exc)
            self._settled.add(task_id)
            return False
        if task_id in self._in_doubt and self._is_answered(task_id):
            self._in_doubt.discard(task_id)
            return False
        self._in_doubt.add(task_id)
        answer = self._client.post(f"/api/tasks/{task_id}/annotations/", json=_annotation(choice))
        if answer.status_code == httpx.codes.NOT_FOUND:  # a duplicate that was deleted meanwhile
            self._in_doubt.discard(task_id)
            return False
        answer.raise_for_status()
        self._in_doubt.discard(task_id)
        with self._counting:
            self.given["skipped" if choice is None else "answered"] += 1
        return True

    def _is_answered(self, task_id: int) -> bool:
        answer = self._client.get(f"/api/tasks/{task_id}/")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return True
        answer.raise_for_status()
        return bool(answer.json()["annotations"])

    def _get(self, path: str, **params: Any) -> dict[str, Any]:
        answer = self._client.get(path, params=params)
        if answer.status_code == httpx.codes.NOT_FOUND:
            self._project_id = None
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        return body


def _annotation(choice: str | None) -> dict[str, Any]:
    regions = _FORMAT.encode({"class": choice}) if choice is not None else []
    return {"result": regions, "was_cancelled": choice is None, "lead_time": 1.0}


def _is_zero(column: str) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": "equal", "type": "Number", "value": 0}


def run_annotators(config: AnnotatorsConfig, stopping: threading.Event, truth_of: TruthOf) -> Counter[str]:
    """Answer whatever is asked until `stopping` is set or the stop file appears; return what was given."""
    headers = {"Authorization": f"Token {config.token}"}
    with httpx.Client(
        base_url=config.url.rstrip("/"), headers=headers, timeout=config.timeout_s, follow_redirects=True
    ) as client:
        annotators = Annotators(config, client, truth_of)
        while not stopping.is_set() and not (config.stop_file is not None and config.stop_file.exists()):
            started_s = time.monotonic()
            try:
                count = annotators.turn(stopping)
            except (httpx.HTTPError, ValueError, KeyError) as exc:
                log.info("Label Studio is away: %r", exc)
                count = 0
            if count:
                log.info("%d answers in %.1f s", count, time.monotonic() - started_s)
            else:
                stopping.wait(config.poll_s)
    return annotators.given


def main(argv: list[str]) -> int:
    """Annotate until stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = load_simulator_config(argv, AnnotatorsConfig)
    given = run_annotators(config, stop_event(), WorldTruth(config.world))
    log.info("answers given: %s", dict(given))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
