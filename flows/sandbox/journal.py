"""What really happened, as the simulated people saw it: predictions with their truth. Only the report reads this."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sighting:
    """One frame's prediction a person saw, held against what the frame really showed."""

    camera_id: str
    frame_index: int
    release_id: str
    at: datetime
    answers: tuple[tuple[float, bool], ...]
    """Score and rightness of each thing the model said: one for a class, one a box for boxes."""
    expected: int = 1
    """How many right answers there were to give."""
    mistakes: int = 0
    """Wrong answers that the person was shown."""
    scene: str | None = None
    """The world's own name of what was seen, where it needs one later."""


@dataclass(frozen=True)
class MetricNames:
    """How `report.json` and the page call a metric. `key` is part of names in the former, `title` is for people."""

    key: str
    title: str

    @property
    def heldout(self) -> str:
        """Name of a round's held-out score: the int8 file that is in the field after it."""
        return f"heldout_{self.key}_int8"

    @property
    def candidate(self) -> str:
        """Name of the candidate's held-out score, which may have been refused."""
        return f"candidate_{self.key}_int8"

    @property
    def control(self) -> str:
        """Name of the random control's held-out score."""
        return f"control_random_{self.key}"

    @property
    def field(self) -> str:
        """Name of the product's own estimate."""
        return f"field_{self.key}"

    @property
    def oracle(self) -> str:
        """Name of the truth that the estimate is held against."""
        return f"oracle_{self.key}"


@dataclass(frozen=True)
class Metric(MetricNames):
    """What "good" means for a kind of prediction: a share in [0, 1], more is better."""

    measure: Callable[[Sequence[Sighting]], float | None]
    """None where the sightings tell nothing."""


def note(sighting: Sighting) -> str:
    """Return the journal's line about a sighting; the camera is the journal's name."""
    line = {
        "frame": sighting.frame_index,
        "release": sighting.release_id,
        "at": sighting.at.isoformat(),
        "answers": [[round(score, 5), right] for score, right in sighting.answers],
        "expected": sighting.expected,
        "mistakes": sighting.mistakes,
        "scene": sighting.scene,
    }
    return json.dumps(line)


def load_journal(folder: Path) -> list[Sighting]:
    """Read every camera's journal; a line cut off by a kill is left out, a frame noted twice counts once."""
    seen: dict[tuple[str, int, str, datetime], Sighting] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            sighting = _parse(path.stem, line)
            if sighting is not None:
                # A camera that was restarted may count its frames anew.
                seen[(path.stem, sighting.frame_index, sighting.release_id, sighting.at)] = sighting
    return sorted(seen.values(), key=lambda s: (s.at, s.camera_id, s.frame_index))


def _parse(camera_id: str, line: str) -> Sighting | None:
    try:
        row: Mapping[str, Any] = json.loads(line)
        return Sighting(
            camera_id=camera_id,
            frame_index=int(row["frame"]),
            release_id=str(row["release"]),
            at=datetime.fromisoformat(row["at"]),
            answers=tuple((float(score), bool(right)) for score, right in row["answers"]),
            expected=int(row["expected"]),
            mistakes=int(row["mistakes"]),
            scene=row["scene"],
        )
    except (ValueError, KeyError, TypeError):
        return None


def measure_until(metric: Metric, sightings: Iterable[Sighting], release_id: str, until: datetime) -> float | None:
    """Measure all that a release answered before `until`; None when that was nothing."""
    seen = [s for s in sightings if s.release_id == release_id and s.at <= until]
    return metric.measure(seen) if seen else None


def share_right(sightings: Sequence[Sighting]) -> float | None:
    """Share of right answers; None without any."""
    outcomes = [right for sighting in sightings for _, right in sighting.answers]
    return sum(outcomes) / len(outcomes) if outcomes else None


ACCURACY = Metric("accuracy", "accuracy", share_right)
