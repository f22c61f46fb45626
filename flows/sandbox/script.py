"""What the demo plays: how long, how much, which kills; and what it notes down on the way."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SENTENCES: Mapping[str, str] = {
    "demo_started": "starting S3, Prefect and Label Studio (seed {seed})",
    "stack_ready": "services are up; importing the first labels, training and releasing the first model",
    "field_open": "cameras, agents, people and annotators are on",
    "window_opened": "the cameras look; captures come in (window {number})",
    "drift": "dusk falls on {camera}",
    "link_down": "{camera} loses its link",
    "link_up": "{camera} has its link again",
    "round_opened": "round {number}: ingest, select, annotate, train, compress, gate, release",
    "round_closed": "round {number} closed: {outcome}",
    "all_updated": "every agent runs {release}",
    "world_ended": "the world ends; agents drain their spools",
    "field_drained": "every spool is empty",
    "killed": "kill -9 {name}",
    "restarted": "{name} was found dead and is started again",
}


@dataclass(frozen=True)
class DemoScript:
    """How long the demo is and how much happens in it."""

    world: str = "fashion"
    """A name in `WORLDS`."""
    seed: int = 0
    seed_labels: int = 200
    rounds: int = 2
    budget: int = 200
    fps: float = 60.0
    round_frame_step: int = 6
    """While a round runs, the cameras take every so-many-th frame: training has the two cores nearly for itself."""
    window_s: float = 40.0
    pool_per_label: int = 4
    kill_pause_s: tuple[float, float] = (6.0, 25.0)
    chaos: tuple[str, ...] = ()
    """Kinds of process to kill at random moments: agent, flow, label-studio, s3."""

    @property
    def min_pool(self) -> int:
        """Captures a round waits for, so that there is something to choose from."""
        return self.pool_per_label * self.budget


@dataclass
class Timeline:
    """What happened when, for the report."""

    path: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, **facts: Any) -> None:
        """Write one event down, at once: the driver may be killed too."""
        with self._lock:
            self.events.append({"at": datetime.now(UTC).isoformat(), "kind": kind, **facts})
            self.path.write_text(json.dumps(self.events, indent=1))
        log.info(SENTENCES.get(kind, kind).format_map(facts))
