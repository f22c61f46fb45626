"""What this device believes and what it refuses. Pure: bytes and values in, a verdict out.

TUF (https://theupdateframework.github.io/specification/latest/) proves who signed a release. The floor proves
that nothing goes backwards, also after a power cut took TUF's own files, which nobody syncs to the disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field
from securesystemslib import dsse
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key
from securesystemslib.signer import Signature as RawSignature

from curate.contracts.assignment import Assignment
from curate.contracts.release import Envelope, ReleaseManifest
from curate.contracts.signing import ASSIGNMENT_PAYLOAD_TYPE, decode_base64, envelope_payload
from curate.errors import ContractError, TrustError


class MetadataVersions(BaseModel):
    """Versions of the TUF roles that were verified together."""

    model_config = ConfigDict(frozen=True)

    root: int = Field(default=0, ge=0)
    timestamp: int = Field(default=0, ge=0)
    snapshot: int = Field(default=0, ge=0)
    targets: int = Field(default=0, ge=0)


class TrustFloor(BaseModel):
    """The highest versions this device has accepted; it never goes below."""

    model_config = ConfigDict(frozen=True)

    metadata: MetadataVersions = MetadataVersions()
    release_number: int = Field(default=0, ge=0)
    release_id: str | None = None
    """Which release had that number: a number never names two. None where an older agent wrote this."""
    assignment_version: int = Field(default=0, ge=0)
    assignment_sha256: str | None = None
    """Digest of the accepted assignment's payload: a version never says two things."""


@dataclass(frozen=True)
class UpdatePlan:
    """What to do about an assignment; falsy when there is nothing to install."""

    release_id: str | None
    reason: str

    def __bool__(self) -> bool:
        return self.release_id is not None


@dataclass(frozen=True)
class BelievedAssignment:
    """A signed assignment for this device that is not older than what was accepted."""

    assignment: Assignment
    floor: TrustFloor
    """Raised by it."""
    settings_problem: str | None = None
    """Why its settings cannot be read, and are empty here; release and policy are none the worse for it."""


def verify_assignment(
    envelope_bytes: bytes, keys: Mapping[str, Key], device_id: str, floor: TrustFloor
) -> BelievedAssignment:
    """Believe an assignment, or say why not.

    The signature covers type and raw payload (DSSE v1) and is checked before the payload is parsed.

    Args:
        envelope_bytes: `desired.json` as fetched.
        keys: key id to key, from the verified TUF root.
        device_id: this device.
        floor: what has been accepted before.

    Raises:
        TrustError: not an envelope, not signed by a trusted key, of another type, for another device, or
            older than what was accepted.
    """
    payload = _verified_payload(envelope_bytes, keys)
    assignment, settings_problem = _read_assignment(payload)
    if assignment.device_id != device_id:
        raise TrustError(f"the assignment is for device {assignment.device_id}, not for {device_id}")
    if assignment.version < floor.assignment_version:
        raise TrustError(
            f"assignment version {assignment.version} is older than the accepted {floor.assignment_version}",
            hint="assign again with accepted_version from this device's heartbeat",
        )
    digest = hashlib.sha256(payload).hexdigest()
    if assignment.version == floor.assignment_version and floor.assignment_sha256 not in (None, digest):
        raise TrustError(f"assignment version {assignment.version} was accepted before with other contents")
    raised = floor.model_copy(update={"assignment_version": assignment.version, "assignment_sha256": digest})
    return BelievedAssignment(assignment, raised, settings_problem)


def _read_assignment(payload: bytes) -> tuple[Assignment, str | None]:
    """Read a signed assignment; settings that this device cannot read do not keep a release from it."""
    try:
        return Assignment.from_bytes(payload), None
    except ContractError as exc:
        problem = str(exc)
        try:
            document = json.loads(payload)
            del document["settings"]
            return Assignment.from_bytes(json.dumps(document).encode()), problem
        except (ContractError, ValueError, TypeError, KeyError, RecursionError):
            raise TrustError(f"the assignment is signed but cannot be read: {problem}") from exc


def decide_update(current_release_id: str | None, assignment: Assignment | None) -> UpdatePlan:
    """Decide which release to install, if any, given the one whose slot is committed."""
    if assignment is None:
        return UpdatePlan(None, "nothing is assigned")
    if assignment.release_id is None:
        return UpdatePlan(None, "the assignment names no release")
    if assignment.release_id == current_release_id:
        return UpdatePlan(None, "the assigned release is installed")
    return UpdatePlan(assignment.release_id, f"assignment {assignment.version} names it")


def verify_release(manifest: ReleaseManifest, assignment: Assignment, floor: TrustFloor) -> None:
    """Accept the manifest of the assigned release.

    Raises:
        TrustError: it describes another release, or one that is older than accepted, or bears the number of another
            that was, and no downgrade is allowed.
    """
    if manifest.release_id != assignment.release_id:
        raise TrustError(f"the manifest of {assignment.release_id} describes {manifest.release_id}")
    if manifest.number < floor.release_number and not assignment.allow_downgrade:
        raise TrustError(
            f"release number {manifest.number} is older than the accepted {floor.release_number}",
            hint="assign it with allow_downgrade",
        )
    is_another = floor.release_id not in (None, manifest.release_id)
    if manifest.number == floor.release_number and is_another and not assignment.allow_downgrade:
        raise TrustError(
            f"release number {manifest.number} was accepted before as {floor.release_id}",
            hint="publish it under a number of its own, or assign it with allow_downgrade",
        )


def verify_root_version(version: int, floor: TrustFloor) -> None:
    """Raise TrustError when the trusted root is older than one this device has followed."""
    if version < floor.metadata.root:
        raise TrustError(f"root version {version} is older than the accepted {floor.metadata.root}")


def raise_metadata_floor(versions: MetadataVersions, floor: TrustFloor) -> TrustFloor:
    """Return the floor raised to these versions.

    A newer root starts the other roles' counts afresh, as TUF's recovery from a fast-forward attack asks
    (specification, section 5.3.11): else a thief of the online key could lock devices out for good.

    Raises:
        TrustError: one of them is older than accepted.
    """
    accepted = MetadataVersions(root=floor.metadata.root) if versions.root > floor.metadata.root else floor.metadata
    floors = accepted.model_dump()
    for role, version in versions.model_dump().items():
        if version < floors[role]:
            raise TrustError(f"{role} version {version} is older than the accepted {floors[role]}")
    return floor.model_copy(update={"metadata": versions})


def raise_release_floor(number: int, release_id: str | None, floor: TrustFloor) -> TrustFloor:
    """Return the floor raised to this release; an allowed downgrade does not lower it."""
    if number <= floor.release_number:
        return floor
    return floor.model_copy(update={"release_number": number, "release_id": release_id})


def _verified_payload(envelope_bytes: bytes, keys: Mapping[str, Key]) -> bytes:
    try:
        envelope = Envelope.from_bytes(envelope_bytes)
        payload = envelope_payload(envelope)
        signatures = {s.keyid: RawSignature(s.keyid, decode_base64(s.sig).hex()) for s in envelope.signatures}
    except ContractError as exc:
        raise TrustError(f"the assignment is not a signed envelope: {exc}") from exc
    if not keys:
        raise TrustError("the trusted root names no key for assignments")
    try:
        dsse.Envelope(payload, envelope.payload_type, signatures).verify(list(keys.values()), threshold=1)
    except UnverifiedSignatureError as exc:
        raise TrustError("the assignment is not signed by a trusted key") from exc
    if envelope.payload_type != ASSIGNMENT_PAYLOAD_TYPE:
        raise TrustError(f"the signed document is a {envelope.payload_type}, not an assignment")
    return payload
