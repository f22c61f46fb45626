"""What really happened, as the simulated people saw it: every prediction with its truth. Only the report reads this."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True)
class Sighting:
    """One prediction a person saw, and what the frame really showed."""

    camera_id: str
    frame_index: int
    release_id: str
    predicted: int
    truth: int
    at: datetime

    @property
    def correct(self) -> bool:
        """Whether the model was right."""
        return self.predicted == self.truth


def load_journal(folder: Path) -> list[Sighting]:
    """Read every camera's journal; a line cut off by a kill is left out, a frame noted twice counts once."""
    seen: dict[tuple[str, int, str], Sighting] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            sighting = _parse(path.stem, line)
            if sighting is not None:
                seen[(sighting.camera_id, sighting.frame_index, sighting.release_id)] = sighting
    return sorted(seen.values(), key=lambda s: (s.at, s.camera_id, s.frame_index))


def _parse(camera_id: str, line: str) -> Sighting | None:
    try:
        row: Mapping[str, object] = json.loads(line)
        return Sighting(
            camera_id=camera_id,
            frame_index=int(str(row["frame"])),
            release_id=str(row["release"]),
            predicted=int(str(row["predicted"])),
            truth=int(str(row["truth"])),
            at=datetime.fromisoformat(str(row["at"])),
        )
    except (ValueError, KeyError, TypeError):
        return None


def oracle_accuracy(sightings: Iterable[Sighting], release_id: str, until: datetime) -> float | None:
    """Share of right predictions among all that this release made before `until`; None when it made none."""
    outcomes = [s.correct for s in sightings if s.release_id == release_id and s.at <= until]
    return sum(outcomes) / len(outcomes) if outcomes else None
