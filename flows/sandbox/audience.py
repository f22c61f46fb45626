"""Simulated people in front of the cameras: they see predictions and say what they think of them, sometimes late.

What a person of some world sees and says is its `Spectator`'s; polling, sending and keeping the journal are the same
for all. The journal, with the truth, is read by the report only.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx
import numpy as np

from flows.sandbox.journal import Sighting, note
from flows.sandbox.simulator import SimulatorConfig, stop_event

log = logging.getLogger(__name__)

_PAGE = 500
_RETRY_S = 2.0

Json = dict[str, Any]
FetchImage = Callable[[], bytes | None]
"""The frame of the prediction looked at, PNG or JPEG; None when the agent no longer has it. Raises httpx.HTTPError."""


class AudienceConfig(SimulatorConfig):
    """Which agents the people use, how they behave, and where their journal goes."""

    agents: dict[str, str]
    """Camera id to the address of its agent's API."""
    journal_dir: Path
    poll_s: float = 0.5
    dismiss_wrong: float = 0.30
    dismiss_right: float = 0.03
    late_fraction: float = 0.15
    """Share of verdicts that come late."""
    late_s: tuple[float, float] = (30.0, 120.0)

    def draw_delay_s(self, rng: np.random.Generator) -> float:
        """Draw how long a person waits before saying something."""
        return float(rng.uniform(*self.late_s) if rng.random() < self.late_fraction else rng.uniform(0.1, 2.0))


class Verdict(NamedTuple):
    """Something to be said about a prediction: the body of its feedback."""

    delay_s: float
    body: Json


class Spectator(Protocol):
    """A person of one world."""

    def look(self, camera_id: str, prediction: Json, fetch: FetchImage) -> tuple[Sighting, Sequence[Verdict]] | None:
        """Return what was really there and what the person says; None for a prediction nobody looks at.

        A function of the seed, the camera and the frame, so a restarted process does the same.
        """


@dataclass(frozen=True, order=True)
class _Plan:
    due_s: float
    camera_id: str = field(compare=False)
    prediction_id: str = field(compare=False)
    body: Json = field(compare=False)


class Audience:
    """The people of all cameras, in one process."""

    def __init__(self, config: AudienceConfig, client: httpx.Client, spectator: Spectator) -> None:
        self._config = config
        self._client = client
        self._spectator = spectator
        self._cursors: dict[str, tuple[str, int]] = dict.fromkeys(config.agents, ("", 0))
        self._due: list[_Plan] = []
        config.journal_dir.mkdir(parents=True, exist_ok=True)
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
            boot = page["boot_id"]
            for prediction in page["predictions"]:
                self._look(camera_id, prediction, now_s)
                self._cursors[camera_id] = (boot, prediction["cursor"])
            cursor = page["next_cursor"]
            self._cursors[camera_id] = (boot, cursor)
            if len(page["predictions"]) < _PAGE:
                return

    def _look(self, camera_id: str, prediction: Json, now_s: float) -> None:
        try:
            seen = self._spectator.look(camera_id, prediction, lambda: self._fetch(camera_id, prediction))
        except (KeyError, ValueError) as exc:  # asking again would not help
            log.warning("%s: nobody understands %s: %r", camera_id, prediction.get("prediction_id"), exc)
            return
        if seen is None:
            return
        sighting, verdicts = seen
        with (self._config.journal_dir / f"{camera_id}.jsonl").open("a") as journal:
            journal.write(note(sighting) + "\n")
        for verdict in verdicts:
            plan = _Plan(now_s + verdict.delay_s, camera_id, prediction["prediction_id"], verdict.body)
            heapq.heappush(self._due, plan)

    def _fetch(self, camera_id: str, prediction: Json) -> bytes | None:
        address = self._config.agents[camera_id]
        answer = self._client.get(f"{address}/v1/predictions/{prediction['prediction_id']}/image")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        answer.raise_for_status()
        return answer.content

    def _send(self, plan: _Plan, now_s: float) -> None:
        url = f"{self._config.agents[plan.camera_id]}/v1/predictions/{plan.prediction_id}/feedback"
        again = _Plan(now_s + _RETRY_S, plan.camera_id, plan.prediction_id, plan.body)
        try:
            answer = self._client.post(url, json=plan.body)
        except httpx.HTTPError:
            # The agent is down: the person tries again a little later, with the same feedback id.
            heapq.heappush(self._due, again)
            return
        self.sent[f"{plan.camera_id}:{answer.status_code}"] += 1
        if answer.status_code >= 500:
            heapq.heappush(self._due, again)


def run_audience(config: AudienceConfig, spectator: Spectator) -> None:
    """Watch and speak until stopped. Call from the main thread."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopping = stop_event()
    with httpx.Client(timeout=5.0) as client:
        audience = Audience(config, client, spectator)
        while not stopping.wait(config.poll_s):
            audience.turn(time.monotonic())
    log.info("verdicts sent: %s", dict(audience.sent))
