"""The update loop: follow the signed assignment, prove the release, swap it in, and keep the old one on any doubt.

A steady poll is one small GET. A changed assignment is believed only after a walk of the TUF metadata, so a
revoked key is noticed before anything it signed is followed.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from curate.contracts.assignment import Assignment, CapturePolicySpec
from curate.contracts.device_settings import DeviceSettings
from curate.contracts.paths import desired_key
from curate.contracts.release import ReleaseManifest
from curate.contracts.signing import manifest_target
from curate.contracts.telemetry import UpdateEvent
from curate.errors import (
    AccessDeniedError,
    AgentError,
    BlobNotFoundError,
    ContractError,
    Error,
    SelfCheckError,
    StorageError,
    TrustError,
)
from curate.storage.ports import BlobStore
from edge_agent.backoff import BackoffPolicy, decide_delay_s
from edge_agent.models.inference import LiveModel, LoadedModel, load_model
from edge_agent.models.repository import SignedRepository
from edge_agent.models.self_check import load_golden, verify_model
from edge_agent.models.slots import SLOT_NAMES, SlotContent, Slots, Variant
from edge_agent.models.trust import (
    decide_update,
    raise_metadata_floor,
    raise_release_floor,
    verify_assignment,
    verify_release,
    verify_root_version,
)
from edge_agent.models.updater_state import Trial, UpdaterState, load_state, persist_state
from edge_agent.report import DeviceReport

log = logging.getLogger(__name__)

MAX_DESIRED_BYTES: Final = 64 * 1024
MAX_MANIFEST_BYTES: Final = 1024 * 1024
MAX_TRIAL_STARTS: Final = 3
"""How often the process may die over one release before it is refused; a pulled plug may explain one or two."""


@dataclass(frozen=True)
class UpdateLimits:
    """Bounds of what an update may cost this device."""

    max_model_bytes: int = 256 * 1024 * 1024
    max_golden_bytes: int = 64 * 1024 * 1024
    max_latency_s: float = 5.0
    retry: BackoffPolicy = field(default_factory=lambda: BackoffPolicy(base_s=30.0, cap_s=3600.0, refused_s=6 * 3600.0))
    """Waits after a refusal of the same assignment; `refused_s` after a failed self-check, which only
    a new release cures."""


@dataclass(frozen=True)
class _Refusal:
    desired_sha256: str
    detail: str
    failures: int
    refused_at: datetime
    delay: timedelta

    def is_due(self, now: datetime) -> bool:
        """Whether to try again; a clock that was set back does not stretch the wait."""
        return not self.refused_at <= now < self.refused_at + self.delay


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
        report: DeviceReport,
        threads: int = 1,
        variant: Variant = "int8",
        interval_s: float = 30.0,
        max_backoff_s: float = 300.0,
        limits: UpdateLimits | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._device_id = device_id
        self._store = store
        self._repository = repository
        self._slots = slots
        self._state_file = state_file
        self._live = live
        self._policy_sink = policy_sink
        self._settings_sink = settings_sink
        self._report = report
        self._threads = threads
        self._variant: Variant = variant
        self._interval_s = interval_s
        self._link_backoff = BackoffPolicy(base_s=interval_s, cap_s=max_backoff_s, refused_s=max_backoff_s)
        self._limits = limits or UpdateLimits()
        self._rng = rng or random.Random()
        self._state: UpdaterState = load_state(state_file)
        self._installed: SlotContent | None = None
        self._refusal: _Refusal | None = None

    def restore(self, now: datetime) -> None:
        """Start from what the disk holds, without the network: the accepted policy, then the committed slot,
        then the other one, each only after its digests and its golden answers. Never raises for a bad slot."""
        if self._state.assignment is not None:
            self._follow_policy(self._state.assignment, now)
        committed = self._slots.committed()
        for name in sorted(SLOT_NAMES, key=lambda name: name != committed):
            try:
                content = self._slots.load(name)
                model = self._load_checked(content)
                if name != committed:
                    self._slots.commit(name)
            except (AgentError, ContractError) as exc:
                if name == committed:
                    self._record(now, "restore_failed", None, str(exc))
                continue
            self._state = self._state.model_copy(update={"floor": raise_release_floor(model.number, self._state.floor)})
            self._go_live(model, content)
            if name != committed:
                self._record(now, "rolled_back", model.release_id, f"slot {committed} cannot be used")
            return

    def turn(self, now: datetime) -> UpdateEvent | None:
        """Look at the assignment once and act on it.

        Returns:
            What was recorded: `committed`, `refused`, `rolled_back`, or None when there was nothing to do.

        Raises:
            StorageError: the bucket cannot be reached; the next turn tries again.
        """
        try:
            raw = self._store.get(desired_key(self._device_id), max_bytes=MAX_DESIRED_BYTES)
        except BlobNotFoundError:
            return None
        except AccessDeniedError as exc:  # what S3 answers for a missing key without the right to list
            self._report.count_error(type(exc).__name__)
            return None
        digest = hashlib.sha256(raw).hexdigest()
        if self._refusal is not None and self._refusal.desired_sha256 != digest:
            self._refusal = None
        if self._refusal is not None and not self._refusal.is_due(now):
            return None
        try:
            return self._follow(raw, digest, now)
        except (TrustError, ContractError, AgentError) as exc:
            return self._refuse(digest, exc, now)

    def run(self, stop: threading.Event) -> None:
        """Turn until told to stop; a failing turn is counted and the next one begins."""
        failures = 0
        while not stop.is_set():
            delay_s = self._interval_s
            try:
                self.turn(datetime.now(UTC))
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
            stop.wait(delay_s)

    def _follow(self, raw: bytes, digest: str, now: datetime) -> UpdateEvent | None:
        accepted = self._state.desired_sha256 == digest
        if accepted and not decide_update(self._installed_id(), self._state.assignment):
            return None
        problem = self._refresh_trust()
        if not accepted:
            self._accept(raw, digest, now)
        assignment = self._state.assignment
        if assignment is None or not decide_update(self._installed_id(), assignment):
            self._refusal = None
            return None
        if problem is not None:
            raise problem
        return self._install(assignment, digest, now)

    def _refresh_trust(self) -> TrustError | None:
        """Walk the signed metadata; what is wrong with them stops an installation, not a change of policy."""
        try:
            versions = self._repository.refresh()
            self._save(self._state.model_copy(update={"floor": raise_metadata_floor(versions, self._state.floor)}))
        except TrustError as exc:
            return exc
        return None

    def _accept(self, raw: bytes, digest: str, now: datetime) -> None:
        root = self._repository.load_trusted_root()
        verify_root_version(root.version, self._state.floor)
        assignment, floor = verify_assignment(raw, root.assignment_keys, self._device_id, self._state.floor)
        self._save(
            self._state.model_copy(
                update={"floor": floor, "assignment": assignment, "desired_sha256": digest, "trial": None}
            )
        )
        self._follow_policy(assignment, now)

    def _follow_policy(self, assignment: Assignment, now: datetime) -> None:
        self._settings_sink(assignment.settings)
        try:
            self._policy_sink(assignment.capture_policy)
        except AgentError as exc:  # the release of the same assignment may still be fine
            self._record(now, "policy_refused", None, str(exc))
            self._report.set_assignment(assignment.version, None)
            return
        self._report.set_assignment(assignment.version, assignment.capture_policy.version)

    def _install(self, assignment: Assignment, digest: str, now: datetime) -> UpdateEvent:
        content = self._fetch_release(assignment)
        self._start_trial(content.manifest.release_id, digest)
        try:
            model = self._load_checked(content)
        except SelfCheckError:
            self._slots.discard(content.name)
            raise
        finally:
            self._save(self._state.model_copy(update={"trial": None}))
        return self._swap(model, content, now)

    def _fetch_release(self, assignment: Assignment) -> SlotContent:
        release_id = str(assignment.release_id)
        name = self._slots.open_idle()
        manifest_path = self._slots.folder(name) / "manifest.json"
        self._repository.fetch_target(manifest_target(release_id), manifest_path, max_bytes=MAX_MANIFEST_BYTES)
        manifest = _load_manifest(manifest_path)
        verify_release(manifest, assignment, self._state.floor)
        if self._variant not in manifest.variants:
            raise TrustError(f"release {release_id} has no {self._variant} model")
        for artifact, path, max_bytes in (
            (manifest.golden, self._slots.golden_path(name), self._limits.max_golden_bytes),
            (manifest.variants[self._variant], self._slots.model_path(name), self._limits.max_model_bytes),
        ):
            self._repository.fetch_target(artifact.target, path, max_bytes=max_bytes, expected=artifact)
        return self._slots.close(name, manifest, self._variant)

    def _start_trial(self, release_id: str, digest: str) -> None:
        """Note, before the model is touched, that it is about to be: a model that kills the process must not
        kill it again at every start."""
        trial = self._state.trial
        starts = trial.starts if trial and (trial.release_id, trial.desired_sha256) == (release_id, digest) else 0
        if starts >= MAX_TRIAL_STARTS:
            raise SelfCheckError(f"the agent died {starts} times while it tried release {release_id}")
        trial = Trial(release_id=release_id, desired_sha256=digest, starts=starts + 1)
        self._save(self._state.model_copy(update={"trial": trial}))

    def _load_checked(self, content: SlotContent) -> LoadedModel:
        golden = load_golden(content.golden, content.manifest.model)
        model = load_model(content.model, content.manifest, threads=self._threads)
        verify_model(model, golden, max_latency_s=self._limits.max_latency_s)
        return model

    def _swap(self, model: LoadedModel, content: SlotContent, now: datetime) -> UpdateEvent:
        old_model, old_content = self._live.current(), self._installed
        self._go_live(model, content)
        try:
            self._save(self._state.model_copy(update={"floor": raise_release_floor(model.number, self._state.floor)}))
            self._slots.commit(content.name)
        except AgentError as exc:
            self._installed = old_content  # so that the next turn tries to commit again
            if old_model is None:
                raise
            self._live.replace(old_model)
            self._report.set_release(old_model.release_id)
            self._delay_retry(self._state.desired_sha256 or "", str(exc), retryable=True, now=now)
            return self._record(now, "rolled_back", model.release_id, str(exc))
        self._refusal = None
        return self._record(now, "committed", model.release_id, f"number {model.number}, slot {content.name}")

    def _go_live(self, model: LoadedModel, content: SlotContent) -> None:
        self._live.replace(model)
        self._installed = content
        self._report.set_release(model.release_id)

    def _refuse(self, digest: str, exc: Error, now: datetime) -> UpdateEvent | None:
        """Keep the old model, wait before the same assignment is tried again, and tell each reason once."""
        known = self._refusal.detail if self._refusal else None
        detail = str(exc)
        self._delay_retry(digest, detail, retryable=not isinstance(exc, SelfCheckError), now=now)
        if detail == known:
            return None
        accepted = self._state.assignment if self._state.desired_sha256 == digest else None
        return self._record(now, "refused", accepted.release_id if accepted else None, detail)

    def _delay_retry(self, digest: str, detail: str, *, retryable: bool, now: datetime) -> None:
        failures = (self._refusal.failures if self._refusal else 0) + 1
        delay_s = decide_delay_s(self._limits.retry, failures=failures, retryable=retryable, rng=self._rng)
        self._refusal = _Refusal(digest, detail, failures, now, timedelta(seconds=delay_s))

    def _installed_id(self) -> str | None:
        return self._installed.manifest.release_id if self._installed else None

    def _save(self, state: UpdaterState) -> None:
        if state != self._state:
            persist_state(self._state_file, state)
            self._state = state

    def _record(self, now: datetime, outcome: str, release_id: str | None, detail: str) -> UpdateEvent:
        event = UpdateEvent(at=now, outcome=outcome, release_id=release_id, detail=detail)
        self._report.record_update(event)
        if outcome == "committed":
            log.info("release %s committed", release_id)
        else:
            self._report.count_error(outcome)
            log.warning("update %s: %s", outcome, detail)
        return event


def _load_manifest(path: Path) -> ReleaseManifest:
    try:
        return ReleaseManifest.from_bytes(path.read_bytes())
    except OSError as exc:
        raise AgentError(f"the manifest cannot be read: {exc}", retryable=True) from exc
