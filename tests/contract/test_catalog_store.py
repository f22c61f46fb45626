"""The law of the catalog, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from curate.catalog import tables
from curate.catalog.admissions import AdmissionResult
from curate.catalog.ingest import plan_admission, read_incoming
from curate.catalog.models import (
    AnnotationRow,
    BatchStatus,
    DatasetItem,
    DatasetVersion,
    ModelRow,
    ModelStatus,
    RoundPhase,
    Sample,
    SampleStatus,
    SelectedRow,
    SelectionRole,
    Split,
    TaskStatus,
)
from curate.catalog.pool import FeedbackJoin
from curate.catalog.splits import dataset_digest
from curate.catalog.store import Catalog
from curate.contracts.feedback import Feedback
from curate.contracts.telemetry import DeviceCounters, ReportedState
from curate.errors import CatalogError
from tests.catalog_builders import NOW, batch, capture, detection, feedback, imported, key_of, plan
from tests.conftest import PostgresServer, free_ports


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.fresh_url()


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    """An empty catalog."""
    with Catalog.open(url) as opened:
        yield opened


def _fill(catalog: Catalog, count: int) -> list[str]:
    """Admit `count` captures of cam-1 and return their ids."""
    catalog.admit_batch(plan(batch(captures=[capture(number) for number in range(count)])))
    return [f"c-{number}" for number in range(count)]


def _selected(ids: list[str], round_number: int = 1) -> list[SelectedRow]:
    return [
        SelectedRow(
            round_number, sample_id, rank, SelectionRole.ACTIVE, 1.0 / (rank + 1), None, ("far", "unsure"), rank
        )
        for rank, sample_id in enumerate(ids)
    ]


def _select(catalog: Catalog, ids: list[str], round_number: int = 1) -> None:
    catalog.open_round(round_number, budget=10, seed=0, now=NOW)
    catalog.save_selection(round_number, _selected(ids, round_number))


def _annotation(name: str, sample_id: str, label: str | None = "shoe", minutes: int = 0) -> AnnotationRow:
    return AnnotationRow(
        annotation_id=name,
        sample_id=sample_id,
        annotator="ann",
        label=None if label is None else {"class": label},
        was_cancelled=label is None,
        created_at=NOW,
        updated_at=NOW + timedelta(minutes=minutes),
        lead_time_s=2.5,
    )


def _status(catalog: Catalog, sample_id: str) -> SampleStatus:
    sample = catalog.sample(sample_id)
    assert sample is not None
    return sample.status


def _same(left: Sample | None, right: Sample) -> bool:
    """Equality that knows arrays."""
    if left is None:
        return False
    arrays = (left.embedding, right.embedding)
    alike = all(a is None for a in arrays) or np.array_equal(*arrays)  # type: ignore[arg-type]
    return alike and replace(left, embedding=None) == replace(right, embedding=None)


# Admission


def test_samples_come_back_as_they_were(catalog: Catalog) -> None:
    """Both prediction kinds and imported samples keep every field, the embedding as float16 keeps it."""
    admitted = plan(batch(captures=[capture(1), capture(2, prediction=detection(2)), capture(3)]))
    result = catalog.admit_batch(admitted)
    assert result == AdmissionResult(samples=3)
    assert all(_same(catalog.sample(sample.sample_id), sample) for sample in admitted.samples)
    assert catalog.add_samples([imported(1), imported(2)]) == 2
    assert catalog.add_samples([imported(2), imported(3)]) == 1
    assert _same(catalog.sample("imported-1"), imported(1))
    assert catalog.sample("nobody") is None


def test_times_come_back_aware_in_utc(catalog: Catalog) -> None:
    """A time given in another zone is the same instant in UTC; a time without a zone is refused."""
    at = datetime(2026, 7, 1, 0, 30, 0, 123456, tzinfo=timezone(timedelta(hours=9)))
    catalog.add_samples([replace(imported(1), captured_at=at)])
    found = catalog.samples()[0]
    assert found.captured_at == at
    assert found.captured_at.tzinfo is UTC
    with pytest.raises(CatalogError):
        catalog.add_samples([replace(imported(2), captured_at=at.replace(tzinfo=None))])


def test_the_same_batch_twice_changes_nothing(catalog: Catalog) -> None:
    """Receiving again, even with other pictures there, leaves all that the first time brought as it was."""
    record = batch(captures=[capture(1), capture(2)], feedback=[feedback(1, "p-c-1")])
    images_missing = plan_admission(read_incoming(key_of(record), record.to_bytes()), {}, now=NOW)
    first = catalog.admit_batch(plan(record))
    state = (catalog.batches(), catalog.feedback(), catalog.quarantine(), len(catalog.samples()))
    for again in (plan(record, now=NOW + timedelta(days=1)), images_missing):
        assert catalog.admit_batch(again) == AdmissionResult(known=True)
    assert first == AdmissionResult(samples=2, feedback=1)
    assert (catalog.batches(), catalog.feedback(), catalog.quarantine(), len(catalog.samples())) == state


def test_another_record_under_a_taken_batch_id_goes_to_quarantine(catalog: Catalog) -> None:
    """Nothing is overwritten, and trying twice leaves one refusal."""
    catalog.admit_batch(plan(batch(captures=[capture(1)])))
    taken = catalog.batches()
    for _ in range(2):
        result = catalog.admit_batch(plan(batch(captures=[capture(2)])))
        assert result == AdmissionResult(conflict=True, quarantined=1)
    assert catalog.batches() == taken
    assert [sample.sample_id for sample in catalog.samples()] == ["c-1"]
    assert [row.reason for row in catalog.quarantine("cam-1")] == ["batch_conflict"]


def test_captures_and_verdicts_sent_again_in_another_batch_are_ignored(catalog: Catalog) -> None:
    """A device that lost its memory of what it sent makes no duplicates."""
    catalog.admit_batch(plan(batch(1, [capture(1)], feedback=[feedback(1, "p-c-1")])))
    catalog.set_status(["c-1"], SampleStatus.LABELLED)
    again = batch(2, [capture(1), capture(2)], feedback=[feedback(1, "p-c-1"), feedback(2, "p-c-2")])
    assert catalog.admit_batch(plan(again)) == AdmissionResult(samples=1, feedback=1, repeated=2)
    assert _status(catalog, "c-1") is SampleStatus.LABELLED
    assert len(catalog.samples()) == len(catalog.feedback()) == 2


def test_a_device_cannot_take_the_ids_of_another(catalog: Catalog) -> None:
    """An id known with another device or picture is refused with a reason, and the first owner keeps it."""
    catalog.admit_batch(plan(batch(captures=[capture(1)], feedback=[feedback(1, "p-c-1")])))
    thief = batch(captures=[capture(1), capture(2)], device="cam-2", feedback=[feedback(1, "p-c-1")])
    result = catalog.admit_batch(plan(thief))
    assert result == AdmissionResult(samples=1, quarantined=2)
    assert [row.reason for row in catalog.quarantine("cam-2")] == ["id_taken", "id_taken"]
    assert {sample.sample_id: sample.device_id for sample in catalog.samples()} == {"c-1": "cam-1", "c-2": "cam-2"}


def test_a_failing_admission_leaves_nothing(catalog: Catalog) -> None:
    """When the last row cannot be written, the first is not there either, and the batch is not acknowledged."""
    admitted = plan(batch(captures=[capture(1), capture(2)]))
    spoiled = replace(
        admitted, samples=(admitted.samples[0], replace(admitted.samples[1], captured_at=NOW.replace(tzinfo=None)))
    )
    with pytest.raises(CatalogError):
        catalog.admit_batch(spoiled)
    assert (catalog.samples(), catalog.batches(), catalog.devices()) == ([], [], [])
    assert catalog.admit_batch(admitted).samples == 2


def test_bad_records_are_taken_and_kept_apart(catalog: Catalog) -> None:
    """A record in quarantine counts as taken; one that names no batch only leaves its refusal."""
    catalog.admit_batch(plan_admission(read_incoming("inbox/cam-1/boot1-00000001.json", b"rubbish"), {}, now=NOW))
    catalog.admit_batch(plan_admission(read_incoming("inbox/strange", b"rubbish"), {}, now=NOW))
    assert [row.reason for row in catalog.quarantine()] == ["bad_schema", "bad_key"]
    assert catalog.batch_status([("cam-1", "boot1", 1), ("cam-1", "boot1", 2)]) == {
        ("cam-1", "boot1", 1): BatchStatus.QUARANTINED
    }
    assert catalog.acknowledgement("cam-1", now=NOW).through == {"boot1": 1}
    assert list(catalog.known_batches("cam-1")) == ["cam-1/boot1-00000001"]


def test_acknowledgement_stops_at_the_first_gap(catalog: Catalog) -> None:
    """Per boot and device the highest number without a gap from 1; what lies behind a gap waits for it."""
    taken = [("a", 1), ("a", 2), ("a", 4), ("b", 2), ("c", 1)]
    for boot, sequence in taken:
        catalog.admit_batch(plan(batch(sequence, boot_id=boot)))
    catalog.admit_batch(plan(batch(1, boot_id="z", device="cam-2")))
    acknowledged = catalog.acknowledgement("cam-1", now=NOW)
    assert acknowledged.through == {"a": 2, "c": 1}
    assert (acknowledged.device_id, acknowledged.updated_at) == ("cam-1", NOW)
    catalog.admit_batch(plan(batch(3, boot_id="a")))
    catalog.admit_batch(plan(batch(1, boot_id="b")))
    assert catalog.acknowledgement("cam-1", now=NOW).through == {"a": 4, "b": 2, "c": 1}
    assert catalog.acknowledgement("cam-9", now=NOW).through == {}


def test_acknowledgement_names_only_recent_boots(catalog: Catalog) -> None:
    """The document stays small however often a device reboots: the boots heard of last are in it."""
    for number in range(6):
        catalog.admit_batch(plan(batch(1, boot_id=f"boot{number}"), now=NOW + timedelta(minutes=number)))
    catalog.admit_batch(plan(batch(2, boot_id="boot0"), now=NOW + timedelta(hours=1)))
    through = catalog.acknowledgement("cam-1", now=NOW, recent_boots=3).through
    assert through == {"boot0": 2, "boot4": 1, "boot5": 1}


def test_newest_counters_need_no_clock(catalog: Catalog) -> None:
    """Of each device the counters of the last sequence of the boot that has seen most, in whatever order they came."""
    for boot, sequence, seen in (("late", 1, 500), ("z-early", 2, 300), ("z-early", 1, 100), ("late", 2, 500)):
        counters = DeviceCounters(frames_seen=seen, acknowledged=sequence)
        catalog.admit_batch(plan(batch(sequence, boot_id=boot, counters=counters)))
    catalog.admit_batch(plan_admission(read_incoming("inbox/cam-1/late-00000003.json", b"rubbish"), {}, now=NOW))
    catalog.admit_batch(plan(batch(1, device="cam-2")))
    counters_by_device = catalog.device_counters()
    assert counters_by_device["cam-1"] == DeviceCounters(frames_seen=500, acknowledged=2)
    assert counters_by_device["cam-2"].frames_seen == 100


def test_devices_are_seen_and_report(catalog: Catalog) -> None:
    """First and last sight are kept in the cloud's time, and the newest heartbeat replaces the one before."""
    catalog.admit_batch(plan(batch(1), now=NOW))
    for hours in (1, 2):
        reported = ReportedState(
            device_id="cam-1",
            boot_id="boot1",
            reported_at=NOW,
            agent_version=f"0.{hours}",
            counters=DeviceCounters(frames_seen=hours),
        )
        catalog.save_reported(reported, now=NOW + timedelta(hours=hours))
    catalog.admit_batch(plan(batch(2), now=NOW + timedelta(minutes=1)))
    (device,) = catalog.devices()
    assert (device.first_seen, device.last_seen) == (NOW, NOW + timedelta(hours=2))
    assert device.reported == reported
    catalog.register_device("cam-0", NOW)
    catalog.register_device("cam-1", NOW)
    assert [(d.device_id, d.reported) for d in catalog.devices()] == [("cam-0", None), ("cam-1", reported)]


# Pool


def test_samples_are_filtered_and_ordered(catalog: Catalog) -> None:
    """Every filter narrows, all together, and the order is by capture time, then id, whatever came first."""
    catalog.admit_batch(plan(batch(1, [capture(number) for number in (3, 1, 2, 0)])))
    catalog.admit_batch(plan(batch(1, [capture(2, "d")], device="cam-2")))
    catalog.set_status(["c-3"], SampleStatus.LABELLED)
    at = capture(2).captured_at

    def ids(**filters: object) -> list[str]:
        return [sample.sample_id for sample in catalog.samples(**filters)]  # type: ignore[arg-type]

    assert ids() == ["c-0", "c-1", "c-2", "d-2", "c-3"]
    assert ids(status=SampleStatus.LABELLED) == ["c-3"]
    assert ids(status=[SampleStatus.LABELLED, SampleStatus.POOL]) == ids()
    assert ids(devices=["cam-2"]) == ["d-2"]
    assert ids(devices=[]) == []
    assert ids(since=at) == ["c-2", "d-2", "c-3"]
    assert ids(until=at) == ["c-0", "c-1"]
    assert ids(ids=["c-1", "d-2", "nobody", "c-1"]) == ["c-1", "d-2"]
    assert ids(random_arm_only=True) == ["c-0", "c-2", "d-2"]
    assert ids(random_arm_only=True, devices=["cam-1"], since=at, status=SampleStatus.POOL) == ["c-2"]


def test_ids_by_their_beginning(catalog: Catalog) -> None:
    """A beginning is taken literally, letter case and wildcards included, and no more ids come than were asked for."""
    catalog.add_samples([replace(imported(1), sample_id=name) for name in ("ab-1", "ab-2", "AB-3", "a%", "b")])
    assert catalog.sample_ids("ab", 10) == ["ab-1", "ab-2"]
    assert catalog.sample_ids("ab", 1) == ["ab-1"]
    assert catalog.sample_ids("a%", 10) == ["a%"]
    assert catalog.sample_ids("c", 10) == []


def test_what_a_release_answered_in_a_period(catalog: Catalog) -> None:
    """Samples can be asked for by release, and each device tells since when it has answered with it."""
    catalog.admit_batch(plan(batch(captures=[capture(number) for number in (3, 4, 5)])))
    catalog.admit_batch(plan(batch(captures=[capture(6, "d")], device="cam-2")))
    catalog.admit_batch(plan(batch(2, captures=[capture(9, "e", prediction=detection(9))], device="cam-2")))
    assert [each.sample_id for each in catalog.samples(release_id="r1")] == ["c-3", "c-4", "c-5", "d-6"]
    assert [each.sample_id for each in catalog.samples(release_id="r2")] == ["e-9"]
    at = {each.sample_id: each.captured_at for each in catalog.samples()}
    assert catalog.first_captures("r1", NOW) == {"cam-1": at["c-3"], "cam-2": at["d-6"]}
    assert catalog.first_captures("r1", at["d-6"]) == {"cam-1": at["c-3"]}
    assert catalog.first_captures("r9", NOW) == {}


def test_batches_of_a_period_and_around_it(catalog: Catalog) -> None:
    """A device's batches of a period by its own clock come with the nearest on either side, if there are any."""
    for number in range(1, 7):
        catalog.admit_batch(plan(batch(number, created_at=NOW + timedelta(minutes=number - 30))))
    catalog.admit_batch(plan(batch(1, device="cam-2", created_at=NOW)))
    catalog.admit_batch(plan_admission(read_incoming("inbox/cam-1/boot1-00000007.json", b"rubbish"), {}, now=NOW))
    since, until = NOW - timedelta(minutes=27), NOW - timedelta(minutes=25)
    assert [each.sequence for each in catalog.batches_around("cam-1", since, until)] == [2, 3, 4, 5, 6]
    assert [each.sequence for each in catalog.batches_around("cam-1", NOW, NOW)] == [6]
    assert catalog.batches_around("cam-9", since, until) == []


def test_more_ids_than_one_query_takes(catalog: Catalog) -> None:
    """Asking for tens of thousands of ids works on both databases."""
    _fill(catalog, 3)
    wanted = [f"c-{number}" for number in range(70_000)]
    assert [sample.sample_id for sample in catalog.samples(ids=wanted)] == ["c-0", "c-1", "c-2"]


def test_setting_the_status_of_an_unknown_sample_moves_nothing(catalog: Catalog) -> None:
    """All or none."""
    _fill(catalog, 1)
    with pytest.raises(CatalogError, match="1 of 2"):
        catalog.set_status(["c-0", "nobody"], SampleStatus.SKIPPED)
    assert _status(catalog, "c-0") is SampleStatus.POOL


def test_counts_add_up(catalog: Catalog) -> None:
    """Counts by device, status and arms are those of the samples."""
    _fill(catalog, 5)
    catalog.set_status(["c-0"], SampleStatus.QUEUED)
    counts = {(c.device_id, c.status, c.arms): c.count for c in catalog.sample_counts()}
    assert counts == {
        ("cam-1", SampleStatus.POOL, ("random", "uncertain")): 2,
        ("cam-1", SampleStatus.POOL, ("uncertain",)): 2,
        ("cam-1", SampleStatus.QUEUED, ("random", "uncertain")): 1,
    }


def test_embedding_lengths_by_release(catalog: Catalog) -> None:
    """The next plan can check against what a release has sent before."""
    catalog.admit_batch(plan(batch(captures=[capture(1), capture(2, prediction=detection(2))])))
    catalog.add_samples([imported(1)])
    assert catalog.embedding_dims() == {"r1": 8, "r2": 8}


def test_feedback_joins_in_either_order(catalog: Catalog) -> None:
    """A verdict before or after its capture joins it, once; of another device or of no frame it never does."""
    catalog.admit_batch(plan(batch(1, feedback=[feedback(1, "p-c-1"), feedback(2, "p-c-9", frame_available=False)])))
    assert catalog.join_feedback() == FeedbackJoin(joined=0, frame_gone=1, waiting=1)
    catalog.admit_batch(plan(batch(2, [capture(1), capture(2)])))
    catalog.admit_batch(plan(batch(3, feedback=[feedback(3, "p-c-2"), feedback(4, "p-c-1")])))
    catalog.admit_batch(plan(batch(1, feedback=[feedback(5, "p-c-2")], device="cam-2")))
    for _ in range(2):
        assert catalog.join_feedback() == FeedbackJoin(joined=3, frame_gone=1, waiting=1)
    by_sample = catalog.feedback_by_sample()
    assert {key: [f.feedback_id for f in rows] for key, rows in by_sample.items()} == {
        "c-1": ["f-1", "f-4"],
        "c-2": ["f-3"],
    }
    assert [f.feedback_id for f in catalog.feedback(sample_ids=["c-1"])] == ["f-1", "f-4"]
    assert [f.feedback_id for f in catalog.feedback(device_id="cam-2", verdict="dismissed")] == ["f-5"]
    assert catalog.feedback(verdict="confirmed") == []


def test_a_verdict_of_a_frame_gone_joins_if_the_capture_came_all_the_same(catalog: Catalog) -> None:
    """What the device believed of the frame does not keep a verdict from its capture."""
    verdict = feedback(1, "p-c-1", frame_available=False)
    catalog.admit_batch(plan(batch(1, [capture(1)], feedback=[verdict])))
    assert catalog.join_feedback() == FeedbackJoin(joined=1, frame_gone=0, waiting=0)


# Rounds, selections, tasks


def test_a_round_opens_once_and_only_moves_forward(catalog: Catalog) -> None:
    """Opening again returns what stands; facts of the stages are merged; no phase is gone back to."""
    assert catalog.current_round() is None
    opened = catalog.open_round(1, budget=200, seed=7, now=NOW)
    assert catalog.open_round(1, budget=5, seed=8, now=NOW + timedelta(hours=1)) == opened == catalog.round(1)
    catalog.advance_round(1, RoundPhase.SELECTED, {"select": {"n": 3}}, now=NOW)
    catalog.advance_round(1, RoundPhase.SELECTED, {"more": 1.5}, now=NOW)
    with pytest.raises(CatalogError, match="beyond"):
        catalog.advance_round(1, RoundPhase.OPEN, now=NOW)
    current = catalog.current_round()
    assert current is not None
    assert (current.phase, current.facts, current.closed_at) == (
        RoundPhase.SELECTED,
        {"select": {"n": 3}, "more": 1.5},
        None,
    )
    closed = catalog.advance_round(1, RoundPhase.CLOSED, now=NOW + timedelta(hours=2))
    assert closed.closed_at == NOW + timedelta(hours=2)
    assert catalog.advance_round(1, RoundPhase.CLOSED, now=NOW + timedelta(hours=3)) == closed
    assert catalog.current_round() is None
    assert catalog.rounds() == [closed]
    assert catalog.round(2) is None
    with pytest.raises(CatalogError, match="no round 2"):
        catalog.advance_round(2, RoundPhase.SELECTED, now=NOW)


def test_facts_nobody_knows_are_null(catalog: Catalog) -> None:
    """NaN and infinities, which JSON has not, are stored as null on both databases."""
    catalog.open_round(1, budget=1, seed=0, now=NOW)
    catalog.advance_round(1, RoundPhase.TRAINED, {"train": {"nan": float("nan"), "l": [float("inf"), 1]}}, now=NOW)
    assert catalog.rounds()[0].facts == {"train": {"nan": None, "l": [None, 1]}}


def test_all_selections_come_by_round_and_rank_and_audits_are_known(catalog: Catalog) -> None:
    """What teaches and what never may is told over all rounds at once."""
    ids = _fill(catalog, 4)
    assert (catalog.selections(), catalog.audited()) == ([], set())
    _select(catalog, [ids[2], ids[0]])
    catalog.open_round(2, budget=1, seed=0, now=NOW)
    audit = SelectedRow(2, ids[1], 0, SelectionRole.AUDIT, 0.0, 0.5, ("audited",), 1, 1)
    catalog.save_selection(2, [audit])
    assert catalog.selections() == [*catalog.selection(1), audit]
    assert catalog.audited() == {ids[1], *(row.sample_id for row in catalog.selection(1) if row.role is audit.role)}


def test_a_selection_queues_samples_and_plans_tasks(catalog: Catalog) -> None:
    """In one step the samples leave the pool, the choice is explained and every sample has one planned task."""
    ids = _fill(catalog, 4)
    _select(catalog, [ids[2], ids[0]])
    assert catalog.selection(1) == _selected([ids[2], ids[0]])
    assert [(t.sample_id, t.rank, t.status, t.backend_task_id) for t in catalog.tasks(round_number=1)] == [
        ("c-2", 0, TaskStatus.PLANNED, None),
        ("c-0", 1, TaskStatus.PLANNED, None),
    ]
    assert [s.sample_id for s in catalog.samples(status=SampleStatus.QUEUED)] == ["c-0", "c-2"]


def test_the_same_selection_twice_is_nothing_new_and_another_is_refused(catalog: Catalog) -> None:
    """A restarted flow may save again what it saved; a different choice for the round is an error."""
    ids = _fill(catalog, 4)
    _select(catalog, ids[:2])
    catalog.save_selection(1, list(reversed(_selected(ids[:2]))))
    with pytest.raises(CatalogError, match="another selection"):
        catalog.save_selection(1, _selected(ids[2:]))
    assert len(catalog.tasks()) == 2
    assert _status(catalog, "c-2") is SampleStatus.POOL


def test_a_selection_can_grow(catalog: Catalog) -> None:
    """What is added is queued like the rest; adding it again changes nothing, and a wrong addition adds nothing."""
    ids = _fill(catalog, 5)
    _select(catalog, ids[:2])
    more = [replace(row, rank=row.rank + 2, role=SelectionRole.CONTESTED) for row in _selected(ids[2:4])]
    for _ in range(2):
        catalog.extend_selection(1, more)
    assert catalog.selection(1) == [*_selected(ids[:2]), *more]
    assert [task.status for task in catalog.tasks(round_number=1)] == [TaskStatus.PLANNED] * 4
    with pytest.raises(CatalogError, match="not in the pool"):
        catalog.extend_selection(1, [replace(more[0], rank=9), replace(more[0], rank=10, sample_id="c-4")])
    with pytest.raises(CatalogError, match="other rounds"):
        catalog.extend_selection(2, more)
    assert _status(catalog, "c-4") is SampleStatus.POOL


@pytest.mark.parametrize("bad", ["labelled", "queued", "unknown", "twice", "round"])
def test_a_selection_outside_the_pool_is_refused_whole(catalog: Catalog, bad: str) -> None:
    """One sample that is not in the pool, twice in the list, or a round nobody opened: nothing is stored."""
    ids = _fill(catalog, 4)
    if bad == "labelled":
        catalog.set_status([ids[1]], SampleStatus.LABELLED)
    if bad == "queued":
        _select(catalog, [ids[1]], round_number=2)
    chosen = {"unknown": [ids[0], "nobody"], "twice": [ids[0], ids[0]]}.get(bad, ids[:2])
    if bad != "round":
        catalog.open_round(1, budget=2, seed=0, now=NOW)
    with pytest.raises(CatalogError):
        catalog.save_selection(1, _selected(chosen))
    assert catalog.selection(1) == []
    assert catalog.tasks(round_number=1) == []
    assert _status(catalog, ids[0]) is SampleStatus.POOL


def test_what_explains_a_choice_comes_back_as_it_was(catalog: Catalog) -> None:
    """Every number that a choice rests on is kept; a sample that was never chosen has none."""
    ids = _fill(catalog, 3)
    catalog.open_round(1, budget=10, seed=0, now=NOW)
    told = SelectedRow(
        round_number=1,
        sample_id=ids[0],
        rank=1,
        role=SelectionRole.ACTIVE,
        utility=0.1 + 0.2,
        inclusion_probability=None,
        reasons=("unsure",),
        cluster=7,
        stands_for=4,
        explored=True,
        nearest_id=ids[2],
        nearest_cosine=1 / 3,
        cell=12,
        parts={"model": 2 / 3, "evidence": 0.0},
        policy_digest="d" * 64,
    )
    plain = SelectedRow(1, ids[1], 2, SelectionRole.AUDIT, 0.0, 0.01, ())
    catalog.save_selection(1, [told, plain])
    assert catalog.selection(1) == [told, plain]
    assert catalog.selected(ids[0]) == told
    assert catalog.selected(ids[2]) is None


def test_rows_of_an_older_schema_are_read(url: str) -> None:
    """A choice from before choices carried their numbers reads as one that is not explained."""
    with Catalog.open(url) as catalog:
        _select(catalog, _fill(catalog, 1))
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("UPDATE selections SET parts = NULL"))
        engine.dispose()
        row = catalog.selected("c-0")
    assert row is not None
    assert (row.parts, row.explored, row.policy_digest) == ({}, False, None)


def test_sent_tasks_bear_one_backend_id(catalog: Catalog) -> None:
    """Noting again is fine; a second id for a sample, or one id for two samples, is refused and notes nothing."""
    ids = _fill(catalog, 3)
    _select(catalog, ids)
    catalog.mark_sent({"c-0": "11"})
    catalog.mark_sent({"c-0": "11", "c-1": "12"})
    for wrong in ({"c-2": "13", "c-0": "99"}, {"c-2": "12"}, {"c-2": "13", "nobody": "14"}):
        with pytest.raises(CatalogError):
            catalog.mark_sent(wrong)
    assert {t.sample_id: t.backend_task_id for t in catalog.tasks(status=TaskStatus.SENT)} == {"c-0": "11", "c-1": "12"}
    assert [t.sample_id for t in catalog.tasks(status=TaskStatus.PLANNED)] == ["c-2"]
    catalog.mark_task("c-2", TaskStatus.SENT)
    assert catalog.tasks(status=TaskStatus.PLANNED) == []
    with pytest.raises(CatalogError):
        catalog.mark_task("nobody", TaskStatus.SENT)


def test_an_answered_task_stays_answered_when_its_sending_is_noted_late(catalog: Catalog) -> None:
    """A crash between sending and noting cannot undo an answer."""
    ids = _fill(catalog, 1)
    _select(catalog, ids)
    catalog.save_annotations([_annotation("a1", "c-0")])
    catalog.mark_sent({"c-0": "11"})
    (task,) = catalog.tasks()
    assert (task.status, task.backend_task_id) == (TaskStatus.COMPLETED, "11")


# Annotations


def test_annotations_label_and_skip(catalog: Catalog) -> None:
    """An answer labels the sample and completes the task; only skips skip both; one answer outweighs any skip."""
    ids = _fill(catalog, 3)
    _select(catalog, ids)
    rows = [
        _annotation("a1", "c-0"),
        _annotation("a2", "c-1", None),
        _annotation("a3", "c-2", None),
        _annotation("a4", "c-2", "bag"),
    ]
    assert catalog.save_annotations(rows) == 4
    assert [_status(catalog, i) for i in ids] == [SampleStatus.LABELLED, SampleStatus.SKIPPED, SampleStatus.LABELLED]
    assert [t.status for t in catalog.tasks()] == [TaskStatus.COMPLETED, TaskStatus.SKIPPED, TaskStatus.COMPLETED]
    assert catalog.annotations(round_number=1) == catalog.annotations() == rows
    assert catalog.annotations(round_number=2) == []


def test_the_newer_version_of_an_answer_stays(catalog: Catalog) -> None:
    """Polls that overlap or come out of order never bring an old answer back."""
    ids = _fill(catalog, 1)
    _select(catalog, ids)
    new = _annotation("a1", "c-0", "bag", minutes=5)
    assert catalog.save_annotations([_annotation("a1", "c-0", "shoe"), new]) == 2
    assert catalog.save_annotations([_annotation("a1", "c-0", "shoe"), new]) == 0
    assert catalog.annotations() == [new]
    with pytest.raises(CatalogError):
        catalog.save_annotations([_annotation("a2", "nobody")])


def test_an_answer_taken_back_queues_the_sample_again(catalog: Catalog) -> None:
    """Without answers a sample asks again; with one left it stays labelled; an imported one returns to the pool."""
    ids = _fill(catalog, 1)
    _select(catalog, ids)
    catalog.add_samples([imported(1)])
    catalog.save_annotations([_annotation(*pair) for pair in (("a1", "c-0"), ("a2", "c-0"), ("a3", "imported-1"))])
    assert catalog.delete_annotation("a1")
    assert _status(catalog, "c-0") is SampleStatus.LABELLED
    assert catalog.delete_annotation("a2")
    assert not catalog.delete_annotation("a2")
    assert _status(catalog, "c-0") is SampleStatus.QUEUED
    assert [t.status for t in catalog.tasks()] == [TaskStatus.SENT]
    catalog.delete_annotation("a3")
    assert _status(catalog, "imported-1") is SampleStatus.POOL


def test_answers_of_named_samples(catalog: Catalog) -> None:
    """Only the answers of the asked samples are read, within a round if one is given."""
    ids = _fill(catalog, 3)
    _select(catalog, ids[:2])
    catalog.save_annotations([_annotation(f"a-{each}", each) for each in ids])
    assert [row.sample_id for row in catalog.annotations(sample_ids=ids[1:])] == ids[1:]
    assert [row.sample_id for row in catalog.annotations(sample_ids=ids[1:], round_number=1)] == [ids[1]]
    assert catalog.annotations(sample_ids=[]) == []


def test_watermarks(catalog: Catalog) -> None:
    """A poller finds again how far it came."""
    assert catalog.watermark("annotations") is None
    for value in ("2026-01-01", "2026-02-01"):
        catalog.set_watermark("annotations", value)
        assert catalog.watermark("annotations") == value


# Datasets and models


def _dataset(count: int, round_number: int = 1) -> DatasetVersion:
    items = tuple(
        DatasetItem(f"c-{n}", f"captures/c/{n}.jpg", {"class": "bag"}, Split.TEST, "g", "cam-1", "front", 1.5, 0.02)
        for n in range(count)
    )
    return DatasetVersion(dataset_digest(items), round_number, NOW, items)


def test_dataset_versions_are_kept_as_they_were(catalog: Catalog) -> None:
    """A version comes back equal, saving it again keeps the first, and the one saved last is the latest."""
    assert catalog.latest_dataset_version() is None
    first, second = _dataset(2), _dataset(3, round_number=2)
    for dataset in (first, second, replace(first, round_number=9)):
        catalog.save_dataset_version(dataset)
    assert catalog.dataset_version(first.version) == first
    assert catalog.latest_dataset_version() == second
    assert catalog.dataset_version("unknown") is None


def test_an_unlearned_device_does_not_count(catalog: Catalog) -> None:
    """Its samples are found only by who asks for them, it stays so however often, and the questions are skipped."""
    catalog.admit_batch(plan(batch(captures=[capture(1), capture(2)])))
    catalog.admit_batch(plan(batch(captures=[capture(1, "d")], device="cam-2")))
    _select(catalog, ["c-1"])
    for later in (NOW, NOW + timedelta(days=1)):
        catalog.unlearn_device("cam-1", later)
    assert {device.device_id: device.unlearned_at for device in catalog.devices()} == {"cam-1": NOW, "cam-2": None}
    assert [sample.sample_id for sample in catalog.samples()] == ["d-1"]
    assert len(catalog.samples(unlearned_too=True)) == 3
    assert _same(catalog.sample("c-1"), catalog.samples(unlearned_too=True, ids=["c-1"])[0])
    assert list(catalog.first_captures("r1", NOW)) == ["cam-2"]
    assert [task.status for task in catalog.tasks()] == [TaskStatus.SKIPPED]
    with pytest.raises(CatalogError, match="not in the pool"):
        _select(catalog, ["c-2"], 2)
    catalog.relearn_device("cam-1")
    assert len(catalog.samples()) == 3
    assert [task.status for task in catalog.tasks()] == [TaskStatus.PLANNED]


def test_a_device_has_a_site_and_a_verdict_its_box(catalog: Catalog) -> None:
    """A site is noted, changed and forgotten; a strange device is told; the box of a verdict comes back."""
    catalog.admit_batch(plan(batch(captures=[capture(1)], feedback=[feedback(1, "p-c-1", box_id="b7")])))
    for site in ("gate", "yard", None):
        catalog.place_device("cam-1", site)
        assert [device.site for device in catalog.devices()] == [site]
    assert [row.box_id for row in catalog.feedback()] == ["b7"]
    for change in (catalog.relearn_device, lambda name: catalog.unlearn_device(name, NOW)):
        with pytest.raises(CatalogError, match="cam-9"):
            change("cam-9")


def test_who_taught_which_dataset(catalog: Catalog) -> None:
    """Only what teaches counts as taught, and an older version becomes the newest only when that is asked for."""
    tested = _dataset(1)
    items = tuple(replace(item, split=Split.TRAIN) for item in _dataset(2).items)
    taught = DatasetVersion(dataset_digest(items), 2, NOW, items)
    for dataset in (taught, tested):
        catalog.save_dataset_version(dataset)
    assert catalog.taught_by(["cam-1", "cam-2"]) == {taught.version}
    assert catalog.taught_by(["cam-2"]) == catalog.taught_by([]) == set()
    assert catalog.last_version_with("cam-1") == tested.version
    assert catalog.last_version_with("cam-2") is None
    catalog.save_dataset_version(taught)
    assert catalog.latest_dataset_version() == tested
    catalog.save_dataset_version(taught, renew=True)
    assert catalog.latest_dataset_version() == taught


def _model(name: str, dataset: DatasetVersion) -> ModelRow:
    return ModelRow(name, 1, dataset.version, NOW, ModelStatus.CANDIDATE, {"int8": "models/x"}, {"accuracy": 0.5})


def test_models_and_their_releases(catalog: Catalog) -> None:
    """Facts merge, the highest release number counts as released, and no number is given twice."""
    dataset = _dataset(1)
    with pytest.raises(CatalogError):
        catalog.save_model(_model("m1", dataset))
    catalog.save_dataset_version(dataset)
    for name in ("m1", "m2", "m3"):
        catalog.save_model(_model(name, dataset))
        catalog.save_model(_model(name, dataset))
    assert catalog.released_model() is None
    for name, number in (("m1", 2), ("m2", 1)):
        catalog.update_model(name, status=ModelStatus.RELEASED, release_id=f"r{number}", release_number=number)
    changed = catalog.update_model(
        "m3", gate={"accepted": False}, metrics={"nll": 1.0}, artifacts={"float": "models/y"}
    )
    assert changed == catalog.model("m3")
    assert changed.metrics == {"accuracy": 0.5, "nll": 1.0}
    assert changed.artifacts == {"int8": "models/x", "float": "models/y"}
    assert changed.gate == {"accepted": False}
    released = catalog.released_model()
    assert released is not None
    assert released.model_id == "m1"
    taken: list[dict[str, Any]] = [{"release_number": 2}, {"release_id": "r1"}]
    for wrong in taken:
        with pytest.raises(CatalogError):
            catalog.update_model("m3", **wrong)
    with pytest.raises(CatalogError, match="other content"):
        catalog.save_model(_model("m1", dataset))
    with pytest.raises(CatalogError, match="no model"):
        catalog.update_model("m9", status=ModelStatus.REFUSED)
    assert [model.model_id for model in catalog.models()] == ["m1", "m2", "m3"]
    assert catalog.model("m9") is None


# Opening, many at once, and dying


def test_the_migrations_make_the_tables(catalog: Catalog, url: str) -> None:
    """The schema that migrations build is the one the code uses."""
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    engine.dispose()


def test_opening_again_keeps_everything(url: str) -> None:
    """A catalog that was closed is as it was when opened again."""
    with Catalog.open(url) as first:
        _fill(first, 2)
    with Catalog.open(url) as second:
        assert len(second.samples()) == 2


def test_a_catalog_of_a_newer_version_is_left_alone(url: str) -> None:
    """An old program tells that the schema is newer, instead of writing into what it does not know."""
    Catalog.open(url).close()
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = 'f00d'"))
    engine.dispose()
    with pytest.raises(CatalogError) as caught:
        Catalog.open(url)
    assert "newer" in str(caught.value.hint)


_ADMIT = """
import sys
from curate.catalog.store import Catalog
from tests.catalog_builders import batch, capture, plan

url, device, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
plans = [plan(batch(n, [capture(n, device), capture(n + 1, device + "x")], device=device)) for n in range(1, 30)]
print("ready", flush=True)
sys.stdin.readline()
with Catalog.open(url) as catalog:
    for n in range(count):
        catalog.admit_batch(plans[n])
        print(n + 1, flush=True)
"""


def _admitting_process(url: str, device: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _ADMIT, url, device, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_may_open_and_write_at_once(url: str) -> None:
    """Three processes that create the schema and admit at the same moment all succeed, and nothing is lost."""
    processes = [_admitting_process(url, f"cam-{number}", 12) for number in range(3)]
    try:
        assert [_line(process) for process in processes] == ["ready"] * 3
        for process in processes:
            _go(process)
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    with Catalog.open(url) as catalog:
        assert len(catalog.batches()) == 3 * 12
        assert len(catalog.samples()) == 3 * 24
        assert catalog.acknowledgement("cam-1", now=NOW).through == {"boot1": 12}


def test_a_killed_writer_leaves_whole_batches(url: str) -> None:
    """After `kill -9` all that was reported taken is there, no batch is half there, and writing goes on."""
    process = _admitting_process(url, "cam-1", 29)
    try:
        assert _line(process) == "ready"
        _go(process)
        told = [int(_line(process)) for _ in range(5)]
    finally:
        process.kill()
        process.communicate()
    with Catalog.open(url) as catalog:
        batches = catalog.batches()
        assert len(batches) >= max(told)
        assert len(catalog.samples()) == 2 * len(batches)
        assert catalog.admit_batch(plan(batch(100, [capture(500)]))).samples == 1


def test_sqlite_writers_queue_behind_the_lock_file(tmp_path: Path) -> None:
    """While another process holds the lock a write waits, a read does not; freed, the write goes through."""
    with Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}") as catalog, ThreadPoolExecutor(1) as pool:
        with (tmp_path / "catalog.db.lock").open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            waiting = pool.submit(catalog.set_watermark, "name", "value")
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            assert catalog.watermark("name") is None
        waiting.result(timeout=10)
        assert catalog.watermark("name") == "value"


def test_threads_admitting_one_batch_admit_it_once(catalog: Catalog) -> None:
    """Of many at once one takes the batch and the others learn that it is known."""
    admitted = plan(batch(captures=[capture(1), capture(2)]))
    barrier = threading.Barrier(6)

    def admit(_: int) -> AdmissionResult:
        barrier.wait()
        return catalog.admit_batch(admitted)

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(admit, range(6)))
    assert sorted(result.samples for result in results) == [0, 0, 0, 0, 0, 2]
    assert sum(result.known for result in results) == 5
    assert len(catalog.samples()) == 2


def test_threads_selecting_one_sample_for_two_rounds(catalog: Catalog) -> None:
    """Two rounds that want the same sample at once: one gets it, the other is refused."""
    ids = _fill(catalog, 2)
    barrier = threading.Barrier(2)

    def select(number: int) -> bool:
        catalog.open_round(number, budget=2, seed=0, now=NOW)
        barrier.wait()
        try:
            catalog.save_selection(number, _selected(ids, number))
        except CatalogError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(select, (1, 2))) == [False, True]
    assert len(catalog.tasks()) == 2


@pytest.mark.parametrize("bad", ["", "no url", "sqlite://", "sqlite:///:memory:", "mysql://host/db"])
def test_urls_that_are_no_catalog(bad: str) -> None:
    """What is not a file or a PostgreSQL is refused with a hint."""
    with pytest.raises(CatalogError) as caught:
        Catalog.open(bad)
    assert caught.value.hint is not None


def test_an_unreachable_database_may_be_tried_again() -> None:
    """A database server that is down is a passing fault, and its password is not told."""
    (port,) = free_ports(1)
    with pytest.raises(CatalogError) as caught:
        Catalog.open(f"postgresql://gleaner:hunter2@127.0.0.1:{port}/x")
    assert caught.value.retryable
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    """A damaged or foreign file is an error of ours, not to be tried again."""
    path = tmp_path / "catalog.db"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(CatalogError) as caught:
        Catalog.open(f"sqlite:///{path}")
    assert not caught.value.retryable


def test_one_process_at_a_time_does_what_is_exclusive(catalog: Catalog) -> None:
    """While the lock is held nobody else gets it, a different one is free, and it is free again afterwards."""
    with catalog.exclusive("round"):
        with catalog.exclusive("other"):
            pass
        with pytest.raises(CatalogError) as refused, catalog.exclusive("round"):
            pass
        assert refused.value.retryable
    with catalog.exclusive("round"):
        pass


@pytest.mark.parametrize(
    ("change", "says_wrong"),
    [
        ({"verdict": "dismissed", "reason": "wrong_class"}, True),
        ({"verdict": "corrected", "reason": None}, True),
        ({"verdict": "confirmed", "reason": None}, False),
        ({"verdict": "dismissed", "reason": "not_interesting"}, False),
        ({"verdict": "dismissed", "reason": "duplicate"}, False),
        ({"verdict": "dismissed", "reason": "not_there", "quarantined": True}, False),
    ],
)
def test_not_interesting_and_floods_are_no_evidence(catalog: Catalog, change: dict[str, Any], says_wrong: bool) -> None:
    """The catalog keeps every verdict and says which of them speak against the prediction."""
    sent = Feedback.model_validate(feedback(1, "p-c-1").model_dump() | change)
    catalog.admit_batch(plan(batch(1, feedback=[sent])))
    assert [row.says_wrong for row in catalog.feedback()] == [says_wrong]
