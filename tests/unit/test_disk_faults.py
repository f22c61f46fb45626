"""A full and a failing disk at every single call of the spool (P1, P2)."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curate.contracts.capture import Arm
from edge_agent.errors import SpoolUnavailableError
from edge_agent.ledger import Ledger
from edge_agent.spool.spool import Spool, SpoolLimits
from edge_agent.spool.unread import LONGEST_REST_S
from tests.fakes.captures import DEVICE, NOW, broken_laws, make_capture, make_feedback, make_jpeg
from tests.fakes.catalog_view import CatalogView, drain
from tests.fakes.disk_faults import FaultyDisk, faulty_disk
from tests.fakes.nightly import NIGHTLY, Tell
from tests.fakes.power_cut import fast_folder

LIMITS = SpoolLimits(max_bytes=9000, min_free_bytes=0, batch_max_captures=2, batch_max_age_s=0.0, max_batches=3)
NEVER = 10**9


class Life:
    """A device whose disk may refuse at any call; remembers what returned as durable."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.catalog = CatalogView()
        self.tried: set[str] = set()
        self.kept: set[str] = set()
        self.told: set[str] = set()
        self.refused = 0
        self.now_s = 1.0
        self.boots = 0
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        self.ledger = Ledger()
        self.spool = Spool.open(
            self.root, LIMITS, self.ledger, device_id=DEVICE, boot_id=f"boot{self.boots}", monotonic=lambda: self.now_s
        )

    def put(self, number: int, arms: tuple[Arm, ...] = (Arm.UNCERTAIN,), size_bytes: int = 300) -> None:
        """Nothing may escape from a put."""
        jpeg = make_jpeg(number, size_bytes)
        self.tried.add(f"capture-{number}")
        if self.spool.put(make_capture(number, jpeg, arms), jpeg):
            self.kept.add(f"capture-{number}")

    def put_all(self, *numbers: int, size_bytes: int = 300) -> None:
        """Captures that wait together are each kept or dropped, whatever happens to the others."""
        jpegs = {number: make_jpeg(number, size_bytes) for number in numbers}
        self.tried |= {f"capture-{number}" for number in numbers}
        kept = self.spool.put_all([(make_capture(number, jpeg), jpeg) for number, jpeg in jpegs.items()])
        self.kept |= {f"capture-{number}" for number, is_kept in zip(numbers, kept, strict=True) if is_kept}

    def tell(self, number: int) -> None:
        self.spool.put_feedback(make_feedback(number))
        self.told.add(f"feedback-{number}")

    def send(self) -> None:
        for batch in self.spool.outstanding():
            raw = self.spool.load_batch_record(batch)
            if raw is not None:
                self.catalog.take(raw)
                self.spool.mark_uploaded(batch)

    def day(self) -> None:
        """Every durable operation of a spool; each may be refused, with the one error the contract names."""
        steps: list[Callable[[], object]] = [
            *(lambda n=n: self.put(n) for n in (1, 2, 3)),
            lambda: self.tell(1),
            lambda: self.spool.freeze_batch(NOW),
            lambda: self.spool.freeze_batch(NOW),
            self.send,
            lambda: self.put(4, (Arm.RANDOM,), 3500),
            lambda: self.put(5, (Arm.DISMISSED,), 3500),
            lambda: self.tell(2),
            lambda: self.put_all(7, 8, 9, size_bytes=600),
            lambda: self.spool.acknowledge(self.catalog.through),
            self.spool.persist,
            lambda: self.put(6),
            lambda: self.spool.freeze_batch(NOW),
            self.send,
            lambda: self.spool.acknowledge(self.catalog.through),
        ]
        for step in steps:
            try:
                step()
            except SpoolUnavailableError:
                self.refused += 1
            counters = self.spool.snapshot()
            assert broken_laws(counters) == []
            assert counters.pending == self.spool.held_captures

    def verify(self, *, is_rotten: bool) -> None:
        """In the end, on a good disk, all that was kept or told has arrived, once, or is counted.

        What could not be read is read after a rest. Where something is rotten it is gone, such as one that left to
        make room on a disk that stayed full, or the counters of a state that could not be read at a start: the ledger
        says so, and what a lost batch named is sent in another.
        """
        self.now_s += 2 * LONGEST_REST_S
        drain(self.spool, self.catalog)
        counters = self.spool.snapshot()
        assert broken_laws(counters) == []
        assert counters.pending == 0
        arrived = set(self.catalog.captures)
        assert arrived <= self.tried
        assert self.catalog.changed == []
        assert len(self.kept - arrived) <= counters.evicted
        assert counters.feedback_pending == 0
        assert len(self.told - self.catalog.feedback) <= sum(counters.feedback_given_up.values())
        assert is_rotten or (self.catalog.twice, counters.feedback_given_up) == ([], {})
        assert is_rotten or self.kept - arrived == set() or counters.evicted_by.keys() == {"gave_way"}
        assert is_rotten or counters.acknowledged + counters.evicted >= len(arrived | self.kept)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on a fast disk."""
    with fast_folder() as name:
        yield Path(name)


def spend_a_day(root: Path, code: int, first: int, length: int, *, restart: bool) -> FaultyDisk:
    """One life with the fault in it; afterwards the disk is good again, with or without a restart."""
    life = Life(root)
    with faulty_disk(root, code, first, length) as faulty:
        life.day()
    try:
        selected = life.spool.snapshot().selected
        assert selected == len(life.tried), "a capture that was neither kept nor counted as dropped"
        if restart:
            life.boot()
        life.verify(is_rotten=len(faulty.failed) > 1)
    except BaseException as exc:
        exc.add_note(f"{errno.errorcode[code]} at call {first} ({faulty.failed}), restart={restart}")
        raise
    return faulty


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "failing"])
@pytest.mark.parametrize("length", [1, NEVER], ids=["once", "from then on"])
def test_a_disk_that_refuses_at_any_call_costs_only_what_is_counted(
    disk: Path, code: int, length: int, tell: Tell
) -> None:
    """At every index of every call: put never raises, the others only the error they promise, the ledger closes at each
    step, and once the disk is good again what was durable arrives once or is counted, after a restart too."""
    count = len(spend_a_day(disk / "count", code, NEVER, 1, restart=False).calls)
    runs = 0
    for first in range(count):
        for restart in (False, True) if NIGHTLY else (bool(first % 2),):
            runs += 1
            faulty = spend_a_day(disk / f"{first}-{restart}", code, first, length, restart=restart)
            assert faulty.failed
    tell(f"spool: {errno.errorcode[code]} at each of {count} calls, {runs} lives")
    assert count > 50


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "failing"])
def test_a_start_on_a_disk_that_refuses_is_said_and_harms_nothing(disk: Path, code: int, tell: Tell) -> None:
    """Opening a spool in use while the disk refuses at any call works or raises the one error it promises; the next
    start on a good disk has everything."""
    count = len(start_over(disk / "count", code, NEVER).calls)
    for first in range(count):
        assert start_over(disk / f"{first}", code, first).failed
    tell(f"spool start: {errno.errorcode[code]} at each of {count} calls")
    assert count > 5


def start_over(root: Path, code: int, first: int) -> FaultyDisk:
    """Start a spool in use on a disk with the fault, then again on a good one."""
    life = Life(root)
    for number in (1, 2, 3):
        life.put(number)
    life.tell(1)
    life.spool.freeze_batch(NOW)
    with faulty_disk(root, code, first) as faulty, contextlib.suppress(SpoolUnavailableError):
        life.boot()
    life.boots += 1
    life.boot()
    try:
        life.verify(is_rotten="open" in faulty.failed)
    except BaseException as exc:
        exc.add_note(f"{errno.errorcode[code]} at call {first} ({faulty.failed})")
        raise
    return faulty
