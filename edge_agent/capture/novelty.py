"""What this device and its fleet have kept so far, as a few centres: what lies far from all of them is new.

`KeptSketch` is pure. `NoveltyMemory` holds one for the model that answers now, for all cameras, and saves it now and
then; a sketch that is lost costs some captures of what was sent before, nothing else.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from curate.answers.base import Floats
from curate.answers.folding import fold, fold_embedding
from curate.contracts.sketch import MAX_CENTRES, SKETCH_DIM, EmbeddingSketch
from curate.errors import ContractError
from edge_agent.durable import persist_bytes

log = logging.getLogger(__name__)

PERSIST_INTERVAL_S: Final = 60.0
FIRST_RADIUS: Final = 0.02
_SPACES: Final = 2
"""Sketches held at once: while a model is swapped, cameras may still answer with the one before."""


class KeptSketch:
    """At most `max_centres` points such that everything added lies within twice `radius` of one. Not thread-safe.

    The doubling algorithm (Charikar, Chekuri, Feder, Motwani: Incremental Clustering and Dynamic Information
    Retrieval, STOC 1997, section 3): a point further than twice the radius from every centre becomes one;
    when there are too many, the radius doubles and centres within twice of it merge. Its largest distance to a centre
    is at most eight times that of the best choice of as many centres. Distances are half the chord between unit
    vectors, a metric in [0, 1].
    """

    def __init__(self, max_centres: int = MAX_CENTRES, *, radius: float = FIRST_RADIUS) -> None:
        self._max_centres = max_centres
        self.radius = radius
        self._rows = np.zeros((max_centres + 1, SKETCH_DIM), np.float32)
        self._count = 0

    def __len__(self) -> int:
        """Return the number of centres."""
        return self._count

    @property
    def centres(self) -> Floats:
        """The centres, float32 [C, SKETCH_DIM], of unit length."""
        return self._rows[: self._count]

    def distance(self, folded: Floats) -> float:
        """Return the distance of a folded embedding, of any length, to the nearest centre; 1 when there is none."""
        if not self._count:
            return 1.0
        # In the row behind the centres it is multiplied with itself in the same go.
        rows = self._rows[: self._count + 1]
        rows[-1] = folded
        products = _products(rows, folded).tolist()
        length = math.sqrt(products.pop())
        return _half_chord(max(products) / length if 0.0 < length < math.inf else 0.0)

    def add(self, folded: Floats) -> None:
        """Take in one folded embedding, float32 [SKETCH_DIM]."""
        if self._count and self.distance(folded) <= 2.0 * self.radius:
            return
        self._rows[self._count] = folded
        self._count += 1
        while self._count > self._max_centres:
            self.radius *= 2.0
            self._merge()

    def _merge(self) -> None:
        """Keep of the centres within twice the radius of each other the oldest."""
        kept: list[int] = []
        limit = 2.0 * self.radius
        for row in range(self._count):
            if not kept or _half_chord(float(_products(self._rows[kept], self._rows[row]).max())) > limit:
                kept.append(row)
        self._rows[: len(kept)] = self._rows[kept]
        self._count = len(kept)


def _products(rows: Floats, folded: Floats) -> Floats:
    # Not `@`: a matrix product of this size wakes the linear algebra library's threads, and they spin.
    products: Floats = np.vecdot(rows, folded)
    return products


def _half_chord(cosine: float) -> float:
    return math.sqrt(max(0.0, (1.0 - cosine) / 2.0))


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


def unpack_centres(document: EmbeddingSketch) -> Floats:
    """Return the centres of a document, float32 [C, SKETCH_DIM], of unit length; those that have none are left out."""
    rows = np.frombuffer(document.raw(), "<f2").astype(np.float32).reshape(-1, SKETCH_DIM)
    lengths = np.linalg.norm(np.where(np.isfinite(rows), rows, 0.0), axis=1, keepdims=True)
    usable = np.isfinite(rows).all(axis=1) & (lengths[:, 0] > 1e-3)
    return np.asarray(rows[usable] / lengths[usable], np.float32)


def to_document(sketch: KeptSketch, space: str, dim: int) -> EmbeddingSketch:
    """Return a sketch as it is saved and as it travels."""
    radius = min(1.0, sketch.radius)
    return EmbeddingSketch.from_raw(sketch.centres.astype("<f2").tobytes(), space=space, dim=dim, radius=radius)


def load_sketch(path: Path) -> EmbeddingSketch | None:
    """Return the sketch that was saved; None when there is none to be read."""
    try:
        return EmbeddingSketch.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ContractError) as exc:
        log.warning("the sketch of what was kept cannot be read and starts anew: %s", exc)
        return None
