"""Tell one device which release and which capture policy it shall follow: a signed `desired.json`."""

from __future__ import annotations

import base64
import logging
from datetime import datetime
from pathlib import Path

from securesystemslib import dsse
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner
from securesystemslib.signer import Signature as RawSignature

from curate.contracts.assignment import Assignment, CapturePolicySpec
from curate.contracts.device_settings import DeviceSettings
from curate.contracts.paths import desired_key
from curate.contracts.release import Envelope, Signature
from curate.contracts.signing import ASSIGNMENT_PAYLOAD_TYPE, decode_base64, envelope_payload
from curate.contracts.sketch import EmbeddingSketch
from curate.errors import BlobNotFoundError, BlobTooLargeError, ContractError
from curate.release.keys import load_key
from curate.storage.ports import BlobStore

logger = logging.getLogger(__name__)

_MAX_ENVELOPE_BYTES = 64 * 1024


def assign(
    store: BlobStore,
    key_dir: Path,
    device_id: str,
    release_id: str | None,
    capture_policy: CapturePolicySpec,
    *,
    now: datetime,
    settings: DeviceSettings | None = None,
    fleet_sketch: EmbeddingSketch | None = None,
    allow_downgrade: bool = False,
    accepted_version: int = 0,
) -> Assignment:
    """Assign a release and a policy to one device; the same again writes nothing.

    Args:
        store: the bucket.
        key_dir: holds the `assignment` key.
        device_id: the device.
        release_id: what it shall run; None leaves it with what it has.
        capture_policy: how it chooses captures.
        now: becomes `issued_at`.
        settings: what else of the device's own file it shall follow differently.
        fleet_sketch: what the fleet has sent already, in that release's space.
        allow_downgrade: lets the device go back to an older release.
        accepted_version: the highest version its heartbeat says it has followed. Matters only when the
            bucket's document was lost: a device never follows a version lower than this.

    Raises:
        ReleaseError: the assignment key is absent.
    """
    signer = load_key(key_dir, "assignment")
    envelope, current = _fetch_current(store, device_id)
    wanted = Assignment(
        device_id=device_id,
        version=1 + max(current.version if current else 0, accepted_version),
        release_id=release_id,
        capture_policy=capture_policy,
        settings=settings or DeviceSettings(),
        fleet_sketch=fleet_sketch,
        allow_downgrade=allow_downgrade,
        issued_at=now,
    )
    if envelope and current and _says_the_same(current, wanted) and _is_signed_by(envelope, signer):
        return current
    store.put(desired_key(device_id), sign_assignment(wanted, signer), content_type="application/json")
    return wanted


def read_assignment(store: BlobStore, key_dir: Path, device_id: str) -> Assignment | None:
    """Return what a device is assigned now; None when that is nothing, or nothing that was signed here for it.

    Raises:
        ReleaseError: the assignment key is absent.
    """
    signer = load_key(key_dir, "assignment")
    envelope, current = _fetch_current(store, device_id)
    if envelope is None or current is None or current.device_id != device_id or not _is_signed_by(envelope, signer):
        return None
    return current


def sign_assignment(assignment: Assignment, signer: CryptoSigner) -> bytes:
    """Wrap the assignment in a DSSE envelope (https://github.com/secure-systems-lab/dsse, v1), as JSON bytes."""
    payload = assignment.to_bytes()
    signature = dsse.Envelope(payload, ASSIGNMENT_PAYLOAD_TYPE, {}).sign(signer)
    return Envelope(
        payload_type=ASSIGNMENT_PAYLOAD_TYPE,
        payload=base64.b64encode(payload).decode(),
        signatures=[
            Signature(keyid=signature.keyid, sig=base64.b64encode(bytes.fromhex(signature.signature)).decode())
        ],
    ).to_bytes()


def _fetch_current(store: BlobStore, device_id: str) -> tuple[Envelope | None, Assignment | None]:
    """Read what the bucket says now; its signature is not checked, since it only tells which version comes next."""
    try:
        envelope = Envelope.from_bytes(store.get(desired_key(device_id), max_bytes=_MAX_ENVELOPE_BYTES))
        return envelope, Assignment.from_bytes(envelope_payload(envelope))
    except BlobNotFoundError:
        return None, None
    except (ContractError, BlobTooLargeError) as exc:
        logger.warning("the assignment of %s in the bucket cannot be read and is replaced: %s", device_id, exc)
        return None, None


def _says_the_same(current: Assignment, wanted: Assignment) -> bool:
    same_but = {"version": current.version, "issued_at": current.issued_at}
    # Below what the device accepted, the same words need a higher version, or it would not follow them.
    return wanted.version <= current.version + 1 and wanted.model_copy(update=same_but) == current


def _is_signed_by(envelope: Envelope, signer: CryptoSigner) -> bool:
    try:
        signatures = {s.keyid: RawSignature(s.keyid, decode_base64(s.sig).hex()) for s in envelope.signatures}
        dsse.Envelope(envelope_payload(envelope), envelope.payload_type, signatures).verify([signer.public_key], 1)
    except (UnverifiedSignatureError, ContractError):
        return False
    return envelope.payload_type == ASSIGNMENT_PAYLOAD_TYPE
