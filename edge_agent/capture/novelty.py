"""What this device and its fleet have kept so far, as a few centres: what lies far from all of them is new.

`NoveltyMemory` holds one sketch for the model that answers now, for all cameras, and saves it now and then; one that is
lost costs some captures of what was sent before, nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from curate.answers.base import Floats
from curate.answers.folding import fold, fold_embedding
from curate.answers.kept_sketch import FIRST_RADIUS, KeptSketch, to_document, unpack_centres
from curate.contracts.sketch import EmbeddingSketch
from curate.errors import ContractError
from edge_agent.durable import persist_bytes

log = logging.getLogger(__name__)

PERSIST_INTERVAL_S: Final = 60.0
_SPACES: Final = 2
"""Sketches held at once: while a model is swapped, cameras may still answer with the one before."""


class NoveltyMemory:
    """The sketches of one device. Thread-safe; asking and remembering never wait for the disk."""

    def __init__(self, path: Path, *, on_mismatch: Callable[[str], None] = lambda _detail: None) -> None:
        """Start from the file at `path`; an unreadable one is logged and forgotten. `on_mismatch` is told once of a
        fleet's sketch that fits no embedding here."""
        self._path = path
        self._on_mismatch = on_mismatch
        self._lock = threading.Lock()
        self._sketches: dict[str, KeptSketch] = {}
        self._dims: dict[str, int] = {}
        self._fleet: EmbeddingSketch | None = None
        self._told: EmbeddingSketch | None = None
        self._changed_space: str | None = None
        self._restore(load_sketch(path))

    def distance(self, embedding: Floats, space: str) -> float | None:
        """Return how far the embedding [D] lies from everything kept, in [0, 1]; None for one without values."""
        if not embedding.size:
            return None
        folded = fold(embedding)
        with self._lock:
            return self._sketch(space, embedding.size).distance(folded)

    def remember(self, embedding: Floats, space: str) -> None:
        """Take note that a frame with this embedding was kept."""
        if not embedding.size:
            return
        folded = fold_embedding(embedding)
        with self._lock:
            self._sketch(space, embedding.size).add(folded)
            self._changed_space = space

    def follow_fleet(self, sketch: EmbeddingSketch | None) -> None:
        """Count what the fleet has sent as kept, from now on. The sketch of another space is told once and ignored."""
        with self._lock:
            self._fleet = sketch
            for space, own in self._sketches.items():
                self._add_fleet(own, space, self._dims[space])

    def persist(self) -> None:
        """Save what has changed since the last time; a disk that refuses is logged and asked again next time."""
        with self._lock:
            space, self._changed_space = self._changed_space, None
            sketch = self._sketches.get(space) if space else None
            document = to_document(sketch, space, self._dims[space]) if sketch and space else None
        if document is None:
            return
        try:
            persist_bytes(self._path, document.to_bytes())
        except OSError as exc:
            log.warning("the sketch of what was kept is not saved: %s", exc)
            with self._lock:
                self._changed_space = self._changed_space or space

    def run(self, stop: threading.Event) -> None:
        """Save now and then, and once more at the end."""
        while not stop.wait(PERSIST_INTERVAL_S):
            self.persist()
        self.persist()

    def _sketch(self, space: str, dim: int) -> KeptSketch:
        """Return the sketch of a space; another release starts a new one."""
        if (found := self._sketches.get(space)) is not None and self._dims[space] == dim:
            return found
        self._sketches.pop(space, None)
        while len(self._sketches) >= _SPACES:
            del self._dims[oldest := next(iter(self._sketches))], self._sketches[oldest]
        self._sketches[space], self._dims[space] = made, _ = KeptSketch(), dim
        self._add_fleet(made, space, dim)
        return made

    def _add_fleet(self, sketch: KeptSketch, space: str, dim: int) -> None:
        fleet = self._fleet
        if fleet is None:
            return
        if (fleet.space, fleet.dim) == (space, dim):
            for row in unpack_centres(fleet):
                sketch.add(row)
        elif fleet is not self._told:
            self._told = fleet
            detail = f"the fleet's sketch is of {fleet.space} ({fleet.dim} values), the model is {space} ({dim})"
            log.warning("the fleet's sketch is ignored", extra={"detail": detail})
            self._on_mismatch(detail)

    def _restore(self, document: EmbeddingSketch | None) -> None:
        if document is not None:
            sketch = KeptSketch(radius=max(document.radius, FIRST_RADIUS))
            for row in unpack_centres(document):
                sketch.add(row)
            self._sketches[document.space], self._dims[document.space] = sketch, document.dim


def load_sketch(path: Path) -> EmbeddingSketch | None:
    """Return the sketch that was saved; None when there is none to be read."""
    try:
        return EmbeddingSketch.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ContractError) as exc:
        log.warning("the sketch of what was kept cannot be read and starts anew: %s", exc)
        return None
