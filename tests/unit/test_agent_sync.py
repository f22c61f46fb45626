from __future__ import annotations

import errno
import itertools
import logging
import random
import threading
from pathlib import Path

import pytest

from curate.contracts import paths
from curate.contracts.assignment import Acknowledgement
from curate.contracts.capture import BatchRecord
from curate.contracts.device_settings import BandwidthSpec, MeteredPolicy, TimeWindow
from curate.contracts.telemetry import ReportedState, UpdateEvent
from curate.errors import AccessDeniedError, BlobRefusedError, ClockSkewError
from edge_agent.ledger import Ledger
from edge_agent.report import DeviceReport
from edge_agent.spool.files import SpoolFolder
from edge_agent.spool.spool import Spool, SpoolLimits
from edge_agent.sync.loop import SyncLoop, SyncPolicy
from tests.fakes.blob_store import FakeBlobStore
from tests.fakes.captures import DEVICE, NOW, broken_laws, make_capture, make_feedback, make_jpeg
from tests.fakes.disk_faults import faulty_disk
from tests.fakes.power_cut import power_cut_before

LIMITS = SpoolLimits(min_free_bytes=0, batch_max_captures=2, batch_max_age_s=0.0, max_batches=8)
POLICY = SyncPolicy(heartbeat_s=15.0, resend_after_s=900.0, batches_per_turn=4)


class Device:
    """One agent's spool and sync loop with a clock of its own."""

    def __init__(
        self, root: Path, store: FakeBlobStore, *, boot_id: str = "boot1", policy: SyncPolicy = POLICY
    ) -> None:
        self.now_s = 1000.0
        self.bandwidth = BandwidthSpec()
        self.is_metered = False
        self.has_reserve = True
        self.ledger = Ledger()
        self.spool = Spool.open(
            root / "spool", LIMITS, self.ledger, device_id=DEVICE, boot_id=boot_id, monotonic=lambda: self.now_s
        )
        self.report = DeviceReport(root / "updates.json", agent_version="1.2.3")
        self.loop = SyncLoop(
            self.spool,
            store,
            self.report,
            policy,
            bandwidth=lambda: self.bandwidth,
            is_metered=lambda: self.is_metered,
            keep_reserve=lambda: self.has_reserve,
            monotonic=lambda: self.now_s,
            rng=random.Random(3),
        )

    def put(self, *numbers: int) -> None:
        for number in numbers:
            jpeg = make_jpeg(number)
            assert self.spool.put(make_capture(number, jpeg), jpeg)

    def turn(self, after_s: float = 2.0) -> bool:
        self.now_s += after_s
        return self.loop.turn(NOW)


def acknowledge(store: FakeBlobStore, **through: int) -> None:
    document = Acknowledgement(device_id=DEVICE, through=through, updated_at=NOW)
    store.blobs[paths.ack_key(DEVICE)] = document.to_bytes()


@pytest.fixture
def store() -> FakeBlobStore:
    return FakeBlobStore()


@pytest.fixture
def device(tmp_path: Path, store: FakeBlobStore) -> Device:
    return Device(tmp_path, store)


def test_blobs_go_before_their_record_and_batches_go_in_order(device: Device, store: FakeBlobStore) -> None:
    """No record is visible before its images, and a boot's batches appear in sequence."""
    device.put(1, 2, 3, 4)
    device.turn()
    puts = [key for key in store.keys("put") if not key.startswith("twin/")]
    first, second = paths.inbox_key(DEVICE, "boot1", 1), paths.inbox_key(DEVICE, "boot1", 2)
    assert [puts.index(first), puts.index(second)] == [2, 5]
    record = BatchRecord.from_bytes(store.blobs[second])
    assert [capture.frame_index for capture in record.captures] == [3, 4]
    assert store.blobs[paths.capture_key(DEVICE, record.captures[0].image.sha256)] == make_jpeg(3)
    assert device.spool.snapshot().uploaded == 4


def test_nothing_is_deleted_before_the_acknowledgement_and_all_of_it_after(
    device: Device, store: FakeBlobStore, tmp_path: Path
) -> None:
    """Uploaded captures stay on disk until `through` covers their batch."""
    device.put(1, 2)
    device.spool.put_feedback(make_feedback(1))
    device.turn()
    device.turn()
    assert device.spool.snapshot().pending == 2
    acknowledge(store, boot1=1)
    device.turn()
    counters = device.spool.snapshot()
    assert (counters.acknowledged, counters.pending, counters.feedback_pending) == (2, 0, 0)
    assert [path for name in ("captures", "feedback", "outbox") for path in (tmp_path / "spool" / name).iterdir()] == []


def test_bytes_uploaded_are_what_was_sent(device: Device, store: FakeBlobStore) -> None:
    """The counter is the sum of images and records put; a blob sent before a failure is not sent again."""
    device.put(1, 2)
    store.fail_next(1, after=3)  # heartbeat, two blobs pass; the record fails
    device.turn()
    device.turn(60.0)
    blobs = [key for key in store.keys("put") if key.startswith(paths.CAPTURES)]
    assert len(blobs) == len(set(blobs)) == 2
    record = store.blobs[paths.inbox_key(DEVICE, "boot1", 1)]
    assert device.spool.snapshot().bytes_uploaded == 600 + len(record)


def test_an_answer_lost_on_the_way_counts_the_batch_once(device: Device, store: FakeBlobStore) -> None:
    """A record that was taken although the put failed is sent again, the same, and counted once."""
    device.put(1, 2)
    store.commit_then_fail_next(1, after=3)
    device.turn()
    raw = store.blobs[paths.inbox_key(DEVICE, "boot1", 1)]
    assert device.spool.snapshot().uploaded == 0
    device.turn(60.0)
    assert store.blobs[paths.inbox_key(DEVICE, "boot1", 1)] == raw
    assert device.spool.snapshot().uploaded == 2


def test_an_acknowledgement_of_an_upload_we_never_heard_back_from_counts_it_as_uploaded(
    device: Device, store: FakeBlobStore
) -> None:
    """When the cloud has it, it was uploaded: uploaded and acknowledged agree."""
    device.put(1, 2)
    store.commit_then_fail_next(1, after=3)
    device.turn()
    acknowledge(store, boot1=1)
    device.turn(60.0)
    counters = device.spool.snapshot()
    assert (counters.uploaded, counters.acknowledged) == (2, 2)


def test_after_a_restart_only_unfinished_uploads_are_sent_again(
    device: Device, store: FakeBlobStore, tmp_path: Path
) -> None:
    """A batch known to be uploaded rests until acknowledged; one that was not is sent, older boots first."""
    device.put(1, 2)
    device.turn()
    device.put(3, 4)
    store.fail_next(1, after=1)
    device.turn()
    again = Device(tmp_path, store, boot_id="boot2")
    again.put(5, 6)
    store.operations.clear()
    again.turn()
    inbox = [key for key in store.keys("put") if key.startswith(paths.INBOX)]
    assert inbox == [paths.inbox_key(DEVICE, "boot1", 2), paths.inbox_key(DEVICE, "boot2", 1)]
    assert again.spool.snapshot().uploaded == 6


def test_a_batch_nobody_acknowledges_is_sent_again_after_long(device: Device, store: FakeBlobStore) -> None:
    """A store that lost what it had accepted gets it again, byte for byte, without counting captures twice."""
    device.put(1, 2)
    device.turn()
    lost = dict(store.blobs)
    store.blobs.clear()
    device.turn(800.0)
    assert paths.inbox_key(DEVICE, "boot1", 1) not in store.blobs
    device.turn(200.0)
    assert {key: raw for key, raw in store.blobs.items() if not key.startswith("twin/")} == {
        key: raw for key, raw in lost.items() if not key.startswith("twin/")
    }
    assert device.spool.snapshot().uploaded == 2


def test_what_stays_unacknowledged_is_sent_again_ever_more_rarely(device: Device, store: FakeBlobStore) -> None:
    """Sends of a batch that waits in the cloud are twice as far apart each time, up to eight hours, and never end."""
    device.put(1, 2)
    sent_s: list[float] = []
    for turn in range(24 * 4 * 2 + 1):
        store.operations.clear()
        device.turn(900.0 if turn else 0.0)
        if paths.inbox_key(DEVICE, "boot1", 1) in store.keys("put"):
            sent_s.append(turn * 900.0)
    waits = [after - before for before, after in itertools.pairwise(sent_s)]
    assert waits[:5] == [900.0 * 2**number for number in range(5)]
    assert set(waits[5:]) == {28800.0}


def test_a_link_that_is_down_is_logged_once_and_its_return_once(
    device: Device, store: FakeBlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """However long the outage, the log holds one line for its start and one for its end; nothing is lost."""
    caplog.set_level(logging.INFO)
    device.turn()
    store.is_down = True
    device.put(1, 2)
    for _ in range(50):
        device.turn(61.0)
    assert device.spool.snapshot().pending == 2
    store.heal()
    for _ in range(3):
        device.turn(61.0)
    lines = [record.getMessage() for record in caplog.records if "link" in record.getMessage()]
    assert [("down" in line, "back" in line) for line in lines] == [(True, False), (False, True)]
    assert device.spool.snapshot().uploaded == 2


def test_a_link_that_is_down_is_asked_ever_more_rarely(device: Device, store: FakeBlobStore) -> None:
    """Over an hour of outage with a turn every 2 s the agent tries far less often than it turns."""
    device.turn()
    store.is_down = True
    device.put(1, 2)
    for _ in range(1800):
        device.turn(2.0)
    assert 60 <= len(store.operations) <= 300


def test_the_disk_work_goes_on_while_the_link_rests(device: Device, store: FakeBlobStore) -> None:
    """Batches are frozen up to the limit during an outage, and captures beyond it wait."""
    device.turn()
    store.is_down = True
    device.put(*range(20))
    device.turn()
    device.turn(0.0)
    assert len(device.spool.unacknowledged()) == LIMITS.max_batches
    store.heal()
    for _ in range(8):
        device.turn(61.0)
        acknowledge(store, boot1=len([key for key in store.blobs if key.startswith(paths.INBOX)]))
    assert device.spool.snapshot().pending == 0


def test_denied_access_rests_one_step_long_and_is_logged_once(
    device: Device, store: FakeBlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that may not upload still reports; the refusal is one log line and a slow retry."""
    store.refuse[paths.CAPTURES] = AccessDeniedError("not yours")
    device.put(1, 2)
    for _ in range(100):
        device.turn(2.0)
    assert len([key for key in store.keys("put") if key.startswith(paths.CAPTURES)]) == 1
    assert len([key for key in store.keys("put") if key.startswith("twin/")]) >= 10
    assert [record.getMessage() for record in caplog.records if "refused" in record.getMessage()] == [
        "upload was refused: not yours"
    ]
    store.heal()
    device.turn(300.0)
    assert device.spool.snapshot().uploaded == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"not json",
        b'{"device_id": "cam-2", "through": {"boot1": 9}, "updated_at": "2026-11-02T12:00:00Z"}',
        b"x" * 2_000_000,
    ],
)
def test_a_bad_acknowledgement_deletes_nothing_and_blocks_nothing(
    device: Device, store: FakeBlobStore, raw: bytes
) -> None:
    """Garbage, another device's document or a huge one is refused; uploads and heartbeats go on."""
    store.blobs[paths.ack_key(DEVICE)] = raw
    device.put(1, 2)
    device.turn()
    device.put(3, 4)
    device.turn()
    assert device.spool.snapshot().pending == 4
    assert device.spool.snapshot().uploaded == 4


def test_a_capture_that_vanishes_after_freezing_does_not_block_its_batch(
    device: Device, store: FakeBlobStore, tmp_path: Path
) -> None:
    """An empty record and one with the rest go; the lost one counts as evicted and never as uploaded."""
    device.turn()
    store.is_down = True
    device.put(1, 2)
    device.turn()
    store.heal()
    SpoolFolder(tmp_path / "spool").capture_path(1).unlink()
    for _ in range(2):
        device.turn(61.0)
    acknowledge(store, boot1=2)
    device.turn(61.0)
    counters = device.spool.snapshot()
    assert (counters.evicted, counters.uploaded, counters.acknowledged, counters.pending) == (1, 1, 1, 0)


@pytest.mark.parametrize("restart", [False, True])
def test_a_damaged_batch_does_not_hold_up_the_acknowledgement_of_later_ones(
    device: Device, store: FakeBlobStore, tmp_path: Path, restart: bool
) -> None:
    """An empty record arrives under the damaged batch's name, and its captures, whole, under another."""
    device.turn()
    store.is_down = True
    device.put(1, 2, 3, 4)
    device.turn()
    store.heal()
    path = SpoolFolder(tmp_path / "spool").outbox / "boot1-00000001.batch"
    path.write_bytes(path.read_bytes()[:300] if restart else path.read_bytes()[:-1] + b" ")
    if restart:
        device = Device(tmp_path, store, boot_id="boot2")
    for _ in range(2):
        device.turn(61.0)
    records = [BatchRecord.from_bytes(store.blobs[paths.inbox_key(DEVICE, "boot1", n)]) for n in (1, 2)]
    assert [len(record.captures) for record in records] == [0, 2]
    another = paths.inbox_key(DEVICE, "boot2", 1) if restart else paths.inbox_key(DEVICE, "boot1", 3)
    assert [capture.frame_index for capture in BatchRecord.from_bytes(store.blobs[another]).captures] == [1, 2]
    acknowledge(store, boot1=2 if restart else 3, boot2=1)
    device.turn()
    counters = device.spool.snapshot()
    assert (counters.uploaded, counters.acknowledged, counters.pending) == (4, 4, 0)


@pytest.mark.parametrize("was_sent", [False, True])
def test_no_record_names_a_picture_that_is_gone(
    device: Device, store: FakeBlobStore, tmp_path: Path, was_sent: bool
) -> None:
    """A picture whose file is damaged before its batch went leaves the batch; one that arrived before is left alone."""
    device.turn()
    store.is_down = not was_sent
    device.put(1, 2, 3)
    device.turn()
    store.heal()
    folder = SpoolFolder(tmp_path / "spool")
    path = folder.capture_path(1)
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(3):
        device.turn(61.0 if not was_sent else 900.0)
    records = [BatchRecord.from_bytes(raw) for key, raw in store.blobs.items() if key.startswith(paths.INBOX)]
    named = [capture for record in records for capture in record.captures]
    assert {paths.capture_key(DEVICE, capture.image.sha256) for capture in named} <= store.blobs.keys()
    assert sorted(capture.frame_index for capture in named) == ([1, 2, 3] if was_sent else [2, 3])
    acknowledge(store, boot1=len(records))
    device.turn(61.0)
    counters = device.spool.snapshot()
    assert (counters.pending, counters.evicted) == (0, 1)
    assert not broken_laws(counters)


def test_the_heartbeat_says_what_the_device_knows(device: Device, store: FakeBlobStore) -> None:
    """reported.json carries versions, counters, errors and updates, at most once per interval."""
    device.report.set_release("r7")
    device.report.set_assignment(4, "busy")
    device.report.count_error("SelfCheckError")
    device.report.record_update(UpdateEvent(at=NOW, outcome="swapped", release_id="r7", swap_gap_ms=1.5, frames_lost=0))
    device.ledger.frame_inferred(500)
    device.put(1)
    device.turn()
    device.turn()
    state = ReportedState.from_bytes(store.blobs[paths.reported_key(DEVICE)])
    assert (state.device_id, state.boot_id, state.agent_version) == (DEVICE, "boot1", "1.2.3")
    assert (state.release_id, state.assignment_version, state.policy_version) == ("r7", 4, "busy")
    assert state.errors == {"SelfCheckError": 1}
    assert [event.outcome for event in state.updates] == ["swapped"]
    assert (state.counters.frames_seen, state.counters.spooled, state.counters.bytes_seen) == (1, 1, 500)
    assert store.keys("put").count(paths.reported_key(DEVICE)) == 1
    device.turn(15.0 * 1.25)
    assert store.keys("put").count(paths.reported_key(DEVICE)) == 2


def test_update_events_survive_a_restart_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    """A refusal is still told by the next process; the list is bounded; a damaged file starts empty."""
    report = DeviceReport(tmp_path / "updates.json", agent_version="1")
    for number in range(25):
        report.record_update(UpdateEvent(at=NOW, outcome="refused", detail=str(number)))

    def details() -> list[str | None]:
        again = DeviceReport(tmp_path / "updates.json", agent_version="1")
        state = again.state(device_id=DEVICE, boot_id="b", now=NOW, counters=Ledger().snapshot(), quarantined=0)
        return [event.detail for event in state.updates]

    assert details() == [str(number) for number in range(5, 25)]
    (tmp_path / "updates.json").write_bytes(b"{")
    assert details() == []


def test_a_power_cut_between_the_record_and_its_mark_counts_the_upload_once(
    device: Device, store: FakeBlobStore, tmp_path: Path
) -> None:
    """The record arrived, the note of it did not: the next process sends it again and counts it once."""
    device.turn()
    device.put(1, 2)
    store.is_down = True
    device.turn(10.0)
    store.heal()
    with power_cut_before(1) as cut:
        device.turn(61.0)
    assert cut
    assert paths.inbox_key(DEVICE, "boot1", 1) in store.blobs
    again = Device(tmp_path, store, boot_id="boot2")
    assert again.spool.snapshot().uploaded == 0
    again.turn()
    assert again.spool.snapshot().uploaded == 2


def test_the_loop_outlives_an_unforeseen_error_and_saves_the_counters_when_it_stops(
    tmp_path: Path, store: FakeBlobStore
) -> None:
    """A bug in one turn is logged and counted; stopping makes the last counters durable."""
    device = Device(tmp_path, store, policy=SyncPolicy(interval_s=0.01))
    device.put(1, 2)
    stop = threading.Event()
    real_put, calls = store.put, []

    def put(key: str, data: bytes, *, content_type: str = "") -> None:
        calls.append(key)
        if len(calls) == 1:
            raise ZeroDivisionError
        real_put(key, data, content_type=content_type)
        if key.startswith(paths.INBOX):
            device.ledger.frame_inferred(7)
            stop.set()

    store.put = put  # type: ignore[method-assign]
    thread = threading.Thread(target=device.loop.run, args=(stop,))
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()
    again = Device(tmp_path, store, boot_id="boot2")
    assert again.spool.snapshot().uploaded == 2
    assert again.spool.snapshot().bytes_seen == 7


def reported(store: FakeBlobStore) -> ReportedState:
    return ReportedState.from_bytes(store.blobs[paths.reported_key(DEVICE)])


def uploads(store: FakeBlobStore) -> list[str]:
    return [key for key in store.keys("put") if not key.startswith("twin/")]


def test_uploads_stay_inside_the_hourly_budget_and_the_rest_is_told(device: Device, store: FakeBlobStore) -> None:
    """From an empty budget bytes go out no faster than allowed, one object over at most; the heartbeat names what waits
    and why, and in the end all of it has gone."""
    device.bandwidth = BandwidthSpec(max_bytes_per_hour=64 * 1024, burst_bytes=64 * 1024)
    device.put(*range(6))
    device.turn()
    assert uploads(store) == []
    told, started_s = set(), device.now_s
    for _ in range(100):
        device.turn(20.0)
        told |= {tuple(reported(store).limits.held_back)}
        sent = sum(len(raw) for key, raw in store.blobs.items() if not key.startswith("twin/"))
        assert sent <= (device.now_s - started_s) / 3600 * 64 * 1024 + 3000
    assert told == {("budget",), ()}
    assert device.spool.snapshot().uploaded == 6
    heartbeats = store.keys("put").count(paths.reported_key(DEVICE))
    assert heartbeats * len(store.blobs[paths.reported_key(DEVICE)]) <= 2000 * 64 * 1024 / 3600 * 0.3


def test_what_waits_for_budget_stays_out_of_batches(device: Device, store: FakeBlobStore) -> None:
    """While nothing may be sent captures are not frozen, so a more valuable one that comes later still goes first."""
    device.bandwidth = BandwidthSpec(max_bytes_per_hour=64 * 1024, burst_bytes=64 * 1024)
    device.put(1, 2)
    device.turn(1.0)
    device.put(3, 4, 5, 6, 7, 8)
    device.turn(1.0)
    assert len(device.spool.unacknowledged()) == 1


def test_nothing_is_frozen_before_the_bucket_was_heard(device: Device, store: FakeBlobStore) -> None:
    """However long the first answer takes to come, nothing is put into batches: their times could not be put right any
    more, and nothing in them could give way."""
    store.is_down = True
    device.put(1, 2, 3)
    device.spool.put_feedback(make_feedback(1))
    for _ in range(10):
        device.turn(61.0)
    assert device.spool.unacknowledged() == []
    store.heal()
    device.turn(61.0)
    assert device.spool.snapshot().uploaded == 3


@pytest.mark.parametrize("hold", ["window", "metered"])
def test_captures_are_held_back_and_feedback_goes(device: Device, store: FakeBlobStore, hold: str) -> None:
    """Outside the windows, and on a metered link, a verdict still travels, in a batch of its own; captures follow when
    they may."""
    device.turn()
    device.put(1, 2)
    store.is_down = True
    device.turn()  # frozen before the hold
    store.heal()
    store.operations.clear()
    device.bandwidth = BandwidthSpec(windows=(TimeWindow(start="22:00", end="23:00"),) if hold == "window" else ())
    device.is_metered = hold == "metered"
    device.put(3, 4)
    device.spool.put_feedback(make_feedback(1))
    device.turn(61.0)
    records = [BatchRecord.from_bytes(store.blobs[key]) for key in uploads(store)]
    assert [(record.captures, len(record.feedback)) for record in records] == [([], 1)]
    assert reported(store).limits.held_back == {hold: 4}
    device.bandwidth, device.is_metered = BandwidthSpec(), False
    device.turn()
    assert device.spool.snapshot().uploaded == 4


def test_nothing_but_the_heartbeat_goes_where_nothing_may(device: Device, store: FakeBlobStore) -> None:
    """The strictest metered policy sends no feedback either, loses none, and still says that the device lives."""
    device.bandwidth, device.is_metered = BandwidthSpec(metered=MeteredPolicy.NOTHING), True
    device.put(1, 2)
    device.spool.put_feedback(make_feedback(1))
    for _ in range(3):
        device.turn(61.0)
    assert uploads(store) == []
    assert reported(store).counters.feedback_pending == 1


def test_one_refused_image_blocks_nothing_and_is_given_up_when_others_pass(
    device: Device, store: FakeBlobStore, tmp_path: Path
) -> None:
    """An image that the bucket refuses for what it is rests alone: later batches arrive; after three refusals it is
    set aside, counted with its reason, and what else was in its batch goes with another."""
    device.put(1, 2, 3, 4)
    poison = paths.capture_key(DEVICE, make_capture(1, make_jpeg(1)).image.sha256)
    store.refuse[poison] = BlobRefusedError("EntityTooLarge (413)")
    device.turn()
    assert paths.inbox_key(DEVICE, "boot1", 2) in store.blobs
    assert paths.inbox_key(DEVICE, "boot1", 1) not in store.blobs
    for _ in range(4):
        device.turn(61.0)
    assert store.keys("put").count(poison) == 3
    assert paths.inbox_key(DEVICE, "boot1", 1) in store.blobs
    acknowledge(store, boot1=3)
    device.turn(61.0)
    counters = device.spool.snapshot()
    assert (counters.evicted_by, counters.uploaded, counters.pending) == ({"refused": 1}, 3, 0)
    assert "413" in (tmp_path / "spool" / "quarantine" / "000000000001.capture.reason").read_text()


def test_what_left_the_spool_is_no_refusal_any_more(device: Device, store: FakeBlobStore) -> None:
    """Refusals are forgotten with the batch they kept: when the same picture comes again, it is tried as often as any
    other before it is given up."""
    device.put(1, 2)
    poison = paths.capture_key(DEVICE, make_capture(1, make_jpeg(1)).image.sha256)
    store.refuse[poison] = BlobRefusedError("EntityTooLarge (413)")
    device.turn()
    device.turn(61.0)
    before = store.keys("put").count(poison)
    assert before == 2
    device.spool.give_up_capture(1, "no room")
    for _ in range(2):
        device.turn(61.0)
    acknowledge(store, boot1=2)
    device.turn(61.0)
    assert device.spool.snapshot().pending == 0
    assert device.spool.put(make_capture(3, make_jpeg(1)), make_jpeg(1))
    device.put(4)
    for _ in range(2):
        device.turn(61.0)
    assert store.keys("put").count(poison) == before + 2
    assert device.spool.snapshot().evicted == 1


def test_a_bucket_that_refuses_everything_alike_costs_nothing(device: Device, store: FakeBlobStore) -> None:
    """A broken proxy that answers 400 to every put is no reason to give up a capture, however long it lasts."""
    device.put(1, 2)
    store.refuse["captures/"] = store.refuse["inbox/"] = store.refuse["twin/"] = BlobRefusedError("400")
    for _ in range(30):
        device.turn(61.0)
    assert device.spool.snapshot().pending == 2
    store.heal()
    for _ in range(2):
        device.turn(61.0)
    assert device.spool.snapshot().uploaded == 2


def test_a_record_too_large_for_the_bucket_is_broken_up(device: Device, store: FakeBlobStore) -> None:
    """Captures of a refused record travel in smaller batches, an empty one takes its place, and nothing is lost."""
    device.put(1, 2)
    store.refuse[paths.inbox_key(DEVICE, "boot1", 1)] = BlobRefusedError("EntityTooLarge (413)")
    for _ in range(5):
        device.turn(61.0)
    store.heal()
    for _ in range(3):
        device.turn(61.0)
    sizes = [len(BatchRecord.from_bytes(store.blobs[paths.inbox_key(DEVICE, "boot1", n)]).captures) for n in (1, 2, 3)]
    assert sizes == [0, 1, 1]
    acknowledge(store, boot1=3)
    device.turn()
    counters = device.spool.snapshot()
    assert (counters.acknowledged, counters.pending, counters.evicted) == (2, 0, 0)


def test_a_verdict_the_bucket_never_takes_is_given_up_and_takes_nothing_with_it(
    device: Device, store: FakeBlobStore, tmp_path: Path
) -> None:
    """Whatever record names it is refused: in the end it alone is set aside, counted as `refused`, and every capture
    and every other verdict arrives, also those that came with it and after it."""
    refuse_records_naming(store, "feedback-2")
    device.put(1, 2, 3)
    for number in (1, 2, 3):
        device.spool.put_feedback(make_feedback(number))
    for turn in range(120):
        device.turn(61.0)
        arrive(store)
        if turn == 60:
            device.put(4)
            device.spool.put_feedback(make_feedback(4))
    counters = device.spool.snapshot()
    assert (counters.feedback_given_up, counters.feedback_acknowledged) == ({"refused": 1}, 3)
    assert (counters.acknowledged, counters.evicted, counters.pending, counters.feedback_pending) == (4, 0, 0, 0)
    assert broken_laws(counters) == []
    quarantine = tmp_path / "spool" / "quarantine"
    assert "feedback-2" in (quarantine / "000000000002.feedback").read_text()
    assert "400" in (quarantine / "000000000002.feedback.reason").read_text()
    again = Device(tmp_path, store, boot_id="boot2")
    assert again.spool.snapshot() == counters


def refuse_records_naming(store: FakeBlobStore, text: str) -> None:
    """Let the bucket refuse every record with that text in it, for what it is."""
    take = store.put

    def put(key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        if key.startswith(paths.INBOX) and text.encode() in data:
            raise BlobRefusedError("InvalidRequest (400)")
        take(key, data, content_type=content_type)

    store.put = put  # type: ignore[method-assign]


def arrive(store: FakeBlobStore) -> None:
    """Acknowledge what has no gap, as ingest does."""
    numbers = {int(key.rpartition("-")[2].removesuffix(".json")) for key in store.blobs if key.startswith(paths.INBOX)}
    through = next((n for n in range(len(numbers) + 1) if n + 1 not in numbers), 0)
    acknowledge(store, boot1=through)


def test_an_image_that_cannot_be_read_holds_up_nobody_and_arrives_later(
    device: Device, store: FakeBlobStore, tmp_path: Path
) -> None:
    """While the disk does not give a frozen capture, other batches arrive; its own is dissolved after some tries, the
    rest of it goes with another, the heartbeat tells of it, and when it can be read it arrives, once."""
    device.turn()
    store.is_down = True
    device.put(1, 2, 3, 4)
    device.turn()
    store.heal()
    with faulty_disk(SpoolFolder(tmp_path / "spool").capture_path(1), errno.EIO, 0, 10**9):
        device.turn(61.0)
        assert paths.inbox_key(DEVICE, "boot1", 2) in store.blobs
        for _ in range(6):
            device.turn(61.0)
            arrive(store)
        assert device.spool.snapshot().acknowledged == 3
        assert reported(store).limits.held_back == {"unreadable": 1}
        assert reported(store).errors["SpoolUnavailableError"] >= 3
        assert device.spool.snapshot().evicted == 0
    for _ in range(20):
        device.turn(600.0)
        arrive(store)
    counters = device.spool.snapshot()
    assert (counters.acknowledged, counters.pending, counters.evicted) == (4, 0, 0)
    records = [BatchRecord.from_bytes(raw) for key, raw in store.blobs.items() if key.startswith(paths.INBOX)]
    assert sorted(c.frame_index for record in records for c in record.captures) == [1, 2, 3, 4]
    assert reported(store).limits.held_back == {}


def test_a_wrong_clock_is_tried_again_soon_and_told(device: Device, store: FakeBlobStore) -> None:
    """A refusal that put the clock right costs half a second, not the minutes of a denied access."""
    device.put(1, 2)
    store.fail_next(1, ClockSkewError("RequestTimeTooSkewed"))
    device.turn()
    device.turn(0.5)
    assert device.spool.snapshot().uploaded == 2
    assert reported(store).errors == {"ClockSkewError": 1}


def test_an_idle_device_costs_little_and_one_that_waits_reads_nothing_twice(
    device: Device, store: FakeBlobStore
) -> None:
    """With nothing outstanding there is a heartbeat and no other request; while an acknowledgement is awaited, an
    unchanged document is not transferred again."""
    device.turn()
    store.operations.clear()
    for _ in range(30):
        device.turn(2.0)
    assert {operation for operation, _ in store.operations} == {"put"}
    assert 3 <= len(store.operations) <= 6
    device.put(1, 2)
    acknowledge(store, boot0=1)
    device.turn()
    transferred = store.transferred
    for _ in range(10):
        device.turn(2.0)
    assert store.transferred == transferred + 1
    acknowledge(store, boot1=1)
    device.turn()
    assert device.spool.snapshot().pending == 0


def test_the_heartbeat_tells_of_the_reserve_and_the_clock(device: Device, store: FakeBlobStore) -> None:
    """Whoever reads it sees that the disk's reserve was given up and that nobody has told the time yet."""
    device.has_reserve = False
    device.turn()
    limits = reported(store).limits
    assert limits is not None
    assert (limits.reserve_ready, limits.clock_offset_s, limits.clock_uncertainty_s) == (False, 0.0, None)
