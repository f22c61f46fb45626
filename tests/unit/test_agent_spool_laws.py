"""The spool and the sync loop against a model, with power cuts between and inside operations."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from curate.contracts import paths
from curate.contracts.assignment import Acknowledgement
from curate.contracts.capture import Arm, BatchRecord
from edge_agent.ledger import Ledger
from edge_agent.report import DeviceReport
from edge_agent.spool.files import SpoolFolder
from edge_agent.spool.spool import Spool, SpoolLimits
from edge_agent.sync.loop import SyncLoop, SyncPolicy
from tests.fakes.blob_store import FakeBlobStore
from tests.fakes.captures import DEVICE, NOW, broken_laws, make_capture, make_feedback, make_jpeg
from tests.fakes.power_cut import fast_folder, power_cut_before

ARMS = st.sampled_from([(Arm.UNCERTAIN,), (Arm.RANDOM,), (Arm.DISMISSED, Arm.UNCERTAIN)])
LIMITS = SpoolLimits(max_bytes=12_000, min_free_bytes=0, batch_max_captures=3, batch_max_age_s=5.0, max_batches=3)


class Cloud:
    """Ingest as the contract describes it: the first record of a name counts, acknowledged is what has no gap."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.taken: set[tuple[str, int]] = set()
        self.through: dict[str, int] = {}
        self.captures: set[str] = set()
        self.feedback: set[str] = set()

    def watch(self, store: FakeBlobStore, *, may_change: bool) -> None:
        """Remember every record that was ever visible, and hold it to its bytes, unless its file was damaged."""
        for key, raw in store.blobs.items():
            if key.startswith(paths.INBOX):
                first = self.records.setdefault(key, raw)
                assert first == raw or may_change, "a batch changed between two uploads"

    def ingest(self, store: FakeBlobStore) -> None:
        """Take what is visible and write the acknowledgement."""
        for key in sorted(key for key in store.blobs if key.startswith(paths.INBOX)):
            record = BatchRecord.from_bytes(store.blobs.pop(key))
            if (record.boot_id, record.sequence) in self.taken:
                continue
            self.taken.add((record.boot_id, record.sequence))
            self.captures |= {capture.capture_id for capture in record.captures}
            self.feedback |= {feedback.feedback_id for feedback in record.feedback}
            while (record.boot_id, self.through.get(record.boot_id, 0) + 1) in self.taken:
                self.through[record.boot_id] = self.through.get(record.boot_id, 0) + 1
        acknowledgement = Acknowledgement(device_id=DEVICE, through=self.through, updated_at=NOW)
        store.blobs[paths.ack_key(DEVICE)] = acknowledgement.to_bytes()


class SpoolMachine(RuleBasedStateMachine):
    """Random lives of one device."""

    @initialize()
    def boot_first(self) -> None:
        """Start with an empty disk and bucket."""
        self.folder = fast_folder()
        self.root = Path(self.folder.name)
        self.store = FakeBlobStore()
        self.cloud = Cloud()
        self.now_s = 100.0
        self.boots = 0
        self.next_number = 0
        self.kept: set[str] = set()
        self.told: set[str] = set()
        self.tried: list[int] = []
        self.damaged = False
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        self.ledger = Ledger()
        self.spool = Spool.open(
            self.root / "spool",
            LIMITS,
            self.ledger,
            device_id=DEVICE,
            boot_id=f"boot{self.boots}",
            monotonic=lambda: self.now_s,
        )
        report = DeviceReport(self.root / "updates.json", agent_version="0")
        policy = SyncPolicy(resend_after_s=60.0)
        self.loop = SyncLoop(self.spool, self.store, report, policy, monotonic=lambda: self.now_s, rng=random.Random(1))

    def on_disk(self) -> set[str]:
        folder = SpoolFolder(self.root / "spool")
        numbers = [number for number, _ in folder.numbered(folder.captures, ".capture")]
        return {folder.load_capture(number)[0].capture_id for number in numbers}

    def number(self) -> int:
        self.next_number += 1
        return self.next_number

    # -- what can happen -------------------------------------------------------------------------------------

    @rule(arms=ARMS, size_bytes=st.integers(50, 3000))
    def put(self, arms: tuple[Arm, ...], size_bytes: int) -> None:
        number = self.number()
        jpeg = make_jpeg(number, size_bytes)
        record = make_capture(number, jpeg, arms)
        if self.spool.put(record, jpeg):
            self.kept.add(record.capture_id)

    @rule()
    def feedback(self) -> None:
        self.tried.append(self.number())
        self.tell(self.tried[-1])

    @rule(which=st.integers(0, 99))
    def feedback_again(self, which: int) -> None:
        """A client whose connection broke, perhaps long ago, perhaps in a power cut, sends the same once more."""
        if self.tried:
            self.tell(self.tried[which % len(self.tried)])

    def tell(self, number: int) -> None:
        feedback = make_feedback(number)
        if self.spool.find_receipt(feedback.feedback_id) is None:
            self.spool.put_feedback(feedback)
        self.told.add(feedback.feedback_id)

    @rule(inferred=st.integers(0, 5), skipped=st.integers(0, 2))
    def frames(self, inferred: int, skipped: int) -> None:
        for _ in range(inferred):
            self.ledger.frame_inferred(1000)
        for _ in range(skipped):
            self.ledger.frame_skipped("undecodable")

    @rule(seconds=st.sampled_from([1.0, 6.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(failures=st.integers(0, 1), lost_answers=st.integers(0, 1), after=st.integers(0, 8))
    def sync(self, failures: int, lost_answers: int, after: int) -> None:
        self.store.fail_next(failures, after=after)
        self.store.commit_then_fail_next(lost_answers, after=after)
        self.now_s += 2.0
        self.loop.turn(NOW)
        self.store.heal()

    @rule()
    def sync_well(self) -> None:
        self.now_s += 61.0
        self.loop.turn(NOW)

    @rule()
    def ingest(self) -> None:
        self.cloud.ingest(self.store)

    @rule()
    def power_cut(self) -> None:
        self.boot()

    @rule(arms=ARMS, size_bytes=st.integers(50, 3000), system_call=st.integers(1, 12))
    def power_cut_in_put(self, arms: tuple[Arm, ...], size_bytes: int, system_call: int) -> None:
        with power_cut_before(system_call):
            self.put(arms, size_bytes)
        self.boot()
        self.kept |= self.on_disk()

    @rule(system_call=st.integers(1, 4))
    def power_cut_in_feedback(self, system_call: int) -> None:
        with power_cut_before(system_call):
            self.feedback()
        self.boot()

    @rule(system_call=st.integers(1, 30))
    def power_cut_in_sync(self, system_call: int) -> None:
        self.now_s += 61.0
        with power_cut_before(system_call):
            self.loop.turn(NOW)
        self.boot()

    @rule(first=st.integers(1, 15), second=st.integers(1, 15))
    def power_cut_in_recovery(self, first: int, second: int) -> None:
        self.now_s += 61.0
        with power_cut_before(first):
            self.loop.turn(NOW)
        with power_cut_before(second):
            self.boot()
        self.boot()

    @rule(which=st.integers(0, 15), at=st.sampled_from([0, 200, -1]), restart=st.booleans())
    def damage_a_batch(self, which: int, at: int, restart: bool) -> None:
        files = sorted((self.root / "spool" / "outbox").iterdir())
        if files:
            path = files[which % len(files)]
            raw = bytearray(path.read_bytes())
            raw[at] ^= 1
            path.write_bytes(raw)
            self.damaged = True
            if restart:
                self.boot()

    # -- what must hold --------------------------------------------------------------------------------------

    @invariant()
    def the_laws_hold(self) -> None:
        assert broken_laws(self.spool.snapshot()) == []

    @invariant()
    def the_counters_agree_with_the_disk(self) -> None:
        assert self.spool.snapshot().pending == self.spool.held_captures == len(self.on_disk())

    @invariant()
    def nothing_is_lost(self) -> None:
        gone = self.kept - self.on_disk() - self.cloud.captures
        evicted = self.spool.snapshot().evicted
        # What a damaged batch named waits again, and may be evicted although the cloud has it.
        assert len(gone) == evicted or (self.damaged and len(gone) < evicted)

    @invariant()
    def what_is_visible_is_whole_and_said_once(self) -> None:
        self.cloud.watch(self.store, may_change=self.damaged)
        records = [BatchRecord.from_bytes(raw) for raw in self.cloud.records.values()]
        captures = [capture for record in records for capture in record.captures]
        assert self.damaged or len({capture.capture_id for capture in captures}) == len(captures)
        for capture in captures:
            assert len(self.store.blobs[paths.capture_key(DEVICE, capture.image.sha256)]) == capture.image.size_bytes

    def teardown(self) -> None:
        """In the end everything kept and not evicted arrives, once, and is counted once."""
        if not hasattr(self, "root"):
            return
        try:
            for _ in range(100):
                self.now_s += 61.0
                self.loop.turn(NOW)
                self.cloud.watch(self.store, may_change=self.damaged)
                self.cloud.ingest(self.store)
            for self_again in (False, True):
                if self_again:
                    self.boot()
                counters = self.spool.snapshot()
                assert broken_laws(counters) == []
                assert counters.pending == counters.feedback_pending == 0
                assert self.spool.unacknowledged() == []
                if not self.damaged:
                    assert counters.uploaded == counters.acknowledged == len(self.cloud.captures)
                assert len(self.kept - self.cloud.captures) <= counters.evicted
                assert self.told <= self.cloud.feedback
                assert counters.feedback_acknowledged == len(self.cloud.feedback)
        finally:
            self.folder.cleanup()


class TestSpoolLaws(SpoolMachine.TestCase):  # type: ignore[misc,valid-type]
    """Over random lives with failing links, power cuts and damaged batches the laws hold, nothing is lost, nothing said
    twice, and in the end the spool is empty."""

    settings = settings(
        max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
