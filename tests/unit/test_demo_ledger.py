"""The closing of the books: what closes stays silent, what does not is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curate.catalog.ingest import plan_admission, read_incoming
from curate.catalog.store import Catalog
from curate.contracts.telemetry import DeviceCounters, ReportedState
from flows.sandbox.demo_books import find_violations, gather_device_book
from flows.sandbox.ledger import AnnotationBook, DeviceBook, verify_annotation, verify_device
from tests.catalog_builders import NOW, batch, capture, facts_of, feedback, key_of, plan

COUNTERS = DeviceCounters(
    frames_seen=110,
    frames_inferred=100,
    frames_skipped={"no_model": 8, "lagging": 2},
    selected=20,
    dropped={"backlog": 3},
    spooled=17,
    acknowledged=14,
    pending=2,
    evicted=1,
    uploaded=15,
    feedback_spooled=6,
    feedback_acknowledged=5,
    feedback_pending=1,
)
BOOK = DeviceBook("cam-1", COUNTERS, cloud_captures=15, cloud_feedback=5, feedback_joined=3, feedback_explained=2)
ASKED = AnnotationBook(ledger_tasks=9, sampled_tasks=9, backend_tasks=9, completed_tasks=8, annotation_records=8)


def test_closed_books_are_silent() -> None:
    """Books in which every law holds give no violation."""
    assert not list(verify_device(BOOK))
    assert not list(verify_annotation(ASKED))


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"frames_inferred": 99}, "inferred + skipped"),
        ({"frames_skipped": {"no_model": 9}}, "inferred + skipped"),
        ({"dropped": {}}, "spooled + dropped"),
        ({"evicted": 0}, "acknowledged + pending + evicted"),
        ({"uploaded": 16}, "ingested = uploaded"),
        ({"feedback_pending": 0}, "verdicts = acknowledged + pending + given up"),
    ],
)
def test_a_wrong_counter_breaks_its_law(change: dict[str, Any], law: str) -> None:
    """One counter that is off by one is told, with the device and the law it breaks."""
    (told,) = verify_device(replace(BOOK, counters=COUNTERS.model_copy(update=change)))
    assert told.startswith("cam-1: ")
    assert law in told


@pytest.mark.parametrize("field", ["cloud_captures", "cloud_feedback", "feedback_joined", "feedback_explained"])
def test_a_loss_in_the_cloud_is_told(field: str) -> None:
    """A capture or verdict that the device sent and the cloud does not hold or explain breaks a law."""
    assert list(verify_device(replace(BOOK, **{field: getattr(BOOK, field) - 1})))


@pytest.mark.parametrize("field", list(vars(ASKED)))
def test_a_question_asked_twice_or_lost_is_told(field: str) -> None:
    """Any two counts of tasks or answers that disagree break a law."""
    assert list(verify_annotation(replace(ASKED, **{field: getattr(ASKED, field) + 1})))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")


def _state(**counters: Any) -> ReportedState:
    return ReportedState(
        device_id="cam-1", boot_id="boot1", reported_at=NOW, agent_version="1", counters=DeviceCounters(**counters)
    )


def test_quarantined_captures_are_counted_and_explain_their_verdicts(catalog: Catalog) -> None:
    """A capture whose image is missing is in the cloud's book all the same, and the verdict on it is explained."""
    lost = capture(3).model_copy(update={"capture_id": "cam-1-p-c-3"})
    record = batch(captures=[capture(1), capture(2), lost], feedback=[feedback(1, "p-c-1"), feedback(2, "p-c-3")])
    images = facts_of(record)
    del images[next(key for key in images if lost.image.sha256 in key)]
    catalog.admit_batch(plan_admission(read_incoming(key_of(record), record.to_bytes()), images, now=NOW))
    catalog.join_feedback()
    book = gather_device_book(catalog, _state(uploaded=3, spooled=3, acknowledged=3, selected=3))
    assert (book.cloud_captures, book.cloud_feedback) == (3, 2)
    assert (book.feedback_joined, book.feedback_explained) == (1, 1)


def test_a_verdict_without_frame_or_reason_stays_unexplained(catalog: Catalog) -> None:
    """A verdict on a frame said to be there joins nothing and is explained only by a drop or eviction."""
    catalog.admit_batch(plan(batch(feedback=[feedback(1, "gone", frame_available=False), feedback(2, "lost")])))
    catalog.join_feedback()
    assert gather_device_book(catalog, _state()).feedback_explained == 1
    assert gather_device_book(catalog, _state(spooled=1, selected=1, evicted=1)).feedback_explained == 2


def test_a_bad_record_is_no_capture(catalog: Catalog) -> None:
    """A batch record in quarantine does not count as a capture that arrived."""
    catalog.admit_batch(plan_admission(read_incoming("inbox/cam-1/boot1-00000001.json", b"{"), {}, now=NOW))
    assert gather_device_book(catalog, _state()).cloud_captures == 0


def test_a_silent_device_leaves_the_books_open() -> None:
    """A device without a heartbeat is a violation by itself."""
    (told,) = find_violations({"cam-9": None}, [], ASKED)
    assert "cam-9" in told
