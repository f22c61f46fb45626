"""Batches that wait in the inbox because some of their images are not in the bucket yet. Pure.

A record is written after its images, so a missing one usually means a store that is behind or half restored. The batch
stays unacknowledged and its device sends it again, images and all; what never comes is refused in the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter

from curate.catalog.ingest import Incoming
from curate.waits import is_time

MAX_WAITING_PER_DEVICE: Final = 1000
"""Further ones are not waited for: each costs reads of the bucket again and again."""
LONGEST_WAIT: Final = timedelta(hours=1)
"""Between two looks; the first come sooner."""


class Deferred(BaseModel):
    """One batch that waits."""

    model_config = ConfigDict(frozen=True)

    device_id: str
    first_seen: datetime
    last_looked: datetime
    missing: int
    """Images that were not there at the last look."""


_STORED: Final = TypeAdapter(dict[str, Deferred])


class Deferrals:
    """Who waits, by inbox key, and for how long yet. Belongs to one run; stored between runs as JSON."""

    def __init__(self, waiting: Mapping[str, Deferred], *, patience: timedelta, now: datetime) -> None:
        """`patience`: how long after it was first seen a batch is refused its missing images."""
        self.waiting = dict(waiting)
        self._per_device = Counter(each.device_id for each in waiting.values())
        self._patience = patience
        self._now = now

    @classmethod
    def from_json(cls, stored: str | None, *, patience: timedelta, now: datetime) -> Self:
        """Read what an earlier run stored; None: nothing."""
        return cls({} if stored is None else _STORED.validate_json(stored), patience=patience, now=now)

    def to_json(self, outstanding: Collection[str]) -> str:
        """Return what the next run needs of the batches that still lie in the inbox."""
        kept = {key: each for key, each in sorted(self.waiting.items()) if key in outstanding}
        return _STORED.dump_json(kept).decode()

    def is_due(self, key: str) -> bool:
        """Whether to look at a batch now: waits double from the first look on, and patience ends on time."""
        known = self.waiting.get(key)
        if known is None or self._now - known.first_seen >= self._patience:
            return True
        return is_time(known.first_seen, known.last_looked, self._now, LONGEST_WAIT)

    def decide(self, incoming: Incoming, missing: int) -> bool:
        """Decide whether a batch waits for images that are missing, and remember it."""
        known = self.waiting.pop(incoming.key, None)
        if incoming.record is None or not missing:
            return False
        device = incoming.record.device_id
        first_seen = known.first_seen if known else self._now
        is_crowded = known is None and self._per_device[device] >= MAX_WAITING_PER_DEVICE
        if is_crowded or self._now - first_seen >= self._patience:
            return False
        self._per_device[device] += known is None
        self.waiting[incoming.key] = Deferred(
            device_id=device, first_seen=first_seen, last_looked=self._now, missing=missing
        )
        return True

    def rows(self) -> list[dict[str, str | int]]:
        """One row a waiting batch, the longest waiting first."""
        ordered = sorted(self.waiting.items(), key=lambda item: (item[1].first_seen, item[0]))
        return [
            {
                "batch": key,
                "device": each.device_id,
                "images missing": each.missing,
                "first seen": each.first_seen.isoformat(timespec="seconds"),
                "refused from": (each.first_seen + self._patience).isoformat(timespec="seconds"),
            }
            for key, each in ordered
        ]
