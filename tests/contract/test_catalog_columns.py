"""The law of reading many samples at once, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from curate.catalog import columns as columns_module
from curate.catalog.columns import IdRange, Position
from curate.catalog.models import Sample, SampleStatus
from curate.catalog.store import Catalog
from curate.errors import CatalogError
from tests.catalog_builders import NOW, batch, capture, detection, embedding, imported, plan
from tests.conftest import PostgresServer

DIM = 8


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    """An empty catalog in each kind of database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'catalog.db'}"
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.fresh_url()
    with Catalog.open(url) as opened:
        yield opened


def _fill(catalog: Catalog, count: int) -> None:
    """Admit `count` captures of two cameras, and beside them what no reading of r1's columns may bring."""
    captures = [capture(number, camera_id=f"lens-{number % 2}") for number in range(count)]
    catalog.admit_batch(plan(batch(captures=captures)))
    catalog.admit_batch(plan(batch(captures=[capture(900, prediction=detection(900))], device="cam-2")))
    catalog.add_samples([imported(1)])


@pytest.mark.parametrize("mapped", [False, True])
def test_columns_say_what_the_samples_say(
    catalog: Catalog, tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every column holds, row by row, what reading the samples one by one gives, over several blocks."""
    monkeypatch.setattr(columns_module, "BLOCK_ROWS", 7)
    _fill(catalog, 20)
    found = catalog.sample_columns("r1", score="margin", folder=tmp_path if mapped else None)
    before = sorted(tmp_path.iterdir())
    samples = {sample.sample_id: sample for sample in catalog.samples() if sample.release_id == "r1"}
    assert set(found.ids) == set(samples)
    assert len(found) == 20
    assert found.probabilities is not None
    assert (found.score == 0.5).all()
    assert np.isnan(catalog.sample_columns("r1").score).all()
    assert (found.embeddings.dtype, found.probabilities.dtype) == (np.float16, np.float32)
    for row, sample_id in enumerate(found.ids):
        sample = samples[sample_id]
        assert (found.devices[row], found.cameras[row]) == (sample.device_id, sample.camera_id)
        assert found.captured_s[row] == pytest.approx(sample.captured_at.timestamp(), abs=1e-6)
        assert np.array_equal(found.embeddings[row], np.asarray(sample.embedding, np.float16))
        assert found.probabilities[row].tolist() == pytest.approx([0.7, 0.2, 0.1])
        chance = found.random_probability[row]
        assert np.isnan(chance) if sample.random_probability is None else chance == sample.random_probability
    del found
    assert sorted(tmp_path.iterdir()) == before


def test_ranges_share_the_samples_out(catalog: Catalog) -> None:
    """Each sample lies in exactly one range, and no range holds more than was asked for."""
    _fill(catalog, 20)
    ranges = catalog.id_ranges(6)
    parts = [catalog.sample_columns("r1", within=each).ids for each in ranges]
    assert sorted(sample_id for part in parts for sample_id in part) == sorted(catalog.sample_columns("r1").ids)
    assert max(map(len, parts)) <= 6
    assert len(ranges) == 4
    assert len(catalog.id_ranges(1)) == 22


def test_only_what_fits_is_read(catalog: Catalog) -> None:
    """A status bounds the rows; a release that nobody ran, and an empty catalog, have none."""
    assert len(catalog.sample_columns("r1")) == 0
    assert len(catalog.id_ranges(10)) == 1
    _fill(catalog, 6)
    catalog.set_status(["c-1", "c-2"], SampleStatus.QUEUED)
    assert sorted(catalog.sample_columns("r1", status=SampleStatus.QUEUED).ids) == ["c-1", "c-2"]
    assert len(catalog.sample_columns("r1", status=SampleStatus.POOL)) == 4
    none = catalog.sample_columns("nobody")
    assert (len(none), none.probabilities, none.embeddings.shape) == (0, None, (0, 0))


def test_what_the_release_has_not_answered_is_told_apart(catalog: Catalog) -> None:
    """A sample is in the release's columns or among its unanswered, never in both; an unlearned device has neither."""
    _fill(catalog, 4)
    assert catalog.unanswered("r1") == ["c-900", "imported-1"]
    assert catalog.unanswered("r1", ids=["c-1", "c-900"]) == ["c-900"]
    assert catalog.unanswered("r2", status=SampleStatus.POOL, within=IdRange("c-2", "c-900")) == ["c-2", "c-3"]
    assert catalog.sample_columns("r1", ids=["c-1", "nobody"]).ids == ("c-1",)
    catalog.unlearn_device("cam-1", NOW)
    assert (len(catalog.sample_columns("r1")), catalog.unanswered("r2")) == (0, ["imported-1"])


def test_a_detector_has_no_distribution_a_frame(catalog: Catalog) -> None:
    """Frames of a detector come with their embeddings and without probabilities."""
    _fill(catalog, 2)
    found = catalog.sample_columns("r2")
    assert (found.ids, found.probabilities, found.embeddings.shape) == (("c-900",), None, (1, DIM))


def test_embeddings_of_two_lengths_are_refused(catalog: Catalog) -> None:
    """Rows of one release that do not make a matrix stop the reading, with the release's name."""
    catalog.add_samples([_imported_with(1, 8), _imported_with(2, 16)])
    with pytest.raises(CatalogError, match="r1 differ in length"):
        catalog.sample_columns("r1")


def test_a_folder_that_cannot_be_written_is_a_catalog_error(catalog: Catalog, tmp_path: Path) -> None:
    """The message names the folder."""
    with pytest.raises(CatalogError, match="nowhere"):
        catalog.sample_columns("r1", folder=tmp_path / "nowhere")


def _imported_with(number: int, dim: int) -> Sample:
    values = np.frombuffer(embedding(number, dim).raw(), "<f2").astype(np.float32)
    return replace(imported(number), release_id="r1", prediction=capture(number).prediction, embedding=values)


def test_arrivals_come_in_order_and_go_on_where_they_ended(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every embedding comes once, oldest arrival first; from any place on, exactly what came after it."""
    monkeypatch.setattr(columns_module, "BLOCK_ROWS", 3)
    times = [NOW + timedelta(seconds=second) for second in (5, 0, 0, 9)]
    for sequence, now in enumerate(times, 1):
        captures = [capture(number, f"b{sequence}") for number in range(4)]
        catalog.admit_batch(plan(batch(sequence, captures), now=now))
    catalog.add_samples([imported(1)])
    known = {sample.sample_id: sample for sample in catalog.samples() if sample.release_id == "r1"}
    order = sorted(known, key=lambda name: (known[name].ingested_at, name))
    blocks = list(catalog.arrivals("r1"))
    expected = np.stack([np.asarray(known[name].embedding, np.float16) for name in order])
    assert np.array_equal(np.concatenate([block.embeddings for block in blocks]), expected)
    assert [block.last.sample_id for block in blocks] == [*order[2::3], order[-1]]
    for place, name in enumerate(order):
        at = known[name].ingested_at
        assert at is not None
        rest = [block.embeddings for block in catalog.arrivals("r1", Position(at, name))]
        assert sum(map(len, rest)) == len(order) - place - 1
        assert not rest or np.array_equal(np.concatenate(rest), expected[place + 1 :])


def test_arrivals_of_unlearned_devices_do_not_come(catalog: Catalog) -> None:
    """What an unlearned device sent is left out, and embeddings of two lengths are an error."""
    for device in ("cam-1", "cam-2"):
        catalog.admit_batch(plan(batch(captures=[capture(1, device)], device=device)))
    catalog.unlearn_device("cam-2", NOW)
    assert [len(block.embeddings) for block in catalog.arrivals("r1")] == [1]
    assert list(catalog.arrivals("nobody")) == []
    longer = replace(plan(batch(captures=[capture(2)])).samples[0], embedding=np.zeros(3, np.float32))
    catalog.add_samples([longer])
    with pytest.raises(CatalogError, match="differ in length"):
        list(catalog.arrivals("r1"))
