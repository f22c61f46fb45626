"""The spool over every disk that a power cut may leave behind (P1)."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.contracts.capture import Arm
from curate.contracts.telemetry import DeviceCounters
from edge_agent.durable import load_header_and_size, persist_bytes
from edge_agent.ledger import Ledger
from edge_agent.spool.files import CAPTURE_SUFFIX, CaptureHeader, SpoolFolder
from edge_agent.spool.spool import Spool, SpoolLimits
from tests.fakes.captures import DEVICE, NOW, broken_laws, make_capture, make_feedback, make_jpeg
from tests.fakes.catalog_view import CatalogView, drain
from tests.fakes.crash_states import CrashState, Mark, Recorder, Recording, Sync, recorded, torn
from tests.fakes.nightly import Tell, cases
from tests.fakes.power_cut import fast_folder

LIMITS = SpoolLimits(max_bytes=9000, min_free_bytes=0, batch_max_captures=2, batch_max_age_s=0.0, max_batches=3)
DURABLE_COUNTERS = ("spooled", "evicted", "acknowledged", "feedback_spooled", "feedback_acknowledged")
LIMIT_EACH = cases(thin=40, full=4096)


class Life:
    """A device's life on a recorded disk. Says before each step what it tries, and after it what it is sure of."""

    def __init__(self, folder: Path, recorder: Recorder) -> None:
        self.root = folder / "state" / "spool"
        self.recorder = recorder
        self.catalog = CatalogView()
        self.boots = 0
        self.number = 100
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        self.ledger = Ledger()
        self.spool = open_spool(self.root, f"boot{self.boots}", self.ledger)
        self.sure()

    def sure(self, **said: object) -> None:
        self.recorder.mark({**said, "counters": self.spool.snapshot()})

    def put(self, *numbers: int, arms: tuple[Arm, ...] = (Arm.UNCERTAIN,), size_bytes: int = 300) -> None:
        for number in numbers:
            jpeg = make_jpeg(number, size_bytes)
            self.recorder.mark({"tried": f"capture-{number}"})
            kept = self.spool.put(make_capture(number, jpeg, arms), jpeg)
            self.sure(settled=f"capture-{number}", **({"kept": f"capture-{number}"} if kept else {}))

    def put_all(self, *numbers: int, arms: tuple[Arm, ...] = (Arm.UNCERTAIN,), size_bytes: int = 300) -> None:
        """Several captures come at once; none is promised before all of them are tried."""
        jpegs = {number: make_jpeg(number, size_bytes) for number in numbers}
        for number in numbers:
            self.recorder.mark({"tried": f"capture-{number}"})
        kept = self.spool.put_all([(make_capture(number, jpeg, arms), jpeg) for number, jpeg in jpegs.items()])
        for number, is_kept in zip(numbers, kept, strict=True):
            self.recorder.mark({"settled": f"capture-{number}"} | ({"kept": f"capture-{number}"} if is_kept else {}))
        self.sure()

    def tell(self, number: int) -> None:
        self.spool.put_feedback(make_feedback(number))
        self.sure(told=f"feedback-{number}")

    def upload(self) -> None:
        """Freeze what waits, and send every batch."""
        while self.spool.freeze_batch(NOW) is not None:
            self.sure()
        for batch in self.spool.outstanding():
            raw = self.spool.load_batch_record(batch)
            self.sure()
            if raw is not None:
                self.catalog.take(raw)
                self.recorder.mark({"arrived": raw})
                self.spool.mark_uploaded(batch)
                self.sure()

    def acknowledge(self) -> None:
        self.spool.acknowledge(self.catalog.through)
        self.sure()


def open_spool(root: Path, boot_id: str, ledger: Ledger | None = None) -> Spool:
    return Spool.open(root, LIMITS, ledger or Ledger(), device_id=DEVICE, boot_id=boot_id, monotonic=lambda: 1.0)


def keep_and_send(life: Life) -> None:
    """Captures and verdicts are kept, frozen, sent, acknowledged, over a restart."""
    life.put(1, 2, 3)
    life.tell(1)
    life.upload()
    life.put(4)
    life.acknowledge()
    life.put(5)
    life.tell(2)
    life.boot()
    life.put(6)
    life.upload()
    life.acknowledge()
    life.spool.persist()
    life.sure()


def give_up_the_least(life: Life) -> None:
    """More is put than fits: the least valuable leave, some newcomers are refused."""
    life.put(1, 2, size_bytes=2000)
    life.put(3, arms=(Arm.RANDOM,), size_bytes=2000)
    life.put(4, 5, size_bytes=2500)
    life.put(6, 7, arms=(Arm.DISMISSED,), size_bytes=2500)
    life.put(8, size_bytes=2500)
    life.upload()
    life.put(9, size_bytes=2500)
    life.acknowledge()


def keep_together(life: Life) -> None:
    """Captures wait together and are kept in groups; some give way to others of their own group."""
    life.put(1, size_bytes=1000)
    life.put_all(2, 3, 4, size_bytes=1000)
    life.put_all(5, 6, arms=(Arm.DISMISSED,), size_bytes=2000)
    life.upload()
    life.put_all(7, 8, arms=(Arm.RANDOM,), size_bytes=2000)
    life.acknowledge()
    life.put_all(9, 10)


def damage_and_repair(life: Life) -> None:
    """A capture and a batch rot on the disk; both go to quarantine, and an empty batch fills the gap."""
    life.put(1, 2, 3, 4)
    life.spool.freeze_batch(NOW)
    life.spool.freeze_batch(NOW)
    life.sure()
    rot(next((life.root / "captures").glob("*1.capture")))
    rot(next((life.root / "outbox").glob("*1.batch")))
    life.recorder.settle({"rotten": True})
    life.upload()
    life.boot()
    life.upload()
    life.acknowledge()


def rot(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


def put_one(life: Life) -> None:
    """One more capture comes."""
    life.number += 1
    life.put(life.number)


def put_a_big_one(life: Life) -> None:
    """A precious capture comes for which others must go."""
    life.number += 1
    life.put(life.number, arms=(Arm.RANDOM,), size_bytes=3500)


def tell_one(life: Life) -> None:
    """One more verdict comes."""
    life.number += 1
    life.tell(life.number)


def persist(life: Life) -> None:
    """The counters are made durable."""
    life.ledger.frame_inferred(1000)
    life.spool.persist()
    life.sure()


STEPS = (put_one, put_a_big_one, tell_one, Life.upload, Life.acknowledge, Life.boot, persist)

LIVES = {life.__name__: life for life in (keep_and_send, give_up_the_least, keep_together, damage_and_repair)}


class Promise:
    """What a spool must still say, whatever the disk lost after the marks."""

    def __init__(self, marks: list[dict[str, object]], made: int) -> None:
        before, after = marks[:made], marks[made:]
        self.tried = {str(mark["tried"]) for mark in before if "tried" in mark}
        self.kept = {str(mark["kept"]) for mark in before if "kept" in mark}
        self.under_way = len(self.tried) - sum("settled" in mark for mark in before)
        self.told = {str(mark["told"]) for mark in before if "told" in mark}
        self.rotten = any("rotten" in mark for mark in before)
        self.arrived = [mark["arrived"] for mark in before if "arrived" in mark]
        self.least = next((_counters(mark) for mark in reversed(before) if "counters" in mark), DeviceCounters())
        self.most = next((_counters(mark) for mark in after if "counters" in mark), self.least)

    def verify(self, root: Path) -> None:
        """Recover, and hold the recovered spool to it; then let all of it arrive."""
        spool = open_spool(root, "after")
        counters = spool.snapshot()
        assert broken_laws(counters) == []
        held = on_disk(root)
        assert counters.pending == spool.held_captures == len(held)
        assert held <= self.tried
        if not self.rotten:
            assert spool.quarantined == 0
        # Of captures that came together a power cut may leave the last alone: those before it were promised to nobody.
        unpromised = {"evicted": max(0, self.under_way - 1)}
        for name in DURABLE_COUNTERS:
            most = getattr(self.most, name) + unpromised.get(name, 0)
            assert getattr(self.least, name) <= getattr(counters, name) <= most, name
        self._verify_arrival(spool)

    def _verify_arrival(self, spool: Spool) -> None:
        catalog = CatalogView()
        for raw in self.arrived:
            assert isinstance(raw, bytes)
            catalog.take(raw)
        drain(spool, catalog)
        counters = spool.snapshot()
        assert broken_laws(counters) == []
        assert (counters.pending, counters.feedback_pending) == (0, 0)
        arrived = set(catalog.captures)
        assert arrived <= self.tried
        assert len(self.kept - arrived) <= counters.evicted
        assert self.told <= catalog.feedback
        assert counters.feedback_acknowledged == len(catalog.feedback)
        if not self.rotten:
            assert (catalog.twice, catalog.changed) == ([], [])
            assert counters.acknowledged == len(arrived)
            assert counters.spooled == counters.acknowledged + counters.evicted


def _counters(mark: dict[str, object]) -> DeviceCounters:
    counters = mark["counters"]
    assert isinstance(counters, DeviceCounters)
    return counters


def on_disk(root: Path) -> set[str]:
    folder = SpoolFolder(root)
    headers = [load_header_and_size(path)[0] for _, path in folder.numbered(folder.captures, CAPTURE_SUFFIX)]
    return {CaptureHeader.from_bytes(header).record.capture_id for header in headers}


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on a fast disk."""
    with fast_folder() as name:
        yield Path(name)


def record_life(folder: Path, name: str) -> Recording:
    folder.mkdir()
    with recorded(folder) as recorder:
        LIVES[name](Life(folder, recorder))
    return recorder.recording


@pytest.mark.parametrize("name", LIVES)
def test_whatever_a_power_cut_leaves_every_kept_capture_is_there_or_counted(disk: Path, name: str, tell: Tell) -> None:
    """Over every crash of a life and every legal loss of what was not synced: the spool opens, the ledger closes and
    lies between what was said last and next, and what was kept arrives once or is counted as evicted."""
    recording = record_life(disk / "life", name)
    count = check_all(recording, disk / "crashed", seed=1)
    tell(f"{name}: {len(recording.operations)} operations, {count} crash states of the spool recovered")
    assert count > 100


@pytest.mark.parametrize("name", LIVES)
def test_a_power_cut_during_recovery_loses_nothing_either(disk: Path, name: str, tell: Tell) -> None:
    """Crashed states are recovered on a recorded disk, and every crash of that recovery is recovered again."""
    recording = record_life(disk / "life", name)
    rng = random.Random(2)
    outer = list(recording.crash_states(limit_each=LIMIT_EACH, rng=rng))
    count = 0
    for state in rng.sample(outer, cases(thin=12, full=400)):
        state.materialise(disk / "crashed")
        with recorded(disk / "crashed") as recorder:
            open_spool(disk / "crashed" / "state" / "spool", "between")
        for second in recorder.recording.crash_states(limit_each=LIMIT_EACH, rng=rng):
            again = CrashState(second.tree, state.operations_done, state.marks)
            check(recording, again, disk / "again")
            count += 1
    tell(f"{name}: {count} crash states of the spool's recovery recovered")
    assert count > 30


def test_every_short_story_of_a_spool_in_use_survives_every_power_cut(disk: Path, tell: Tell) -> None:
    """All sequences of steps of a bounded length, from a spool that holds captures, verdicts and batches: every crash
    of each keeps the promise."""
    states = stories = 0
    for number, steps in enumerate(itertools.product(STEPS, repeat=cases(thin=2, full=3))):
        folder = disk / f"life{number}"
        folder.mkdir()
        with recorded(folder) as recorder:
            life = Life(folder, recorder)
            in_use(life)
            recorder.settle({"counters": life.spool.snapshot()})
            recorder.recording.settling.update(range(len(recorder.recording.operations)))
            for step in steps:
                step(life)
        states += check_all(recorder.recording, disk / "crashed", seed=number)
        shutil.rmtree(folder)
        stories += 1
    tell(f"{stories} stories of a spool in use, {states} crash states recovered")
    assert states > stories


@pytest.mark.parametrize("forgotten", ["files", "folders"])
def test_a_spool_that_forgot_to_sync_would_be_found_out(disk: Path, forgotten: str) -> None:
    """The proof can fail: were the fsyncs of files, or of folders, not made, some crash would break the promise."""
    recording = record_life(disk / "life", "keep_and_send")
    start = max(recording.settling)
    operations = recording.operations
    for at, operation in enumerate(operations):
        if at > start and isinstance(operation, Sync):
            is_folder = operation.node in recording.folders
            operations[at] = Mark({}) if is_folder == (forgotten == "folders") else operation
    with pytest.raises(AssertionError):
        check_all(recording, disk / "crashed", seed=1)


def in_use(life: Life) -> None:
    """Something of everything: sent and acknowledged, sent and not, frozen and not sent, waiting."""
    life.put(1, 2)
    life.tell(1)
    life.upload()
    life.acknowledge()
    life.put(3, 4)
    life.upload()
    life.put(5, 6)
    life.spool.freeze_batch(NOW)
    life.put(7)
    life.tell(2)


def check_all(recording: Recording, root: Path, *, seed: int) -> int:
    """Check every crash state; return how many there were."""
    count = 0
    for state in recording.crash_states(limit_each=LIMIT_EACH, rng=random.Random(seed)):
        check(recording, state, root)
        count += 1
    return count


def check(recording: Recording, state: CrashState, root: Path) -> None:
    """Put the state on a disk and hold the spool to what was promised by then."""
    state.materialise(root)
    try:
        Promise(recording.marks, state.marks).verify(root / "state" / "spool")
    except BaseException as exc:
        done = recording.operations[: state.operations_done]
        exc.add_note(f"crash after {len(done)} operations, the last: {done[-4:]!r:.2000}")
        exc.add_note(f"on the disk: { {name: len(raw or b'') for name, raw in state.tree.items()} }")
        raise


def test_the_enumerator_knows_what_a_missing_sync_costs(disk: Path) -> None:
    """Written and renamed without any fsync, a file may be missing, whole, cut off, zeros, or under its old name;
    with the fsyncs of an atomic write only the old or the new file remains. What is enumerated is what was claimed."""
    (disk / "kept").write_bytes(b"old")
    with recorded(disk) as careless:
        (disk / "kept.tmp").write_bytes(b"new!")
        (disk / "kept.tmp").replace(disk / "kept")
    trees = [state.tree for state in careless.recording.crash_states(limit_each=10_000, rng=random.Random(0))]
    assert {tree.get("kept") for tree in trees} == {b"old", b"", b"ne", bytes(4), b"ne\0\0", b"new!"}
    assert {tuple(sorted(tree)) for tree in trees} == {("kept",), ("kept", "kept.tmp")}
    with recorded(disk) as careful:
        persist_bytes(disk / "kept", b"newer")
        careful.mark("sure")
    states = list(careful.recording.crash_states(limit_each=10_000, rng=random.Random(0)))
    assert {state.tree["kept"] for state in states} == {b"new!", b"newer"}
    assert {state.tree["kept"] for state in states if state.marks} == {b"newer"}


def test_a_torn_append_keeps_what_was_synced() -> None:
    """Bytes added to a synced file can be lost or torn, those before them not."""
    assert all(left.startswith(b"safe") for left in torn(b"safe", b"safe and new"))
    assert torn(b"safe", b"safe and new")[-1] == b"safe and new"
    assert b"" in torn(b"safe", b"other")
