from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contracts.capture import Arm, BatchRecord, CaptureRecord
from curate.contracts.telemetry import DeviceCounters
from edge_agent.clock import Clock
from edge_agent.durable import load_header_and_size, persist_bytes, seal, sealed_bytes, unseal
from edge_agent.errors import CorruptFileError, SpoolUnavailableError
from edge_agent.ledger import Ledger
from edge_agent.spool.files import SpoolFolder
from edge_agent.spool.measure import measure_put_rate, measure_recovery
from edge_agent.spool.spool import Spool, SpoolLimits
from tests.fakes.captures import DEVICE, NOW, broken_laws, make_capture, make_feedback, make_jpeg
from tests.fakes.doomed_agent import live
from tests.fakes.power_cut import fast_folder, power_cut_before

EAGER = SpoolLimits(min_free_bytes=0, batch_max_captures=4, batch_max_age_s=0.0)


def open_spool(root: Path, *, limits: SpoolLimits = EAGER, boot_id: str = "boot1") -> Spool:
    return Spool.open(root, limits, Ledger(), device_id=DEVICE, boot_id=boot_id)


def put(spool: Spool, number: int, *, arms: tuple[Arm, ...] = (Arm.UNCERTAIN,), size_bytes: int = 300) -> bool:
    jpeg = make_jpeg(number, size_bytes)
    return spool.put(make_capture(number, jpeg, arms), jpeg)


def flip_a_bit(path: Path, at: int = -5) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_sealed_file_gives_back_its_parts_and_notices_any_flipped_bit(tmp_path: Path) -> None:
    """Whatever single bit of a sealed file flips, reading it fails instead of lying."""
    raw = seal(b'{"a": 1}', b"payload")
    assert unseal(raw) == (b'{"a": 1}', b"payload")
    for at in range(len(raw)):
        damaged = bytearray(raw)
        damaged[at] ^= 1
        with pytest.raises(CorruptFileError):
            unseal(bytes(damaged))
    (tmp_path / "f").write_bytes(raw[:-1])
    with pytest.raises(CorruptFileError):
        load_header_and_size(tmp_path / "f")


def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    """A reopened spool holds every capture and feedback with the same counters, ready to be frozen at once."""
    spool = open_spool(tmp_path)
    assert all(put(spool, number) for number in range(3))
    spool.put_feedback(make_feedback(1))
    again = open_spool(tmp_path, limits=SpoolLimits(min_free_bytes=0, batch_max_age_s=999.0), boot_id="boot2")
    assert again.snapshot() == spool.snapshot()
    batch = again.freeze_batch(NOW)
    assert batch is not None
    assert batch.name == "boot2-00000001"
    record = BatchRecord.from_bytes(again.load_batch_record(batch) or b"")
    assert [capture.capture_id for capture in record.captures] == ["capture-0", "capture-1", "capture-2"]
    assert [feedback.feedback_id for feedback in record.feedback] == ["feedback-1"]


def test_half_written_files_are_removed_at_open(tmp_path: Path) -> None:
    """Temporary files of a crash are gone after opening and count as nothing."""
    spool = open_spool(tmp_path)
    put(spool, 1)
    leftover = tmp_path / "captures" / "000000000002.capture.tmp"
    leftover.write_bytes(b"half")
    again = open_spool(tmp_path)
    assert not leftover.exists()
    assert again.snapshot().spooled == 1


def test_a_frozen_batch_keeps_its_bytes_and_its_boot_over_restarts(tmp_path: Path) -> None:
    """A batch that was not acknowledged is sent byte for byte the same by a later process, under its first name."""
    spool = open_spool(tmp_path)
    put(spool, 1)
    batch = spool.freeze_batch(NOW)
    assert batch is not None
    raw = spool.load_batch_record(batch)
    again = open_spool(tmp_path, boot_id="boot2")
    assert [b.name for b in again.outstanding()] == ["boot1-00000001"]
    assert again.load_batch_record(again.outstanding()[0]) == raw


def test_an_acknowledgement_of_another_boot_or_a_lower_sequence_deletes_nothing(tmp_path: Path) -> None:
    """Only what is acknowledged, by boot and sequence, leaves the disk."""
    spool = open_spool(tmp_path)
    for number in range(8):
        put(spool, number)
    first, second = spool.freeze_batch(NOW), spool.freeze_batch(NOW)
    assert first is not None
    assert second is not None
    assert spool.acknowledge({"boot9": 5}) == 0
    assert spool.acknowledge({"boot1": 1}) == 1
    counters = spool.snapshot()
    assert (counters.acknowledged, counters.uploaded, counters.pending) == (4, 4, 4)
    assert len(list((tmp_path / "captures").iterdir())) == 4


def test_a_damaged_capture_goes_to_quarantine_and_the_batch_goes_on(tmp_path: Path) -> None:
    """One bad capture and one that vanished block nothing: both count as evicted and the others are frozen."""
    spool = open_spool(tmp_path)
    for number in range(4):
        put(spool, number)
    folder = SpoolFolder(tmp_path)
    flip_a_bit(folder.capture_path(2))
    folder.capture_path(3).unlink()
    batch = spool.freeze_batch(NOW)
    assert batch is not None
    assert batch.captures == (1, 4)
    counters = spool.snapshot()
    assert (counters.spooled, counters.evicted, counters.pending) == (4, 2, 2)
    assert spool.quarantined == 2
    assert (tmp_path / "quarantine" / "000000000002.capture").exists()
    assert "checksum" in (tmp_path / "quarantine" / "000000000002.capture.reason").read_text()
    assert open_spool(tmp_path).snapshot() == counters


@pytest.mark.parametrize("number", [1, 3])
def test_a_capture_damaged_between_two_runs_is_set_aside_at_open(tmp_path: Path, number: int) -> None:
    """A capture whose header is unreadable at open, the newest included, counts as evicted; the laws hold."""
    spool = open_spool(tmp_path)
    for i in range(3):
        put(spool, i)
    flip_a_bit(SpoolFolder(tmp_path).capture_path(number), at=400)
    again = open_spool(tmp_path)
    counters = again.snapshot()
    assert (counters.selected, counters.spooled, counters.evicted, counters.pending) == (3, 3, 1, 2)
    assert broken_laws(counters) == []
    assert again.quarantined == 1
    assert put(again, 9)
    assert again.snapshot().spooled == 4


def flip_header(path: Path) -> None:
    flip_a_bit(path, at=200)


@pytest.mark.parametrize("damage", [flip_a_bit, flip_header, Path.unlink])
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_gap_an_unreadable_batch_leaves_is_filled_by_an_empty_one(
    tmp_path: Path, damage: Callable[[Path], None], restart: bool, position: int
) -> None:
    """Whichever batch of a boot is damaged or gone, and whenever that is noticed, an empty record takes its sequence,
    and its captures and feedback go with another; the boot's sequence reaches the cloud whole."""
    spool = open_spool(tmp_path)
    for number in range(12):
        put(spool, number)
    for number in range(3):
        spool.put_feedback(make_feedback(number))
    batches = [batch for _ in range(3) if (batch := spool.freeze_batch(NOW))]
    path = SpoolFolder(tmp_path).batch_path(batches[position])
    damage(path)
    if restart and (path.exists() or position == 1):
        spool = open_spool(tmp_path, boot_id="boot2")
    for batch in spool.outstanding():
        spool.load_batch_record(batch)
    filler = spool.freeze_batch(NOW)
    assert filler is not None
    assert (filler.name, filler.captures, filler.feedback) == (batches[position].name, (), ())
    record = BatchRecord.from_bytes(spool.load_batch_record(filler) or b"")
    assert (record.boot_id, record.sequence, record.captures, record.feedback) == ("boot1", position + 1, [], [])
    assert record.counters == spool.snapshot()
    anew = spool.freeze_batch(NOW)
    assert anew is not None
    assert (anew.captures, anew.feedback) == (batches[position].captures, batches[position].feedback)
    assert spool.freeze_batch(NOW) is None
    assert spool.quarantined == 1
    assert sorted(b.sequence for b in spool.unacknowledged() if b.boot_id == "boot1" and b != anew) == [1, 2, 3]
    counters = spool.snapshot()
    assert open_spool(tmp_path, boot_id="boot3").snapshot() == counters
    assert spool.acknowledge({"boot1": 3, anew.boot_id: anew.sequence}) == 4
    assert spool.snapshot().pending == spool.snapshot().feedback_pending == 0


def test_a_gap_is_filled_when_no_more_batches_may_be_frozen(tmp_path: Path) -> None:
    """With as many batches waiting as allowed, the gap that holds up their acknowledgement is filled all the same."""
    spool = open_spool(tmp_path, limits=SpoolLimits(min_free_bytes=0, batch_max_age_s=0.0, max_batches=1))
    put(spool, 1)
    batch = spool.freeze_batch(NOW)
    assert batch is not None
    flip_header(SpoolFolder(tmp_path).batch_path(batch))
    again = open_spool(tmp_path, limits=SpoolLimits(min_free_bytes=0, batch_max_age_s=0.0, max_batches=0))
    filler = again.freeze_batch(NOW)
    assert filler is not None
    assert filler.name == batch.name
    assert again.freeze_batch(NOW) is None


def test_a_power_cut_while_a_gap_is_filled_leaves_it_filled_or_to_be_filled(tmp_path: Path) -> None:
    """Whatever system call is the last, the next process knows the batch or the gap, also at a boot's first batch."""
    for system_call in itertools.count(1):
        root = tmp_path / str(system_call)
        spool = open_spool(root)
        for number in range(8):
            put(spool, number)
        first, _ = spool.freeze_batch(NOW), spool.freeze_batch(NOW)
        assert first is not None
        flip_header(SpoolFolder(root).batch_path(first))
        with power_cut_before(system_call) as cut:
            spool = open_spool(root, boot_id="boot2")
            spool.freeze_batch(NOW)
        spool = open_spool(root, boot_id="boot3")
        while spool.freeze_batch(NOW) is not None:
            pass
        assert {1, 2} <= {batch.sequence for batch in spool.unacknowledged() if batch.boot_id == "boot1"}
        named = [number for batch in spool.unacknowledged() for number in batch.captures]
        assert sorted(named) == list(range(1, 9))
        if not cut:
            break


def test_an_uploaded_batch_that_is_damaged_is_not_sent_over_the_good_one(tmp_path: Path) -> None:
    """The bucket holds the record already: the empty one only keeps the place on the device."""
    spool = open_spool(tmp_path)
    put(spool, 1)
    batch = spool.freeze_batch(NOW)
    assert batch is not None
    spool.mark_uploaded(batch)
    flip_header(SpoolFolder(tmp_path).batch_path(batch))
    again = open_spool(tmp_path, boot_id="boot2")
    filler, anew = again.freeze_batch(NOW), again.freeze_batch(NOW)
    assert anew is not None
    assert again.outstanding() == [anew]
    assert again.unacknowledged() == [filler, anew]


def test_feedback_is_recognised_after_it_has_left_and_the_agent_has_restarted(tmp_path: Path) -> None:
    """The receipt of a verdict outlives its file and the process; a verdict that was never kept has none."""
    spool = open_spool(tmp_path)
    spool.put_feedback(make_feedback(1))
    spool.freeze_batch(NOW)
    spool.acknowledge({"boot1": 1})
    spool.put_feedback(make_feedback(2))
    for again in (spool, open_spool(tmp_path, boot_id="boot2")):
        receipts = [again.find_receipt(f"feedback-{number}") for number in (1, 2, 3)]
        assert [receipt and receipt.frame_available for receipt in receipts] == [True, True, None]


def test_receipts_are_bounded_and_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the verdicts that have left only the newest are remembered; those on the device always are."""
    monkeypatch.setattr("edge_agent.spool.index.REMEMBERED_RECEIPTS", 2)
    spool = open_spool(tmp_path)
    for number in range(1, 5):
        spool.put_feedback(make_feedback(number))
        spool.freeze_batch(NOW)
    spool.acknowledge({"boot1": 3})
    for again in (spool, open_spool(tmp_path, boot_id="boot2")):
        assert [bool(again.find_receipt(f"feedback-{number}")) for number in (1, 2, 3, 4)] == [False, True, True, True]


def test_feedback_lost_on_the_device_may_be_sent_again(tmp_path: Path) -> None:
    """A verdict whose file is damaged has no receipt any more, so the client's next try is kept."""
    spool = open_spool(tmp_path)
    spool.put_feedback(make_feedback(1))
    flip_a_bit(SpoolFolder(tmp_path).feedback_path(1))
    assert spool.freeze_batch(NOW) is None
    assert spool.find_receipt("feedback-1") is None


def test_unreadable_receipts_stop_nothing(tmp_path: Path) -> None:
    """A damaged file of receipts goes to quarantine and the spool opens."""
    spool = open_spool(tmp_path)
    spool.put_feedback(make_feedback(1))
    spool.freeze_batch(NOW)
    spool.acknowledge({"boot1": 1})
    flip_a_bit(tmp_path / "receipts")
    assert open_spool(tmp_path).quarantined == 1


@pytest.mark.parametrize("operation", ["feedback", "acknowledge"])
def test_a_verdict_sent_again_after_a_power_cut_counts_once(operation: str) -> None:
    """Whichever system call is the last, a retry with the same id leaves the verdict on the device or acknowledged,
    never both: what the device counts as acknowledged is what the cloud holds."""
    for system_call in itertools.count(1):
        with fast_folder() as name:
            root = Path(name)
            spool = open_spool(root)
            put(spool, 1)
            if operation == "acknowledge":
                spool.put_feedback(make_feedback(1))
                spool.freeze_batch(NOW)
            with power_cut_before(system_call) as cut:
                if operation == "acknowledge":
                    spool.acknowledge({"boot1": 1})
                else:
                    spool.put_feedback(make_feedback(1))
            again = open_spool(root, boot_id="boot2")
            if again.find_receipt("feedback-1") is None:
                again.put_feedback(make_feedback(1))
            while again.freeze_batch(NOW) is not None:
                pass
            again.acknowledge({"boot1": 1, "boot2": 1})
            assert again.snapshot().feedback_acknowledged == again.snapshot().feedback_spooled == 1
            if not cut:
                break
    assert system_call > 3


def test_a_damaged_batch_is_frozen_anew_and_counts_its_captures_once(tmp_path: Path) -> None:
    """What a damaged batch named waits again, and is not counted as uploaded twice."""
    spool = open_spool(tmp_path)
    put(spool, 1)
    spool.put_feedback(make_feedback(1))
    batch = spool.freeze_batch(NOW)
    assert batch is not None
    spool.mark_uploaded(batch)
    flip_a_bit(SpoolFolder(tmp_path).batch_path(batch))
    again = open_spool(tmp_path, boot_id="boot2")
    assert again.load_batch_record(again.unacknowledged()[0]) is None
    filler, second = again.freeze_batch(NOW), again.freeze_batch(NOW)
    assert filler is not None
    assert filler.name == batch.name
    assert second is not None
    assert (second.name, second.captures, second.feedback) == ("boot2-00000001", (1,), (1,))
    again.mark_uploaded(second)
    assert again.snapshot().uploaded == 1


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_losing_the_state_loses_no_capture(tmp_path: Path, damage: str) -> None:
    """Without a readable state file the counters come from the newest capture."""
    spool = open_spool(tmp_path)
    for number in range(3):
        put(spool, number)
    before = spool.snapshot()
    spool.persist()
    if damage == "flip":
        flip_a_bit(tmp_path / "state")
    else:
        (tmp_path / "state").unlink()
    assert open_spool(tmp_path).snapshot() == before


def test_damaged_feedback_is_given_up_and_counted(tmp_path: Path) -> None:
    """Damaged feedback will never arrive: it goes to quarantine and counts as given up, as does what the disk lost;
    pending is what lies there."""
    spool = open_spool(tmp_path)
    spool.put_feedback(make_feedback(1))
    spool.put_feedback(make_feedback(2))
    flip_a_bit(SpoolFolder(tmp_path).feedback_path(1))
    batch = spool.freeze_batch(NOW)
    assert batch is not None
    assert batch.feedback == (2,)
    spool.acknowledge({"boot1": 1})
    counters = spool.snapshot()
    assert (counters.feedback_spooled, counters.feedback_acknowledged, counters.feedback_pending) == (2, 1, 0)
    assert counters.feedback_given_up == {"unreadable": 1}
    assert open_spool(tmp_path).snapshot() == counters
    for number in (3, 4):
        spool.put_feedback(make_feedback(number))
    spool.persist()
    flip_header(SpoolFolder(tmp_path).feedback_path(3))
    SpoolFolder(tmp_path).feedback_path(4).unlink()
    again = open_spool(tmp_path)
    assert again.snapshot().feedback_given_up == {"unreadable": 2, "lost": 1}
    assert broken_laws(again.snapshot()) == []
    assert again.snapshot().feedback_pending == 0


def test_a_full_spool_gives_up_ordinary_captures_first_and_never_frozen_ones(tmp_path: Path) -> None:
    """Over its limit the spool evicts an ordinary capture, then drops a newcomer that is worth less than the rest."""
    probe = open_spool(tmp_path / "probe")
    put(probe, 1, arms=(Arm.RANDOM,))
    size_bytes = SpoolFolder(tmp_path / "probe").capture_path(1).stat().st_size
    limits = SpoolLimits(
        max_bytes=3 * size_bytes + 300, min_free_bytes=0, batch_max_captures=1, batch_max_age_s=0.0, max_batches=1
    )
    spool = open_spool(tmp_path / "spool", limits=limits)
    put(spool, 1)
    assert spool.freeze_batch(NOW) is not None
    put(spool, 2, arms=(Arm.RANDOM,))
    put(spool, 3)
    assert put(spool, 4, arms=(Arm.DISMISSED,))
    assert not put(spool, 5)
    counters = spool.snapshot()
    assert (counters.evicted, counters.dropped, counters.pending) == (1, {"spool_full": 1}, 3)
    assert [n for n, _ in SpoolFolder(tmp_path / "spool").numbered(tmp_path / "spool" / "captures", ".capture")] == [
        1,
        2,
        4,
    ]


def test_a_disk_without_room_drops_captures_and_says_why(tmp_path: Path) -> None:
    """Below the reserve of free room a capture is dropped as `disk_full`, counted, and nothing raises."""
    spool = open_spool(tmp_path, limits=SpoolLimits(min_free_bytes=1 << 60))
    assert not put(spool, 1)
    assert spool.snapshot().dropped == {"disk_full": 1}


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "disk_error"), (errno.EROFS, "disk_error")]
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_drops_the_capture_and_refuses_the_feedback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, reason: str
) -> None:
    """What was reported as not kept never turns up later; the laws hold, also after a restart."""
    spool = open_spool(tmp_path)
    put(spool, 1)

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        assert not put(spool, 2)
        with pytest.raises(SpoolUnavailableError):
            spool.put_feedback(make_feedback(1))
    counters = spool.snapshot()
    assert counters.dropped == {reason: 1}
    assert broken_laws(counters) == []
    spool.persist()
    again = open_spool(tmp_path)
    assert again.snapshot() == counters
    assert put(again, 3)
    again.put_feedback(make_feedback(2))
    assert again.snapshot().feedback_spooled == 1


def test_an_acknowledgement_makes_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When not even the state can be written until a file goes, one that leaves anyway goes first."""
    spool = open_spool(tmp_path)
    put(spool, 1)
    put(spool, 2)
    spool.put_feedback(make_feedback(1))
    spool.freeze_batch(NOW)
    first = SpoolFolder(tmp_path).capture_path(1)
    real = os.replace

    def refuse_while_full(source: str, target: str) -> None:
        if first.exists():
            raise OSError(errno.ENOSPC, "full")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse_while_full)
    assert spool.acknowledge({"boot1": 1}) == 1
    monkeypatch.undo()
    assert (spool.snapshot().acknowledged, spool.snapshot().feedback_acknowledged) == (2, 1)
    assert open_spool(tmp_path).snapshot() == spool.snapshot()


def test_a_file_left_by_a_put_that_was_reported_as_failed_is_removed_at_open(tmp_path: Path) -> None:
    """A capture file numbered above the newest truth is a leftover, not a capture."""
    spool = open_spool(tmp_path)
    put(spool, 1)
    folder = SpoolFolder(tmp_path)
    put(spool, 2)
    stray = folder.capture_path(2).read_bytes()
    folder.capture_path(2).unlink()
    (tmp_path / "state").unlink()
    spool = open_spool(tmp_path)
    for _ in range(9):
        spool.add_bytes_uploaded(1)
        spool.persist()
    folder.capture_path(2).write_bytes(stray)
    again = open_spool(tmp_path)
    assert again.snapshot().pending == 1
    assert not folder.capture_path(2).exists()


def test_feedback_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """A flood of feedback cannot fill the disk: the caller hears that it was not kept."""
    spool = open_spool(tmp_path, limits=SpoolLimits(max_feedback=2))
    spool.put_feedback(make_feedback(1))
    spool.put_feedback(make_feedback(2))
    with pytest.raises(SpoolUnavailableError):
        spool.put_feedback(make_feedback(3))
    assert spool.snapshot().feedback_spooled == 2


def test_a_kept_prediction_is_remembered_after_it_has_left(tmp_path: Path) -> None:
    """A late dismissal of a capture that was acknowledged already does not capture the frame again."""
    spool = open_spool(tmp_path)
    put(spool, 1)
    spool.freeze_batch(NOW)
    spool.acknowledge({"boot1": 1})
    assert spool.held_captures == 0
    assert spool.is_captured("prediction-1")
    assert not spool.is_captured("prediction-2")


def test_the_picture_of_a_capture_can_be_seen_while_it_is_held(tmp_path: Path) -> None:
    """It is found waiting, frozen and after a restart; not before it came, nor after it has left; a damaged one goes
    to quarantine as for any reader."""
    spool = open_spool(tmp_path)
    assert spool.find_image("prediction-1") is None
    for number in (1, 2):
        put(spool, number)
    jpeg = spool.find_image("prediction-1")
    assert jpeg is not None
    spool.freeze_batch(NOW)
    again = open_spool(tmp_path, boot_id="boot2")
    assert (spool.find_image("prediction-1"), again.find_image("prediction-1")) == (jpeg, jpeg)
    flip_a_bit(next((tmp_path / "captures").glob("*2.capture")))
    assert again.find_image("prediction-2") is None
    assert again.quarantined == 1
    spool.acknowledge({"boot1": 1})
    assert spool.find_image("prediction-1") is None


def test_threads_do_not_lose_or_double_anything(tmp_path: Path) -> None:
    """Captures, feedback, frames, freezing and acknowledging at once leave exact counters."""
    spool = open_spool(tmp_path, limits=SpoolLimits(min_free_bytes=0, batch_max_captures=3, batch_max_age_s=0.0))
    done = threading.Event()

    def sync() -> None:
        while not done.is_set() or spool.held_captures:
            batch = spool.freeze_batch(NOW)
            if batch is not None:
                spool.mark_uploaded(batch)
                spool.acknowledge({"boot1": batch.sequence})

    def tell() -> None:
        for number in range(30):
            spool.put_feedback(make_feedback(number))

    workers = [threading.Thread(target=tell), threading.Thread(target=sync)]
    workers += [
        threading.Thread(target=lambda first=first: [put(spool, n) for n in range(first, first + 15)])
        for first in (0, 100)
    ]
    for worker in workers:
        worker.start()
    workers[0].join()
    for worker in workers[2:]:
        worker.join()
    done.set()
    workers[1].join()
    counters = spool.snapshot()
    assert broken_laws(counters) == []
    assert (counters.spooled, counters.uploaded, counters.acknowledged, counters.pending) == (30, 30, 30, 0)
    assert counters.feedback_spooled == 30


def scene(root: Path) -> Spool:
    """A full spool with one batch acknowledgeable, one uploaded before a restart, and things waiting."""
    spool = open_spool(root, limits=CRAMPED)
    for number in range(1, 8):
        put(spool, number, size_bytes=500)
    spool.put_feedback(make_feedback(1))
    first, second = spool.freeze_batch(NOW), spool.freeze_batch(NOW)
    assert first is not None
    assert second is not None
    spool.mark_uploaded(first)
    return spool


CRAMPED = SpoolLimits(max_bytes=15_500, min_free_bytes=0, batch_max_captures=3, batch_max_age_s=0.0)
OPERATIONS: dict[str, Callable[[Spool], object]] = {
    "put": lambda spool: put(spool, 50),
    "put that evicts": lambda spool: put(spool, 50, arms=(Arm.RANDOM,), size_bytes=3000),
    "feedback": lambda spool: spool.put_feedback(make_feedback(50)),
    "freeze": lambda spool: spool.freeze_batch(NOW),
    "mark": lambda spool: spool.mark_uploaded(spool.outstanding()[0]),
    "acknowledge": lambda spool: spool.acknowledge({"boot1": 2}),
}


def outcome_of(operation: str, system_call: int) -> tuple[bool, DeviceCounters, DeviceCounters, list[str]]:
    """Cut the power in an operation; return (was cut, counters before, counters and files after a restart)."""
    with fast_folder() as name:
        root = Path(name)
        spool = scene(root)
        before = spool.snapshot()
        with power_cut_before(system_call) as cut:
            OPERATIONS[operation](spool)
        again = open_spool(root, limits=CRAMPED, boot_id="boot2")
        files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*"))
        assert broken_laws(again.snapshot()) == []
        assert again.held_captures == sum(file.endswith(".capture") for file in files) == again.snapshot().pending
        return bool(cut), before, again.snapshot(), files


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_power_cut_at_any_system_call_leaves_all_or_nothing(operation: str) -> None:
    """Whichever sync, rename or removal is the last, the reopened spool is as before the operation or as after it."""
    cut, before, after, files_after = outcome_of(operation, 10**6)
    assert not cut
    outcomes = []
    for system_call in itertools.count(1):
        cut, _, counters, files = outcome_of(operation, system_call)
        outcomes.append((counters, files))
        if not cut:
            break
    assert len(outcomes) > 3
    assert outcomes[0][0] == before
    assert outcomes[-1] == (after, files_after)
    assert all(outcome in (outcomes[0], outcomes[-1]) for outcome in outcomes)
    assert after.evicted == (1 if operation == "put that evicts" else 0)


def test_a_durable_write_syncs_the_file_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of system calls is fsync(file), rename, fsync(folder): neither half a file nor a forgotten name."""
    calls: list[str] = []

    def recorded(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            calls.append(name)
            real(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name, getattr(os, name)))
    persist_bytes(tmp_path / "f", b"new")
    assert calls == ["fsync", "replace", "fsync"]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def receive_all(connection: Connection) -> Iterator[str]:
    with contextlib.suppress(EOFError, OSError):
        while True:
            yield connection.recv_bytes().decode()


def test_kill_9_loses_no_capture_that_was_reported_as_kept(tmp_path: Path) -> None:
    """Over 20 kills at random moments, every put a child was sure of is on disk or acknowledged; the laws hold."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fakes.doomed_agent"])
    rng = random.Random(20)
    said: list[str] = []
    for life in range(20):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=live, args=(theirs, str(tmp_path / "spool"), f"boot{life}", life * 100_000))
        child.start()
        theirs.close()
        said.append(ours.recv_bytes().decode())
        time.sleep(rng.uniform(0.0, 0.08))
        child.kill()
        said.extend(receive_all(ours))
        ours.close()
        child.join()
        child.close()
    kept = {line.split()[1] for line in said if line.startswith("kept")}
    leaving = {name for line in said if line.startswith("leaving") for name in line.split()[1:]}
    spool = open_spool(tmp_path / "spool", boot_id="last")
    folder = SpoolFolder(tmp_path / "spool")
    held = {folder.load_capture(n)[0].capture_id for n, _ in folder.numbered(folder.captures, ".capture")}
    counters = spool.snapshot()
    assert len(kept) >= 20
    assert kept - leaving <= held
    assert broken_laws(counters) == []
    assert counters.evicted == spool.quarantined == 0
    assert counters.pending == len(held)
    assert counters.spooled >= len(kept | held)
    assert counters.frames_inferred >= counters.spooled


def test_the_most_valuable_captures_are_sent_first_and_the_oldest_too(tmp_path: Path) -> None:
    """Of many waiting captures a batch takes the dismissed ones and, for a quarter of it, what waited longest."""
    spool = open_spool(tmp_path)
    for number in range(1, 13):
        put(spool, number, arms=(Arm.DISMISSED,) if number > 9 else (Arm.UNCERTAIN,))
    first, second = spool.freeze_batch(NOW), spool.freeze_batch(NOW)
    assert first is not None
    assert second is not None
    assert (first.captures, second.captures) == ((1, 10, 11, 12), (2, 3, 4, 5))


def test_a_restart_changes_neither_worth_nor_order(tmp_path: Path) -> None:
    """What is read back from the files ranks as what was put."""
    spool = open_spool(tmp_path)
    for number in range(1, 9):
        put(spool, number, arms=(list(Arm)[number % len(Arm)],))
    again = open_spool(tmp_path, boot_id="boot2")
    orders = [[batch.captures for _ in range(2) if (batch := s.freeze_batch(NOW))] for s in (spool, again)]
    assert orders[0] == orders[1]


def test_evictions_are_counted_by_reason(tmp_path: Path) -> None:
    """What gave way, what was unreadable and what the disk lost add up to what was evicted, over restarts."""
    spool = open_spool(tmp_path, limits=SpoolLimits(max_bytes=8000, min_free_bytes=0))
    for number in range(8):
        assert put(spool, number, size_bytes=800)
    gave_way = spool.snapshot().evicted
    assert gave_way > 0
    spool.persist()
    held = sorted(path for path in (tmp_path / "captures").iterdir())
    flip_a_bit(held[-1], at=200)
    held[-2].unlink()
    counters = open_spool(tmp_path, boot_id="boot2").snapshot()
    assert counters.evicted_by == {"gave_way": gave_way, "unreadable": 1, "lost": 1}
    assert sum(counters.evicted_by.values()) == counters.evicted
    assert broken_laws(counters) == []


def test_a_full_disk_lets_the_more_valuable_replace_the_less(tmp_path: Path) -> None:
    """When others have filled the disk a dismissed capture still comes in, for an uncertain one of its size and no
    more; with nothing to give, it is dropped as `disk_full`."""
    spool = open_spool(tmp_path)
    for number in range(4):
        put(spool, number)
    cramped = open_spool(tmp_path, limits=SpoolLimits(min_free_bytes=1 << 60), boot_id="boot2")
    assert put(cramped, 5, arms=(Arm.DISMISSED,))
    counters = cramped.snapshot()
    assert 1 <= counters.evicted <= 2
    assert counters.pending == 5 - counters.evicted
    while cramped.freeze_batch(NOW) is not None:
        pass
    assert not put(cramped, 6, arms=(Arm.DISMISSED,))
    assert cramped.snapshot().dropped == {"disk_full": 1}


def test_feedback_travels_alone_when_captures_may_not(tmp_path: Path) -> None:
    """Without captures a batch holds the verdicts only, and nothing is frozen when there are none."""
    spool = open_spool(tmp_path)
    put(spool, 1)
    assert spool.freeze_batch(NOW, captures=False) is None
    spool.put_feedback(make_feedback(1))
    batch = spool.freeze_batch(NOW, captures=False)
    assert batch is not None
    assert (batch.captures, batch.feedback) == ((), (1,))


@pytest.mark.parametrize("set_by_hand", [False, True])
def test_a_capture_of_1970_gets_its_time_when_the_device_learns_it(tmp_path: Path, set_by_hand: bool) -> None:
    """A capture taken before the bucket told the time travels with the right one, also when somebody sets the system's
    clock in between; one taken after it has it at once, and both say how well the time was known."""
    world = {"system_s": 100.0, "monotonic_s": 50.0}
    clock = Clock(system=lambda: world["system_s"], monotonic=lambda: world["monotonic_s"])
    spool = Spool.open(tmp_path, EAGER, Ledger(), device_id=DEVICE, boot_id="boot", clock=clock)

    def take(number: int) -> None:
        jpeg = make_jpeg(number)
        record = make_capture(number, jpeg).model_copy(
            update={"captured_at": datetime.fromtimestamp(world["system_s"], UTC), "monotonic_s": world["monotonic_s"]}
        )
        assert spool.put(record, jpeg)

    take(1)
    for key in world:
        world[key] += 60.0
    if set_by_hand:
        world["system_s"] = NOW.timestamp()
    clock.learn(NOW, sent_s=world["monotonic_s"], received_s=world["monotonic_s"])
    take(2)
    batch = spool.freeze_batch(NOW)
    assert batch is not None
    first, second = BatchRecord.from_bytes(spool.load_batch_record(batch) or b"").captures
    assert abs(first.captured_at - (NOW - timedelta(seconds=60))) < timedelta(seconds=1)
    assert abs(second.captured_at - NOW) < timedelta(seconds=1)
    for record in (first, second):
        assert record.clock is not None
        assert record.clock.uncertainty_s is not None
    assert (first.clock.offset_s > 1e9, second.clock.offset_s > 1e9) == (True, not set_by_hand)


def test_what_a_disk_takes_and_how_long_opening_lasts_is_measured(tmp_path: Path) -> None:
    """The measurements the bench reports run on a small scale and open what they filled."""
    rate = measure_put_rate(tmp_path / "put", rounds=2, captures_a_round=3)
    assert rate.spool_per_s > 0.0
    assert rate.share > 0.0
    recovery = measure_recovery(tmp_path / "open", 40)
    assert open_spool(tmp_path / "open" / "spool").held_captures == recovery.captures == 40


_CUTS = st.lists(st.integers(1, 6), min_size=14, max_size=14)
"""Sizes of groups; as many as there can be captures."""


@settings(max_examples=20, deadline=None)
@given(arms=st.lists(st.sampled_from(list(Arm)), min_size=1, max_size=14), cuts=_CUTS)
def test_captures_that_come_together_fare_as_if_each_came_alone(arms: list[Arm], cuts: list[int]) -> None:
    """Groups of any size keep, drop and give up what one at a time would, and count the same; a restart finds it.

    A header is a few bytes longer when it names what leaves, so the limit lies far from what any number of them takes.
    """
    jpegs = [make_jpeg(number, 2000) for number in range(len(arms))]
    drafts = [(make_capture(n, jpegs[n], (arm,)), jpegs[n]) for n, arm in enumerate(arms)]
    limits = SpoolLimits(max_bytes=12_500, min_free_bytes=0)
    with fast_folder() as name:
        alone, together = (open_spool(Path(name) / place, limits=limits) for place in ("alone", "together"))
        expected = [alone.put(*draft) for draft in drafts]
        assert _put_in_groups(together, drafts, cuts) == expected
        assert together.snapshot() == alone.snapshot()
        held = [
            sorted(path.name for path in (Path(name) / place / "captures").iterdir()) for place in ("alone", "together")
        ]
        assert held[0] == held[1]
        together.persist()  # a refusal alone writes nothing
        assert open_spool(Path(name) / "together", limits=limits, boot_id="boot2").snapshot() == alone.snapshot()


@settings(max_examples=20, deadline=None)
@given(
    captures=st.lists(st.tuples(st.sampled_from(list(Arm)), st.integers(200, 3000)), min_size=1, max_size=14),
    cuts=_CUTS,
)
def test_groups_of_any_sizes_keep_to_the_limit_and_to_the_books(
    captures: list[tuple[Arm, int]], cuts: list[int]
) -> None:
    """However large they are, what is held fits, every capture is counted once, and a restart finds the same."""
    jpegs = [make_jpeg(number, size_bytes) for number, (_, size_bytes) in enumerate(captures)]
    drafts = [(make_capture(n, jpegs[n], (arm,)), jpegs[n]) for n, (arm, _) in enumerate(captures)]
    limits = SpoolLimits(max_bytes=12_000, min_free_bytes=0)
    with fast_folder() as name:
        spool = open_spool(Path(name), limits=limits)
        kept = _put_in_groups(spool, drafts, cuts)
        held = [path.stat().st_size for path in (Path(name) / "captures").iterdir()]
        told = spool.snapshot()
        assert sum(held) <= limits.max_bytes
        assert (told.selected, told.spooled) == (len(captures), sum(kept))
        assert sum(kept) - told.evicted == len(held) == spool.held_captures
        spool.persist()  # a refusal alone writes nothing
        assert open_spool(Path(name), limits=limits, boot_id="boot2").snapshot() == told


def _put_in_groups(spool: Spool, drafts: list[tuple[CaptureRecord, bytes]], cuts: list[int]) -> list[bool]:
    waiting, kept = list(drafts), []
    for cut in cuts:
        kept += spool.put_all(waiting[:cut])
        del waiting[:cut]
    return kept


def test_captures_that_come_together_share_the_folders_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file has its own fsync, and all of them one of the folder: the last of all calls before anybody is told."""
    spool = open_spool(tmp_path)
    synced = []
    fsync = os.fsync

    def note(handle: int) -> None:
        synced.append(os.path.isdir(f"/proc/self/fd/{handle}"))  # noqa: PTH112 - a handle's link, followed
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    jpegs = [make_jpeg(number) for number in range(5)]
    assert all(spool.put_all([(make_capture(n, jpeg), jpeg) for n, jpeg in enumerate(jpegs)]))
    assert synced == [False] * 5 + [True]


def test_a_picture_that_is_not_what_its_record_says_is_found_out(tmp_path: Path) -> None:
    """The record's digest seals the file: of another picture it does not unseal, and the capture is set aside."""
    spool = open_spool(tmp_path)
    assert spool.put(make_capture(1, make_jpeg(1)), make_jpeg(2))
    assert spool.load_capture(1) is None
    assert (spool.quarantined, spool.snapshot().evicted_by) == (1, {"unreadable": 1})


@given(header=st.binary(max_size=2000), payload_bytes=st.integers(0, 20_000))
def test_the_size_of_a_sealed_file_is_known_before_it_is_made(header: bytes, payload_bytes: int) -> None:
    """What the plan reckons with is what the file takes."""
    assert sealed_bytes(header, payload_bytes) == len(seal(header, bytes(payload_bytes)))
