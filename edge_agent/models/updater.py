"""The update loop: follow the signed assignment, prove the release, try it, and keep the old one on any doubt.

A steady poll is one conditional GET. A changed assignment is believed only after a walk of the TUF metadata, so a
revoked key is noticed before anything it signed is followed. What an update does next is decided in `update_machine`;
here it is done. Steps that need no network go on without one, also after a restart.
"""

from __future__ import annotations

import logging
import platform
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from curate.contracts.assignment import Assignment, CapturePolicySpec
from curate.contracts.device_settings import DeviceSettings
from curate.contracts.sketch import EmbeddingSketch
from curate.contracts.telemetry import ModelState, UpdateEvent
from curate.errors import AgentError, ContractError, Error, SelfCheckError, StorageError, TrustError
from curate.storage.ports import BlobStore
from edge_agent.backoff import BackoffPolicy, decide_delay_s
from edge_agent.errors import CorruptFileError
from edge_agent.models.assignments import AssignmentFollower, Desired
from edge_agent.models.inference import LiveModel
from edge_agent.models.installer import Installer, UpdateLimits
from edge_agent.models.live_seat import LiveSeat
from edge_agent.models.loading import ModelLoader
from edge_agent.models.repository import SignedRepository
from edge_agent.models.restorer import Restorer
from edge_agent.models.slots import FactoryModel, SlotContent, Slots, Variant
from edge_agent.models.smoke import RunSettings
from edge_agent.models.smoke_process import Smoke, run_smoke
from edge_agent.models.trial_watch import Verdict
from edge_agent.models.trust import decide_update, raise_release_floor
from edge_agent.models.update_machine import (
    ACTIVE,
    LOCAL,
    Assigned,
    Attempt,
    Damaged,
    Effect,
    Event,
    Failed,
    Fetched,
    Passed,
    Phase,
    Postponed,
    Settled,
    SlotName,
    Started,
    Stopped,
    Superseded,
    advance,
    is_refused,
    redo_effects,
)
from edge_agent.models.updater_state import UpdateJournal, UpdaterState
from edge_agent.report import DeviceReport

log = logging.getLogger(__name__)

TRIAL_TICK_S: Final = 0.5
"""How often a release on trial is judged."""
WAITS_FOR_LINK: Final = "the files of the release wait for an unmetered link"
"""The metered switch is on. Metadata and assignments are small and come all the same."""


@dataclass(frozen=True)
class _Pause:
    """Why the assignment is left alone for a while."""

    desired_sha256: str | None
    detail: str
    failures: int
    since: datetime
    delay: timedelta

    def is_over(self, now: datetime) -> bool:
        """Whether to try again; a clock that was set back does not stretch the wait."""
        return not self.since <= now < self.since + self.delay


class Updater:
    """One device's updater. Not thread-safe: `restore` first, then `run` in a thread of its own."""

    def __init__(
        self,
        *,
        device_id: str,
        store: BlobStore,
        repository: SignedRepository,
        slots: Slots,
        state_file: Path,
        live: LiveModel,
        policy_sink: Callable[[CapturePolicySpec], None],
        settings_sink: Callable[[DeviceSettings], None] = lambda _settings: None,
        sketch_sink: Callable[[EmbeddingSketch | None], None] = lambda _sketch: None,
        report: DeviceReport,
        factory: FactoryModel | None = None,
        is_metered: Callable[[], bool] = lambda: False,
        running: RunSettings | None = None,
        smoke: Smoke = run_smoke,
        variant: Variant = "int8",
        interval_s: float = 30.0,
        max_backoff_s: float = 300.0,
        limits: UpdateLimits | None = None,
        rng: random.Random | None = None,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = UpdateJournal(state_file, report)
        self._follower = AssignmentFollower(
            device_id=device_id,
            store=store,
            repository=repository,
            journal=self._journal,
            policy_sink=policy_sink,
            settings_sink=settings_sink,
            sketch_sink=sketch_sink,
            report=report,
        )
        self._slots = slots
        self._live = live
        self._report = report
        self._limits = limits or UpdateLimits()
        self._installer = Installer(repository, slots, variant=variant, limits=self._limits)
        self._loader = ModelLoader(slots, running or RunSettings(), smoke=smoke)
        self._seat = LiveSeat(live, self._loader, report, monotonic=monotonic)
        factory = factory or FactoryModel(None, manifest_sha256=None, variant=variant)
        self._restorer = Restorer(slots, self._seat, self._journal, factory)
        self._is_metered = is_metered
        self._waits_for_link: str | None = None
        self._interval_s = interval_s
        self._link_backoff = BackoffPolicy(base_s=interval_s, cap_s=max_backoff_s, refused_s=max_backoff_s)
        self._rng = rng or random.Random()
        self._wall_clock = wall_clock
        self._pause: _Pause | None = None
        report.follow_model(self.describe)

    def restore(self, now: datetime) -> None:
        """Start from what the disk holds, without the network: the accepted policy, then the committed slot, the
        other one, the factory model, each only after its digests and its golden answers; at last a release whose
        check or trial a restart has cut off. Never raises for a bad slot or disk; each turn does again what could not
        be done."""
        if self._journal.recall(now):
            self._take_up(now)
        self._restore_any(now)
        if self._live.current() is None:
            self._guarded(self._work, now)

    def turn(self, now: datetime) -> UpdateEvent | None:
        """Go on with the update that is under way, then look at the assignment once and act on it.

        Returns:
            The last thing recorded of how an update ended, went wrong or was put off; None when there was none.

        Raises:
            StorageError: the bucket cannot be reached; the next turn tries again.
        """
        self._journal.told = None
        self._report.persist_noted()
        if not self._journal.is_known or (self._restorer.is_waiting and not self._seat.on_trial):
            self.restore(now)
        if not self._journal.is_known:
            # Nothing is believed, fetched or tried before this device knows what it has accepted.
            return self._journal.told
        self.watch(now)
        self._redo_effects()
        if self._is_due(now):
            self._guarded(self._work, now)
        desired = self._follower.poll()
        if desired is not None:
            self._heed(desired, now)
        self.watch(now)
        return self._journal.told

    def watch(self, now: datetime) -> None:
        """Judge the release on trial, if there is one; needs no network."""
        judgement = self._seat.judge()
        if judgement is None or judgement.verdict is Verdict.GO_ON:
            return
        event = Settled() if judgement.verdict is Verdict.KEEP else Failed(judgement.reason)
        self._guarded(lambda at: self._apply(event, at), now)

    def run(self, stop: threading.Event) -> None:
        """Turn until told to stop; a failing turn is counted and the next one begins."""
        failures = 0
        while not stop.is_set():
            delay_s = self._interval_s
            try:
                self.turn(self._wall_clock())
                if failures:
                    log.info("updates reach the bucket again")
                failures = 0
            except Exception as exc:
                failures += 1
                self._report.count_error(type(exc).__name__)
                if failures == 1:
                    log.warning("updates are interrupted: %s", exc, exc_info=not isinstance(exc, StorageError))
                retryable = isinstance(exc, Error) and exc.retryable
                delay_s += decide_delay_s(self._link_backoff, failures=failures, retryable=retryable, rng=self._rng)
            self._rest(stop, delay_s)
        self._leave_trial()

    def describe(self) -> ModelState:
        """Say how the newest update and the model are doing; from any thread."""
        attempt, model, kept = self._state.attempt, self._live.current(), self._seat.kept
        p50_s = model.p50_s if model else None
        return ModelState(
            phase=attempt.phase,
            candidate_id=attempt.release_id,
            starts=attempt.starts,
            reason=WAITS_FOR_LINK if self._waits_for_link else attempt.reason,
            slot=kept.name if kept else None,
            trial_answers=self._seat.trial_answers,
            trial_frames=self._limits.trial.window_frames if self._seat.on_trial else None,
            threads=model.threads if model else None,
            providers=list(model.providers) if model else [],
            notes=list(model.notes) if model else [],
            p50_ms=round(p50_s * 1000.0, 3) if p50_s is not None else None,
            machine=platform.machine(),
        )

    # ---- what is on the disk

    def _take_up(self, now: datetime) -> None:
        """Go on from where the last process ended."""
        if self._state.last_event is not None:
            self._report.record_update(self._state.last_event)
        if self._state.assignment is not None:
            self._follower.follow(self._state.assignment, now)
        else:
            self._follower.follow_none(now)
        self._redo_effects()

    def _restore_any(self, now: datetime) -> None:
        lost = self._restorer.restore(now)
        if lost is not None and self._state.attempt.phase is Phase.COMMITTED:
            # What is assigned may be installed anew.
            self._guarded(lambda at: self._apply(Damaged(lost), at), now)

    # ---- what is assigned

    def _heed(self, desired: Desired, now: datetime) -> None:
        if self._pause is not None and self._pause.desired_sha256 != desired.digest:
            self._pause = None
        if self._is_due(now):
            self._guarded(lambda at: self._follow(desired, at), now, desired.digest)

    def _follow(self, desired: Desired, now: datetime) -> None:
        accepted = self._state.desired_sha256 == desired.digest
        if accepted and not self._may_fetch(now):
            return
        problem = self._follower.refresh_trust()
        if not accepted:
            self._make_way(self._follower.accept(desired, now), now)
        if not self._may_fetch(now):
            self._pause = None
            return
        if problem is not None:
            raise problem
        self._fetch(now)
        self._work(now)

    def _may_fetch(self, now: datetime) -> bool:
        """Whether there is a release to fetch, and the link is one for files as large as a model."""
        waiting = None
        if self._wants_files() and self._is_metered():
            waiting = str(self._state.desired_sha256)
            if waiting != self._waits_for_link:
                self._journal.record(now, "postponed", self._assigned_id(), WAITS_FOR_LINK)
        self._waits_for_link = waiting
        return waiting is None and self._wants_files()

    def _assigned_id(self) -> str | None:
        assignment = self._state.assignment
        return assignment.release_id if assignment else None

    def _wants_files(self) -> bool:
        """Whether the assigned release has to be fetched, or fetched on."""
        assignment, attempt = self._state.assignment, self._state.attempt
        plan = decide_update(self._kept_id(), assignment)
        if not plan:
            return False
        release_id = str(plan.release_id)
        if attempt.phase in ACTIVE and attempt.release_id == release_id:
            return attempt.phase is Phase.DOWNLOADING
        return not is_refused(attempt, release_id, str(self._state.desired_sha256))

    def _make_way(self, assignment: Assignment, now: datetime) -> None:
        """End an update that another assignment has overtaken."""
        attempt = self._state.attempt
        if attempt.phase in ACTIVE and assignment.release_id not in (None, attempt.release_id):
            self._apply(Superseded(f"{assignment.release_id} is assigned instead"), now)

    # ---- an update's own steps

    def _fetch(self, now: datetime) -> None:
        assignment, digest = self._state.assignment, self._state.desired_sha256
        if assignment is None or digest is None:
            return
        manifest = self._installer.fetch_manifest(assignment, self._state.floor)
        if self._state.attempt.phase is not Phase.DOWNLOADING:
            self._apply(Assigned(manifest.release_id, manifest.number, digest, self._free_slot()), now)
        slot = self._state.attempt.slot
        if slot is not None:
            self._installer.fetch_files(slot, manifest)
            self._apply(Fetched(), now)

    def _work(self, now: datetime) -> None:
        """Check what was fetched and let it answer; each beginning is counted on the disk first."""
        while self._state.attempt.phase in LOCAL and not self._seat.on_trial:
            try:
                content = self._load_candidate()
            except CorruptFileError as exc:
                self._apply(Damaged(str(exc)), now)
                return
            self._apply(Started(), now)
            step = {Phase.SMOKE: self._check, Phase.TRIAL: self._try_out}.get(self._state.attempt.phase)
            if step is None:
                return
            step(content, now)

    def _check(self, content: SlotContent, now: datetime) -> None:
        try:
            self._loader.prove(content)
        except SelfCheckError as exc:
            if not exc.retryable:
                self._apply(Failed(str(exc)), now)
                return
            self._apply(Postponed(str(exc)), now)
            raise
        self._apply(Passed(), now)

    def _try_out(self, content: SlotContent, now: datetime) -> None:
        try:
            shown = self._loader.prove(content)
            self._seat.begin_trial(content, shown, self._limits.trial)
        except SelfCheckError as exc:
            if exc.retryable:
                self._apply(Postponed(str(exc)), now)
                raise
            self._apply(Failed(str(exc)), now)

    def _load_candidate(self) -> SlotContent:
        slot = self._state.attempt.slot
        if slot is None:
            raise CorruptFileError("the update has no slot")
        content = self._slots.load(slot)
        if content.manifest.release_id != self._state.attempt.release_id:
            raise CorruptFileError(f"slot {slot} holds {content.manifest.release_id}")
        return content

    # ---- the machine's shell

    def _apply(self, event: Event, now: datetime) -> None:
        """Do what follows from an event, in the order the step says.

        Raises:
            AgentError: the disk refused; the phase is as it was.
        """
        step = advance(self._state.attempt, event)
        told = _describe_step(step.attempt, now) if Effect.REPORT in step.effects else self._state.last_event
        doing: dict[Effect, Callable[[], None]] = {
            Effect.SAVE: lambda: self._save_attempt(step.attempt, told),
            Effect.PLAY_INCUMBENT: lambda: self._play_incumbent(now),
            Effect.KEEP_SLOT: self._keep_slot,
            Effect.EMPTY_SLOT: self._empty_slot,
            Effect.REPORT: lambda: self._journal.tell(told),
        }
        for effect in step.effects:
            doing[effect]()

    def _save_attempt(self, attempt: Attempt, told: UpdateEvent | None) -> None:
        floor = self._state.floor
        if attempt.phase is Phase.COMMITTED and attempt.number is not None:
            floor = raise_release_floor(attempt.number, attempt.release_id, floor)
        self._journal.update(attempt=attempt, last_event=told, floor=floor)
        if attempt.phase is Phase.COMMITTED:
            self._seat.keep_challenger()
            self._pause = None

    def _play_incumbent(self, now: datetime) -> None:
        self._seat.give_up_challenger()
        if self._live.current() is None:
            self._restore_any(now)

    def _keep_slot(self) -> None:
        slot = self._state.attempt.slot
        if slot is not None and self._slots.committed() != slot:
            self._slots.commit(slot)

    def _empty_slot(self) -> None:
        slot = self._state.attempt.slot
        if slot is not None and self._slots.committed() != slot:
            self._slots.discard(slot)

    def _redo_effects(self) -> None:
        """Do what a process that died, or a full disk, left undone; a disk that still refuses is asked again."""
        doing = {Effect.KEEP_SLOT: self._keep_slot, Effect.EMPTY_SLOT: self._empty_slot}
        for effect in redo_effects(self._state.attempt):
            try:
                doing[effect]()
            except AgentError as exc:
                log.warning("%s", exc)

    def _guarded(self, work: Callable[[datetime], None], now: datetime, digest: str | None = None) -> None:
        """Do it; what goes wrong is told, and the assignment left alone for a while."""
        try:
            work(now)
        except (TrustError, ContractError, AgentError) as exc:
            self._put_off(digest or self._state.desired_sha256, exc, now)

    def _put_off(self, digest: str | None, exc: Error, now: datetime) -> None:
        """Keep the old model, wait before the same assignment is tried again, and tell each reason once."""
        known, detail = self._pause, str(exc)
        failures = (known.failures if known else 0) + 1
        retryable = exc.retryable or not isinstance(exc, AgentError)
        delay_s = decide_delay_s(self._limits.retry, failures=failures, retryable=retryable, rng=self._rng)
        self._pause = _Pause(digest, detail, failures, now, timedelta(seconds=delay_s))
        if known is not None and known.detail == detail:
            return
        accepted = self._state.assignment if self._state.desired_sha256 == digest else None
        outcome = "postponed" if isinstance(exc, AgentError) and exc.retryable else "refused"
        self._journal.record(now, outcome, accepted.release_id if accepted else None, detail)

    def _is_due(self, now: datetime) -> bool:
        return self._pause is None or self._pause.is_over(now)

    def _rest(self, stop: threading.Event, delay_s: float) -> None:
        """Wait for the next turn; a release on trial is judged meanwhile. What is unforeseen ends the wait and not the
        thread: the next turn meets it again, and tells."""
        while delay_s > 0.0:
            wait_s = min(delay_s, TRIAL_TICK_S) if self._seat.on_trial else delay_s
            if stop.wait(wait_s):
                return
            delay_s -= wait_s
            try:
                self.watch(self._wall_clock())
            except Exception as exc:
                self._report.count_error(type(exc).__name__)
                return

    def _leave_trial(self) -> None:
        """An end in good order is no sign against the release on trial."""
        if self._seat.on_trial:
            self._guarded(lambda at: self._apply(Stopped(), at), self._wall_clock())

    @property
    def _state(self) -> UpdaterState:
        return self._journal.state

    def _free_slot(self) -> SlotName:
        """Return the slot that neither answers nor is the one to start from.

        Raises:
            AgentError: there is none now.
        """
        idle, kept = self._slots.idle(), self._seat.kept
        if kept is not None and kept.name == idle:
            raise AgentError(f"slot {idle} answers while the committed one cannot be used", retryable=True)
        return idle

    def _kept_id(self) -> str | None:
        kept = self._seat.kept
        return kept.manifest.release_id if kept else None


def _describe_step(attempt: Attempt, now: datetime) -> UpdateEvent:
    detail = attempt.reason or f"number {attempt.number}, slot {attempt.slot}"
    return UpdateEvent(at=now, outcome=attempt.phase.value, release_id=attempt.release_id, detail=detail)
