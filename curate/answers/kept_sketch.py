"""What was kept or sent so far, as a few centres: what lies far from all of them is new.

Pure. A device keeps one of its own captures, the cloud one of the whole fleet's.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from curate.answers.base import Floats
from curate.contracts.sketch import MAX_CENTRES, SKETCH_DIM, EmbeddingSketch

FIRST_RADIUS: Final = 0.02


class KeptSketch:
    """At most `max_centres` points, no two of them closer than twice `radius`. Not thread-safe.

    A point farther than twice the radius from every centre becomes one; when there are too many, the newer of the
    closest two goes, and the radius grows to half of what was between them. Once it has grown, no choice of as many
    centres has all that was added nearer than the radius. That is the doubling algorithm (Charikar, Chekuri, Feder,
    Motwani: Incremental Clustering and Dynamic Information Retrieval, STOC 1997, section 3) with the least step in
    place of a doubling, which merges nearly all centres at once where kinds are about equally far from each other.
    Distances are half the chord between unit vectors, a metric in [0, 1].
    """

    def __init__(self, max_centres: int = MAX_CENTRES, *, radius: float = FIRST_RADIUS) -> None:
        self._max_centres = max_centres
        self.radius = radius
        self._rows = np.zeros((max_centres + 1, SKETCH_DIM), np.float32)
        self._older = np.zeros(max_centres + 1, np.int64)  # of the centres before each one the closest, ...
        self._cosine = np.full(max_centres + 1, -np.inf)  # ... and how close
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
        products, length = _products(self._rows[: self._count], folded), math.sqrt(folded.dot(folded))
        return _half_chord(products.item(int(products.argmax())) / length if 0.0 < length < math.inf else 0.0)

    def add(self, folded: Floats) -> bool:
        """Take in one folded embedding, float32 [SKETCH_DIM]; return whether it became a centre."""
        if self._count and self.distance(folded) <= 2.0 * self.radius:
            return False
        self._rows[self._count] = folded
        self._find_older(self._count)
        self._count += 1
        if self._count > self._max_centres:
            self._merge_closest()
        return True

    def _find_older(self, row: int) -> None:
        if row:
            products = _products(self._rows[:row], self._rows[row])
            self._older[row] = closest = int(products.argmax())
            self._cosine[row] = products[closest]

    def _merge_closest(self) -> None:
        """Drop the newer of the two closest centres."""
        end = self._count
        gone = int(self._cosine[:end].argmax())
        self.radius = max(self.radius, _half_chord(float(self._cosine[gone])) / 2.0)
        for column in (self._rows, self._older, self._cosine):
            column[gone : end - 1] = column[gone + 1 : end]
        self._count -= 1
        orphans = np.flatnonzero(self._older[gone : end - 1] == gone) + gone
        self._older[gone : end - 1] -= self._older[gone : end - 1] > gone
        for row in orphans.tolist():
            self._find_older(row)


def _products(rows: Floats, folded: Floats) -> Floats:
    # Not `@`: a matrix product of this size wakes the linear algebra library's threads, and they spin.
    products: Floats = np.vecdot(rows, folded)
    return products


def _half_chord(cosine: float) -> float:
    return math.sqrt(max(0.0, (1.0 - cosine) / 2.0))


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
