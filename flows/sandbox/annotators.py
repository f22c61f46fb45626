"""Simulated annotators: they answer Label Studio's queue through its API, in order, with a few mistakes and skips.

What a person of some world answers is its `Annotator`'s; the queue is the same for all. An answer is a function of the
seed and the sample, so a restarted process answers the same. A task is looked at again before it is answered whenever
an earlier answer to it got lost on the way.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
from pydantic import Field

from flows.sandbox.simulator import SimulatorConfig, stop_event
from flows.sandbox.stack_config import PROJECT_TITLE

log = logging.getLogger(__name__)

Regions = list[dict[str, Any]]
"""Label Studio's `result`."""
ViewImage = Callable[[], bytes]
"""The task's picture as the labeling page shows it. Raises httpx.HTTPError."""


class AnnotatorsConfig(SimulatorConfig):
    """Where they work, how well and how fast."""

    seed: int = 0
    url: str
    token: str = Field(repr=False)
    class_names: tuple[str, ...] = Field(min_length=1)
    project_title: str = PROJECT_TITLE
    skip_rate: float = Field(default=0.01, ge=0, le=1)
    poll_s: float = Field(default=1.0, gt=0)
    """Pause while the queue is empty or the server is away."""
    answer_s: float = Field(default=0.0, ge=0)
    """Pause after each answer."""
    people: int = 4
    page_size: int = Field(default=50, ge=1)
    timeout_s: float = Field(default=30.0, gt=0)
    stop_file: Path | None = None


class Annotator(Protocol):
    """A person of one world, asked from several threads."""

    def answer(self, data: Mapping[str, Any], view: ViewImage) -> Regions | None:
        """Return what the person marks for a task's data, None for a skip.

        Raises KeyError or ValueError for a task that does not come from this world.
        """


def draw_for(seed: int, sample_id: str) -> np.random.Generator:
    """Return the chance that goes with one sample: the same in every process."""
    digest = hashlib.sha256(f"{seed}/{sample_id}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


class Annotators:
    """The people in front of Label Studio; each takes the next task of the queue."""

    def __init__(self, config: AnnotatorsConfig, client: httpx.Client, person: Annotator) -> None:
        self._config = config
        self._client = client
        self._person = person
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
            regions = self._person.answer(task["data"], lambda: self._view(task_id))
        except (KeyError, ValueError) as exc:
            log.warning("task %d is not about this world: %r", task_id, exc)
            self._settled.add(task_id)
            return False
        if task_id in self._in_doubt and self._is_answered(task_id):
            self._in_doubt.discard(task_id)
            return False
        self._in_doubt.add(task_id)
        answer = self._client.post(f"/api/tasks/{task_id}/annotations/", json=_annotation(regions))
        if answer.status_code == httpx.codes.NOT_FOUND:  # a duplicate that was deleted meanwhile
            self._in_doubt.discard(task_id)
            return False
        answer.raise_for_status()
        self._in_doubt.discard(task_id)
        with self._counting:
            self.given["skipped" if regions is None else "answered"] += 1
        return True

    def _view(self, task_id: int) -> bytes:
        """Fetch the picture from where Label Studio leads a browser."""
        try:
            address = self._get(f"/api/tasks/{task_id}/")["data"]["image"]
        except (KeyError, ValueError) as exc:  # half an answer of a dying server says nothing about the task
            raise httpx.DecodingError(f"task {task_id}: {exc!r}") from exc
        picture = self._client.get(address)
        picture.raise_for_status()
        return picture.content

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


def _annotation(regions: Regions | None) -> dict[str, Any]:
    return {"result": regions or [], "was_cancelled": regions is None, "lead_time": 1.0}


def _is_zero(column: str) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": "equal", "type": "Number", "value": 0}


def run_annotators(config: AnnotatorsConfig, stopping: threading.Event, person: Annotator) -> Counter[str]:
    """Answer whatever is asked until `stopping` is set or the stop file appears; return what was given."""
    headers = {"Authorization": f"Token {config.token}"}
    with httpx.Client(
        base_url=config.url.rstrip("/"), headers=headers, timeout=config.timeout_s, follow_redirects=True
    ) as client:
        annotators = Annotators(config, client, person)
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


def annotate_until_stopped(config: AnnotatorsConfig, person: Annotator) -> None:
    """Annotate until stopped. Call from the main thread."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    given = run_annotators(config, stop_event(), person)
    log.info("answers given: %s", dict(given))
