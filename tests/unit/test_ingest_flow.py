"""Taking the inbox: what lies there is admitted, refused or left for the next run, and nothing is lost in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from curate.catalog.deferral import Deferrals
from curate.catalog.ingest import Incoming, read_incoming
from curate.catalog.models import BatchStatus
from curate.contracts.assignment import Acknowledgement
from curate.contracts.capture import BatchRecord, CaptureRecord
from curate.contracts.paths import INBOX, ack_key, capture_key, quarantine_key
from curate.errors import StorageUnavailableError
from curate.settings import IngestSettings
from curate.storage.local import LocalBlobStore
from flows._blobs import work_ahead
from flows._wiring import Services
from flows.ingest_captures import BATCHES_TOGETHER, DEFERRED, admit_inbox
from tests.catalog_builders import NOW, batch, capture, embedding, feedback, jpeg, key_of
from tests.fakes.wiring import local_services

MINUTE = timedelta(minutes=1)


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """A catalog and a bucket on this disk."""
    with local_services(tmp_path) as services:
        yield services


def _upload(wired: Services, record: BatchRecord, *, without: Sequence[int] = ()) -> str:
    """Do what a device does: images first, their record last."""
    for each in record.captures:
        if each.frame_index not in without:
            wired.store.put(capture_key(record.device_id, each.image.sha256), jpeg(each.frame_index))
    wired.store.put(key_of(record), record.to_bytes())
    return key_of(record)


def _captures(*numbers: int) -> list[CaptureRecord]:
    return [capture(number) for number in numbers]


def _through(wired: Services, device: str) -> dict[str, int]:
    return dict(Acknowledgement.from_bytes(wired.store.get(ack_key(device))).through)


def test_everything_outstanding_is_admitted_acknowledged_and_cleared(wired: Services) -> None:
    """More batches than one commit takes, of two devices, end as samples; each device hears how far."""
    count = BATCHES_TOGETHER + 3
    for number in range(1, count + 1):
        _upload(wired, batch(number, _captures(number), feedback=[feedback(number, f"p-c-{number}")]))
    _upload(wired, batch(1, [capture(1, "other")], device="cam-2"))
    told: list[tuple[int, int]] = []
    counts = admit_inbox(wired, lambda done, total: told.append((done, total)))
    taken = {"samples": count + 1, "feedback": count, "joined": count}
    assert counts == {"batches": count + 1, "quarantined": 0, "deferred": 0} | taken
    assert (_through(wired, "cam-1"), _through(wired, "cam-2")) == ({"boot1": count}, {"boot1": 1})
    assert not list(wired.store.list(INBOX))
    assert told[-1] == (count + 1, count + 1)
    assert len(told) == 2


def test_taking_the_inbox_again_changes_nothing(wired: Services) -> None:
    """A record that comes back after it was admitted, as after a crash before it was removed, is known."""
    record = batch(1, _captures(1, 2))
    _upload(wired, record)
    admit_inbox(wired)
    before = wired.catalog.samples()
    _upload(wired, record)
    assert admit_inbox(wired)["samples"] == 0
    assert [sample.sample_id for sample in wired.catalog.samples()] == [sample.sample_id for sample in before]
    assert not list(wired.store.list(INBOX))


def test_what_nobody_can_use_is_put_aside_with_its_reason(tmp_path: Path) -> None:
    """Bad records and bad captures are refused each for its reason, beside good ones that come in."""
    with local_services(tmp_path, ingest=IngestSettings(wait_for_images_s=0)) as wired:
        _refuse_each_for_its_reason(wired)


def _refuse_each_for_its_reason(wired: Services) -> None:
    good = _upload(wired, batch(1, _captures(1)))
    wired.store.put("inbox/cam-1/boot1-00000002.json", b"rubbish")
    _upload(wired, batch(3, _captures(3, 4)), without=[3])
    wired.store.put("inbox/strange", b"?")
    conflict = batch(1, _captures(5))
    admit_inbox(wired)
    _upload(wired, conflict)
    assert admit_inbox(wired)["quarantined"] == 1
    refused = {row.key: row.reason for row in wired.catalog.quarantine()}
    assert refused == {
        "inbox/cam-1/boot1-00000002.json": "bad_schema",
        "inbox/cam-1/boot1-00000003.json": "image_missing",
        "inbox/strange": "bad_key",
        good: "batch_conflict",
    }
    assert wired.store.get(quarantine_key("inbox/cam-1/boot1-00000002.json")) == b"rubbish"
    assert wired.store.get(quarantine_key(good)) == conflict.to_bytes()
    assert {sample.sample_id for sample in wired.catalog.samples()} == {"c-1", "c-4"}
    assert _through(wired, "cam-1") == {"boot1": 3}


def test_a_batch_waits_for_its_images_and_holds_up_no_other(wired: Services) -> None:
    """It is neither taken, refused, acknowledged nor removed; others are; once the image is there, all of it is."""
    _upload(wired, batch(1, _captures(1)))
    waiting = batch(2, _captures(2, 3), feedback=[feedback(1, "p-c-2")])
    key = _upload(wired, waiting, without=[3])
    _upload(wired, batch(3, _captures(4)))
    _upload(wired, batch(1, [capture(5, "other")], device="cam-2"))
    counts = admit_inbox(wired, clock=lambda: NOW)
    assert (counts["samples"], counts["deferred"], counts["quarantined"], counts["feedback"]) == (3, 1, 0, 0)
    assert (_through(wired, "cam-1"), _through(wired, "cam-2")) == ({"boot1": 1}, {"boot1": 1})
    assert [blob.key for blob in wired.store.list(INBOX)] == [key]
    assert admit_inbox(wired, clock=lambda: NOW + MINUTE)["deferred"] == 1
    _upload(wired, waiting)
    counts = admit_inbox(wired, clock=lambda: NOW + 2 * MINUTE)
    assert (counts["samples"], counts["deferred"], counts["feedback"]) == (2, 0, 1)
    assert _through(wired, "cam-1") == {"boot1": 3}
    assert not list(wired.store.list(INBOX))
    assert not wired.catalog.quarantine()
    assert wired.catalog.watermark(DEFERRED) == "{}"


def test_an_image_that_never_comes_is_refused_in_the_end(wired: Services) -> None:
    """After the time that is set the batch is taken without it, with the reason, and acknowledged."""
    _upload(wired, batch(1, _captures(1, 2)), without=[2])
    looks = [NOW + hours * timedelta(hours=1) for hours in range(24)]
    assert [admit_inbox(wired, clock=partial(_same, at))["deferred"] for at in looks] == [1] * 24
    assert not wired.catalog.samples()
    counts = admit_inbox(wired, clock=lambda: NOW + timedelta(hours=24))
    assert (counts["samples"], counts["deferred"], counts["quarantined"]) == (1, 0, 1)
    assert [row.reason for row in wired.catalog.quarantine()] == ["image_missing"]
    assert _through(wired, "cam-1") == {"boot1": 1}
    assert not list(wired.store.list(INBOX))


def test_a_batch_that_was_taken_waits_for_nothing(wired: Services) -> None:
    """A record that is sent once more after its images were cleared away is known, and goes."""
    record = batch(1, _captures(1))
    _upload(wired, record)
    admit_inbox(wired)
    wired.store.delete(capture_key("cam-1", record.captures[0].image.sha256))
    _upload(wired, record, without=[1])
    assert admit_inbox(wired)["deferred"] == 0
    assert not list(wired.store.list(INBOX))
    assert not wired.catalog.quarantine()


def test_looks_at_a_waiting_batch_come_after_twice_as_long() -> None:
    """Each minute it could be read; it is at once, then ever more rarely, at least hourly, and when patience ends."""
    waiting, looks = "{}", list[int]()
    for minute in range(5 * 60 + 31):
        deferrals = _deferrals(waiting, NOW + minute * MINUTE, patience=timedelta(hours=5.5))
        if deferrals.is_due(KEY):
            looks.append(minute)
            assert deferrals.decide(_incoming(), 1) == (minute < 330)
        waiting = deferrals.to_json([KEY])
    assert looks == [0, 1, 2, 4, 8, 16, 32, 64, 124, 184, 244, 304, 330]
    assert waiting == "{}"


def test_who_waits_is_told_and_forgotten_when_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row says what is missing until when; a batch that left the inbox is kept no longer; too many do not wait."""
    deferrals = _deferrals(None, NOW)
    assert deferrals.decide(_incoming(), 2)
    assert deferrals.rows() == [
        {
            "batch": KEY,
            "device": "cam-1",
            "images missing": 2,
            "first seen": "2026-03-01T12:00:00+00:00",
            "refused from": "2026-03-02T12:00:00+00:00",
        }
    ]
    assert not _deferrals(deferrals.to_json([]), NOW).rows()
    monkeypatch.setattr("curate.catalog.deferral.MAX_WAITING_PER_DEVICE", 1)
    again = _deferrals(deferrals.to_json([KEY]), NOW + MINUTE)
    another = batch(2, _captures(3))
    assert not again.decide(read_incoming(key_of(another), another.to_bytes()), 1)
    assert again.decide(_incoming(), 1)


KEY = key_of(batch(1))


def _same(at: datetime) -> datetime:
    return at


def _incoming() -> Incoming:
    return read_incoming(KEY, batch(1, _captures(1, 2)).to_bytes())


def _deferrals(stored: str | None, now: datetime, patience: timedelta = timedelta(days=1)) -> Deferrals:
    return Deferrals.from_json(stored, patience=patience, now=now)


def test_an_image_too_large_to_be_one_stops_nobody(wired: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob beyond the limit, whether the record admits to its size or not, is refused; what else came is admitted."""
    monkeypatch.setattr("flows._blobs.MAX_IMAGE_BYTES", 10_000)
    open_about_it = capture(1, image=capture(1).image.model_copy(update={"size_bytes": 10_001}))
    _upload(wired, batch(1, [open_about_it, capture(2), capture(3)]))
    for number in (1, 2):
        wired.store.put(capture_key("cam-1", capture(number).image.sha256), b"x" * 10_001)
    assert admit_inbox(wired)["samples"] == 1
    assert sorted(row.reason for row in wired.catalog.quarantine()) == ["image_size", "image_undecodable"]


def test_a_release_keeps_the_length_its_first_capture_had(wired: Services) -> None:
    """An embedding of another length is refused, whether the first came in the same commit or in an earlier run."""
    _upload(wired, batch(1, _captures(1)))
    _upload(wired, batch(2, [_with_dim(capture(2), 16)]))
    admit_inbox(wired)
    _upload(wired, batch(3, [_with_dim(capture(3), 16)]))
    admit_inbox(wired)
    assert [row.reason for row in wired.catalog.quarantine()] == ["embedding_length"] * 2
    assert wired.catalog.embedding_dims() == {"r1": 8}


def _with_dim(record: CaptureRecord, dim: int) -> CaptureRecord:
    prediction = record.prediction.model_copy(update={"embedding": embedding(1, dim)})
    return record.model_copy(update={"prediction": prediction})


class _FailingStore(LocalBlobStore):
    """A bucket whose link breaks for some keys."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.broken: set[str] = set()

    def get(self, key: str, **options: Any) -> bytes:
        if key in self.broken:
            raise StorageUnavailableError(f"get {key}: the link is down")
        return super().get(key, **options)

    def delete(self, key: str) -> None:
        if key in self.broken:
            raise StorageUnavailableError(f"delete {key}: the link is down")
        super().delete(key)


def test_a_link_that_breaks_loses_nothing(wired: Services, tmp_path: Path) -> None:
    """Whatever cannot be read or removed now stops the run, and the next run takes all of it, once."""
    store = _FailingStore(tmp_path / "bucket")
    shaky = replace(wired, store=store)
    records = [batch(number, _captures(number)) for number in range(1, 6)]
    for record in records:
        _upload(shaky, record)
    store.broken = {capture_key("cam-1", records[2].captures[0].image.sha256)}
    with pytest.raises(StorageUnavailableError):
        admit_inbox(shaky)
    store.broken = {key_of(records[1])}
    with pytest.raises(StorageUnavailableError):
        admit_inbox(shaky)
    store.broken = set()
    admit_inbox(shaky)
    assert len(shaky.catalog.samples()) == 5
    assert all(row.status is BatchStatus.INGESTED for row in shaky.catalog.batches())
    assert _through(shaky, "cam-1") == {"boot1": 5}
    assert not list(store.list(INBOX))


def test_a_record_that_another_run_took_is_passed_over(wired: Services) -> None:
    """A record that is gone when its turn comes is no error."""
    _upload(wired, batch(1, _captures(1)))
    gone = _upload(wired, batch(2, _captures(2)))

    class _Vanishing(LocalBlobStore):
        def list(self, prefix: str) -> Any:
            found = list(super().list(prefix))
            super().delete(gone)
            return iter(found)

    store = wired.store
    assert isinstance(store, LocalBlobStore)
    vanishing = replace(wired, store=_Vanishing(store._root))
    assert admit_inbox(vanishing)["samples"] == 1


def test_work_ahead_keeps_the_order_and_its_bound() -> None:
    """Answers come in the order of the items, and never are more than the bound begun before they are asked for."""
    begun: list[int] = []
    lock = threading.Lock()

    def work(item: int) -> int:
        with lock:
            begun.append(item)
        return item * item

    answers = work_ahead(work, range(50), 4)
    assert [next(answers) for _ in range(3)] == [0, 1, 4]
    assert max(begun) <= 2 + 4 + 1
    assert list(answers) == [number * number for number in range(3, 50)]


def test_work_ahead_raises_where_the_item_stands_and_leaves_the_rest() -> None:
    """What came before the failing item is yielded, and threads end with nothing begun that nobody will take."""

    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    before = set(threading.enumerate())
    answers = work_ahead(work, range(1000), 5)
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    assert set(threading.enumerate()) - before
    with pytest.raises(ValueError, match="three"):
        next(answers)
    assert not set(threading.enumerate()) - before
