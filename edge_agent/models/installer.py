"""Brings an assigned release from the bucket into a slot, verified file by file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from curate.contracts.assignment import Assignment
from curate.contracts.release import ReleaseManifest
from curate.contracts.signing import manifest_target
from curate.errors import TrustError
from edge_agent.backoff import BackoffPolicy
from edge_agent.models.repository import SignedRepository
from edge_agent.models.slots import Slots, Variant
from edge_agent.models.trial_watch import TrialRules
from edge_agent.models.trust import TrustFloor, verify_release
from edge_agent.models.update_machine import SlotName

MAX_MANIFEST_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class UpdateLimits:
    """Bounds of what an update may cost this device."""

    max_model_bytes: int = 256 * 1024 * 1024
    max_golden_bytes: int = 64 * 1024 * 1024
    trial: TrialRules = field(default_factory=TrialRules)
    retry: BackoffPolicy = field(default_factory=lambda: BackoffPolicy(base_s=30.0, cap_s=3600.0, refused_s=6 * 3600.0))
    """Waits after a refusal that may pass; `refused_s` after one that will not by itself."""


class Installer:
    """Not thread-safe: the update loop owns it. The repository must have been refreshed."""

    def __init__(self, repository: SignedRepository, slots: Slots, *, variant: Variant, limits: UpdateLimits) -> None:
        self._repository = repository
        self._slots = slots
        self._variant: Variant = variant
        self._limits = limits

    def fetch_manifest(self, assignment: Assignment, floor: TrustFloor) -> ReleaseManifest:
        """Return the signed manifest of the assigned release, if this device may and can run it.

        Raises:
            TrustError: it is not signed, describes another release, is older than accepted, or lacks the variant.
            ContractError: it cannot be read.
            StorageUnavailableError: the bucket cannot be reached.
        """
        release_id = str(assignment.release_id)
        raw = self._repository.fetch_small(manifest_target(release_id), max_bytes=MAX_MANIFEST_BYTES)
        manifest = ReleaseManifest.from_bytes(raw)
        verify_release(manifest, assignment, floor)
        if self._variant not in manifest.variants:
            raise TrustError(f"release {release_id} has no {self._variant} model")
        return manifest

    def fetch_files(self, name: SlotName, manifest: ReleaseManifest) -> None:
        """Fill the slot and seal it. What came before a link broke, or a restart, is kept and continued.

        Raises:
            TrustError: a file is too large, unsigned, or not what the manifest says.
            StorageUnavailableError: the bucket cannot be reached.
            AgentError: the disk refused.
        """
        self._slots.open(name)
        for artifact, path, max_bytes in (
            (manifest.golden, self._slots.golden_path(name), self._limits.max_golden_bytes),
            (manifest.variants[self._variant], self._slots.model_path(name), self._limits.max_model_bytes),
        ):
            self._repository.fetch_target(artifact, path, max_bytes=max_bytes)
        self._slots.close(name, manifest, self._variant)
