"""A disk that does not give a file is not a file that has rotted: it stays, rests, and goes when it can (P1, P4)."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.durable import RESERVE_NAME
from edge_agent.errors import SpoolUnavailableError
from edge_agent.ledger import Ledger
from edge_agent.spool import files
from edge_agent.spool.files import SpoolFolder
from edge_agent.spool.limits import SpoolLimits
from edge_agent.spool.spool import Spool
from edge_agent.spool.unread import FIRST_REST_S, LONGEST_REST_S, Unread
from tests.fakes.captures import DEVICE, NOW, broken_laws, make_capture, make_feedback, make_jpeg
from tests.fakes.catalog_view import CatalogView, drain
from tests.fakes.disk_faults import dead_disk, faulty_disk
from tests.fakes.power_cut import fast_folder

LIMITS = SpoolLimits(min_free_bytes=0, batch_max_captures=4, batch_max_age_s=0.0)
FOREVER = 10**9


class Device:
    """A spool on a fast disk, its clock, and the cloud it ends in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = SpoolFolder(root)
        self.catalog = CatalogView()
        self.now_s = 0.0
        self.boots = 0
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        boot_id = f"boot{self.boots}"
        self.spool = Spool.open(
            self.root, LIMITS, Ledger(), device_id=DEVICE, boot_id=boot_id, monotonic=lambda: self.now_s
        )

    def put(self, *numbers: int) -> None:
        for number in numbers:
            jpeg = make_jpeg(number)
            assert self.spool.put(make_capture(number, jpeg), jpeg)

    def tell(self, *numbers: int) -> None:
        for number in numbers:
            self.spool.put_feedback(make_feedback(number))

    def verify_all_arrived(self, captures: int, feedback: int = 0) -> None:
        """Once the disk is good again and every rest is over, everything arrives, once, and nothing was given up."""
        self.now_s += 2 * LONGEST_REST_S
        drain(self.spool, self.catalog)
        counters = self.spool.snapshot()
        assert broken_laws(counters) == []
        assert (counters.acknowledged, counters.feedback_acknowledged) == (captures, feedback)
        assert (counters.pending, counters.evicted, counters.feedback_pending) == (0, 0, 0)
        assert counters.feedback_given_up == {}
        assert (len(self.catalog.captures), self.catalog.twice, len(self.catalog.feedback)) == (captures, [], feedback)
        assert self.spool.quarantined == 0


@pytest.fixture
def device() -> Iterator[Device]:
    """A device without captures."""
    with fast_folder() as name:
        yield Device(Path(name) / "spool")


@contextlib.contextmanager
def unreadable(*paths: Path) -> Iterator[None]:
    """Let every call on these files fail with EIO."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(faulty_disk(path, errno.EIO, 0, FOREVER))
        yield


def test_what_cannot_be_read_stays_and_the_rest_goes(device: Device) -> None:
    """A capture and a verdict that the disk does not give are left out of the batch, told, and left alone for a rest;
    when the disk gives them they arrive as any other."""
    device.put(1, 2, 3)
    device.tell(1, 2)
    with unreadable(device.folder.capture_path(2), device.folder.feedback_path(1)):
        batch = device.spool.freeze_batch(NOW)
        assert batch is not None
        assert (batch.captures, batch.feedback) == ((1, 3), (2,))
        assert device.spool.freeze_batch(NOW) is None
        assert device.spool.unreadable_captures == 1
        assert device.spool.snapshot().pending == 3
    assert device.spool.freeze_batch(NOW) is None, "it rests"
    device.now_s += FIRST_REST_S
    again = device.spool.freeze_batch(NOW)
    assert again is not None
    assert (again.captures, again.feedback) == ((2,), (1,))
    assert device.spool.unreadable_captures == 0
    device.verify_all_arrived(3, 2)


def test_what_rests_does_not_hurry_the_others(device: Device) -> None:
    """However long an unreadable capture has waited, the others still gather until a batch is due."""
    patient = SpoolLimits(min_free_bytes=0, batch_max_captures=4, batch_max_age_s=5.0)
    spool = Spool.open(
        device.root, patient, Ledger(), device_id=DEVICE, boot_id="patient", monotonic=lambda: device.now_s
    )
    jpegs = {number: make_jpeg(number) for number in range(1, 6)}
    assert spool.put(make_capture(1, jpegs[1]), jpegs[1])
    with unreadable(device.folder.capture_path(1)):
        device.now_s += 6.0
        assert spool.freeze_batch(NOW) is None
        assert all(spool.put(make_capture(n, jpegs[n]), jpegs[n]) for n in (2, 3, 4))
        assert spool.freeze_batch(NOW) is None
        assert spool.put(make_capture(5, jpegs[5]), jpegs[5])
        batch = spool.freeze_batch(NOW)
    assert batch is not None
    assert batch.captures == (2, 3, 4, 5)


@pytest.mark.parametrize("number", [1, 3])
def test_what_cannot_be_read_at_a_start_counts_as_held(device: Device, number: int) -> None:
    """A capture and a verdict whose headers the disk does not give while the agent starts, the newest included, are
    neither counted as lost nor removed; they arrive once it does, also after another start."""
    device.put(1, 2, 3)
    device.tell(1, 2, 3)
    before = device.spool.snapshot()
    with unreadable(device.folder.capture_path(number), device.folder.feedback_path(number)):
        device.boot()
        assert device.spool.snapshot() == before
        device.put(4)
    device.boot()
    device.verify_all_arrived(4, 3)


@pytest.mark.parametrize("restart", [False, True])
def test_a_batch_that_cannot_be_read_is_dissolved_without_loss(device: Device, restart: bool) -> None:
    """A batch file the disk does not give at a start, or to the uploader for long, holds up nobody: what it named goes
    with another, and an empty one takes its place."""
    device.put(1, 2)
    device.tell(1)
    batch = device.spool.freeze_batch(NOW)
    assert batch is not None
    with unreadable(device.folder.batch_path(batch)):
        if restart:
            device.boot()
        else:
            with pytest.raises(SpoolUnavailableError):
                device.spool.load_batch_record(batch)
            device.spool.release_batch(batch)
    device.verify_all_arrived(2, 1)
    assert device.catalog.records.keys() == {("boot1", 1), (f"boot{device.boots}", 1 if restart else 2)}


def test_a_batch_that_the_bucket_has_is_not_dissolved(device: Device) -> None:
    """Once its record has arrived a batch only waits for its acknowledgement."""
    device.put(1)
    batch = device.spool.freeze_batch(NOW)
    assert batch is not None
    device.spool.mark_uploaded(batch)
    device.spool.release_batch(batch)
    assert device.spool.unacknowledged() == [batch]


def test_an_unreadable_state_does_not_keep_the_agent_from_starting(device: Device) -> None:
    """Without the state file, whatever is wrong with it, the counters come from the newest capture; nothing waits for
    a person, and what the file could have told is for one to look at."""
    device.put(1, 2)
    device.tell(1)
    before = device.spool.snapshot()
    with unreadable(device.root / "state"):
        device.boot()
    assert device.spool.snapshot() == before
    assert [path.name for path in device.folder.quarantine.glob("*.reason")] == ["state.reason"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_spool_opens_on_a_disk_that_takes_nothing(device: Device, code: int) -> None:
    """On a disk that is full to the last byte, or that was mounted read-only, a spool in use opens: captures are
    dropped with a reason, and nothing that lies there is lost."""
    device.put(1, 2)
    device.tell(1)
    with dead_disk(device.root, code):
        device.boot()
        jpeg = make_jpeg(3)
        assert not device.spool.put(make_capture(3, jpeg), jpeg)
        with pytest.raises(SpoolUnavailableError):
            device.tell(2)
        counters = device.spool.snapshot()
        assert broken_laws(counters) == []
        assert counters.dropped == {"disk_full" if code == errno.ENOSPC else "disk_error": 1}
    device.verify_all_arrived(2, 1)


def test_quarantine_is_bounded(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is set aside, the newest is there with its reason, and the rest makes room; the disk's reserve is
    not given up for it."""
    monkeypatch.setattr(files, "MAX_QUARANTINED", 5)
    monkeypatch.setattr(files, "MAX_QUARANTINE_BYTES", 2500)
    (device.root / RESERVE_NAME).write_bytes(b"r")
    device.put(*range(1, 21))
    for number in range(1, 11):
        device.spool.give_up_capture(number, f"refused {number}")
    kept = sorted(path.name for path in device.folder.quarantine.iterdir())
    assert kept == ["000000000010.capture", "000000000010.capture.reason"]
    for number in range(11, 21):
        device.folder.capture_path(number).write_bytes(b"x")
        device.spool.load_capture(number)
    kept = sorted(path.name for path in device.folder.quarantine.glob("*.reason"))
    assert kept == [f"{number:012d}.capture.reason" for number in range(16, 21)]
    assert device.spool.snapshot().evicted_by == {"refused": 10, "unreadable": 10}
    assert (device.root / RESERVE_NAME).exists()


def test_rests_grow_and_end() -> None:
    """A file that fails again and again is tried ever more rarely, at least once in the longest rest, and one that was
    read or has left is forgotten."""
    unread, now_s, tries = Unread(), 0.0, 0
    while now_s < 24 * 3600.0:
        if 7 not in unread.resting(now_s):
            assert unread.note(7, now_s) is (tries == 0)
            tries += 1
        now_s += 5.0
    assert 24 <= tries <= 40
    unread.note(8, now_s)
    unread.retain(lambda number: number == 8)
    assert len(unread) == 1
    unread.forget(8)
    assert not unread


def test_what_is_counted_as_gone_stays_gone_while_the_disk_does_not_let_it_go(device: Device) -> None:
    """Files that were acknowledged before the power went, and that cannot be removed at the next start, count for
    nothing there; they are removed when the disk lets them go."""
    device.put(1, 2)
    device.tell(1)
    batch = device.spool.freeze_batch(NOW)
    assert batch is not None
    paths = [device.folder.capture_path(1), device.folder.feedback_path(1), device.folder.batch_path(batch)]
    left = {path: path.read_bytes() for path in paths}
    device.spool.mark_uploaded(batch)
    device.spool.acknowledge({"boot1": 1})
    state = load_state_naming(device.folder, [str(path.relative_to(device.root)) for path in paths])
    for path, raw in left.items():
        path.write_bytes(raw)
    device.folder.persist_state(state)
    with dead_disk(device.root, errno.EROFS):
        device.boot()
        assert (device.spool.held_captures, device.spool.unacknowledged()) == (0, [])
        assert broken_laws(device.spool.snapshot()) == []
        assert (device.spool.snapshot().pending, device.spool.snapshot().feedback_pending) == (0, 0)
    device.spool.persist()
    assert not any(path.exists() for path in paths)


def load_state_naming(folder: SpoolFolder, names: list[str]) -> files.SpoolState:
    """The state as it was at the moment of the acknowledgement, before the removals."""
    state = folder.load_state()
    assert state is not None
    return state.model_copy(update={"revision": state.revision + 1, "removing": names})
