"""Cells of the embedding space wait in the bucket for the next round."""

from __future__ import annotations

import numpy as np

from curate.selection.cells import Cells
from flows.select_samples import fetch_cells, put_cells
from tests.fakes.blob_store import FakeBlobStore


def test_cells_are_kept_a_model() -> None:
    """What one round stored the next gets, for the same model only; a small pool stores nothing."""
    store = FakeBlobStore()
    put_cells(store, "small", None)
    assert (store.blobs, fetch_cells(store, "small")) == ({}, None)
    cells = Cells(np.eye(4, dtype=np.float32), np.arange(3, dtype=np.uint64), np.array([0, 3, 1], np.int32))
    put_cells(store, "m1", cells)
    found = fetch_cells(store, "m1")
    assert found is not None
    assert (found.version, found.seen_cell.tolist()) == (cells.version, [0, 3, 1])
    assert fetch_cells(store, "m2") is None


def test_damaged_cells_are_no_reason_to_stop() -> None:
    """A file that cannot be read counts as none: the round finds new cells."""
    store = FakeBlobStore()
    put_cells(store, "m1", Cells(np.eye(4, dtype=np.float32)))
    (key,) = store.blobs
    store.blobs[key] = store.blobs[key][:50]
    assert fetch_cells(store, "m1") is None
