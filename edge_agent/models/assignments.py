"""What the cloud wants of this device: fetched, believed or not, and followed where it is no release."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from curate.contracts.assignment import Assignment, CapturePolicySpec
from curate.contracts.device_settings import DeviceSettings
from curate.contracts.paths import desired_key
from curate.contracts.sketch import EmbeddingSketch
from curate.errors import AccessDeniedError, AgentError, BlobNotFoundError, TrustError
from curate.storage.ports import BlobStore
from edge_agent.models.repository import SignedRepository
from edge_agent.models.trust import raise_metadata_floor, verify_assignment, verify_root_version
from edge_agent.models.updater_state import UpdateJournal
from edge_agent.report import DeviceReport

MAX_DESIRED_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Desired:
    """`desired.json` as it was fetched; not yet believed."""

    raw: bytes
    digest: str


class AssignmentFollower:
    """Not thread-safe: the update loop owns it."""

    def __init__(
        self,
        *,
        device_id: str,
        store: BlobStore,
        repository: SignedRepository,
        journal: UpdateJournal,
        policy_sink: Callable[[CapturePolicySpec], None],
        settings_sink: Callable[[DeviceSettings], None],
        sketch_sink: Callable[[EmbeddingSketch | None], None],
        report: DeviceReport,
    ) -> None:
        self._device_id = device_id
        self._store = store
        self._repository = repository
        self._journal = journal
        self._policy_sink = policy_sink
        self._settings_sink = settings_sink
        self._sketch_sink = sketch_sink
        self._report = report
        self._desired: Desired | None = None
        self._tag: str | None = None

    def poll(self) -> Desired | None:
        """Return what lies in the bucket now; None when nothing does. An unchanged document is not transferred.

        Raises:
            StorageError: the bucket cannot be reached.
        """
        try:
            blob = self._store.get_if_changed(desired_key(self._device_id), self._tag, max_bytes=MAX_DESIRED_BYTES)
        except BlobNotFoundError:
            self._tag, self._desired = None, None
            return None
        except AccessDeniedError as exc:  # what S3 answers for a missing key without the right to list
            self._report.count_error(type(exc).__name__)
            return None
        if blob is not None:
            self._tag = blob.tag
            self._desired = Desired(blob.data, hashlib.sha256(blob.data).hexdigest())
        return self._desired

    def refresh_trust(self) -> TrustError | None:
        """Walk the signed metadata; what is wrong with them stops an installation, not a change of policy.

        Raises:
            StorageUnavailableError: the bucket cannot be reached.
            AgentError: the disk refused.
        """
        try:
            versions = self._repository.refresh()
            self._journal.update(floor=raise_metadata_floor(versions, self._journal.state.floor))
        except TrustError as exc:
            return exc
        return None

    def accept(self, desired: Desired, now: datetime) -> Assignment:
        """Believe an assignment, and follow its settings and policy.

        Settings that cannot be read are told and the old ones stay: policy and release are none the worse for it.

        Raises:
            TrustError: it is not signed for this device, or older than accepted.
            AgentError: the disk refused.
        """
        journal = self._journal
        root = self._repository.load_trusted_root()
        verify_root_version(root.version, journal.state.floor)
        believed = verify_assignment(desired.raw, root.assignment_keys, self._device_id, journal.state.floor)
        assignment = believed.assignment
        if believed.settings_problem is not None:
            old = journal.state.assignment
            assignment = assignment.model_copy(update={"settings": old.settings if old else DeviceSettings()})
        known = journal.state.settings_known or believed.settings_problem is None
        journal.update(floor=believed.floor, assignment=assignment, desired_sha256=desired.digest, settings_known=known)
        if believed.settings_problem is not None:
            journal.record(now, "settings_refused", None, believed.settings_problem)
        self.follow(assignment, now)
        return assignment

    def follow(self, assignment: Assignment, now: datetime) -> None:
        """Follow settings, policy and fleet's sketch; what cannot be followed is told, and the others still are."""
        self._sketch_sink(assignment.fleet_sketch)
        self._follow_settings(assignment.settings, now)
        policy_version: str | None = assignment.capture_policy.version
        try:
            self._policy_sink(assignment.capture_policy)
        except AgentError as exc:
            self._journal.record(now, "policy_refused", None, str(exc))
            policy_version = None
        self._report.set_assignment(assignment.version, policy_version)

    def follow_none(self, now: datetime) -> None:
        """Go by the device's own file: nothing was ever assigned. Unless that is only not known any more."""
        if self._journal.state.settings_known:
            self._follow_settings(DeviceSettings(), now)
        else:
            self._journal.record(
                now, "settings_lost", None, "the state was damaged: nothing is kept until it is known what is assigned"
            )

    def _follow_settings(self, settings: DeviceSettings, now: datetime) -> None:
        if not self._journal.state.settings_known:
            return
        try:
            self._settings_sink(settings)
        except AgentError as exc:
            self._journal.record(now, "settings_refused", None, str(exc))
