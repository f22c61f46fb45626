"""What the device believes: signatures, addressees, versions that never go back."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib import dsse
from securesystemslib.signer import CryptoSigner

from curate.contracts.assignment import Assignment
from curate.contracts.release import Envelope, ReleaseManifest, Signature
from curate.errors import TrustError
from curate.release.assignments import sign_assignment
from edge_agent.models.trust import (
    MetadataVersions,
    TrustFloor,
    decide_update,
    raise_metadata_floor,
    raise_release_floor,
    verify_assignment,
    verify_release,
    verify_root_version,
)
from tests.fakes.tiny_model import tiny_manifest

SIGNER = CryptoSigner.generate_ed25519()
KEYS = {SIGNER.public_key.keyid: SIGNER.public_key}
NOW = datetime(2026, 5, 1, tzinfo=UTC)
versions = st.integers(min_value=0, max_value=50)
metadata_versions = st.builds(MetadataVersions, root=versions, timestamp=versions, snapshot=versions, targets=versions)


def _assignment(**changes: object) -> Assignment:
    values = {"device_id": "cam-1", "version": 5, "release_id": "r-2", "issued_at": NOW, **changes}
    return Assignment.model_validate(values)


def _manifest(number: int, release_id: str = "r-2") -> ReleaseManifest:
    return tiny_manifest(release_id=release_id, number=number)


def test_a_signed_assignment_is_believed_and_raises_the_floor() -> None:
    """A genuine assignment comes back as it was signed, and its version becomes the floor."""
    believed = verify_assignment(sign_assignment(_assignment(), SIGNER), KEYS, "cam-1", TrustFloor())
    assert believed.assignment == _assignment()
    assert believed.floor.assignment_version == 5
    assert verify_assignment(sign_assignment(_assignment(), SIGNER), KEYS, "cam-1", believed.floor) == believed


def _tampered_payload() -> bytes:
    envelope = Envelope.from_bytes(sign_assignment(_assignment(), SIGNER))
    forged = base64.b64encode(_assignment(release_id="r-9").to_bytes()).decode()
    return envelope.model_copy(update={"payload": forged}).to_bytes()


def _other_type() -> bytes:
    payload = _assignment().to_bytes()
    signature = dsse.Envelope(payload, "text/plain", {}).sign(SIGNER)
    sig = base64.b64encode(bytes.fromhex(signature.signature)).decode()
    return Envelope(
        payload_type="text/plain",
        payload=base64.b64encode(payload).decode(),
        signatures=[Signature(keyid=signature.keyid, sig=sig)],
    ).to_bytes()


def _relabelled() -> bytes:
    envelope = Envelope.from_bytes(sign_assignment(_assignment(), SIGNER))
    return envelope.model_copy(update={"payload_type": "text/plain"}).to_bytes()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"not json", "not a signed envelope"),
        (_assignment().to_bytes(), "not a signed envelope"),
        (_tampered_payload(), "not signed by a trusted key"),
        (sign_assignment(_assignment(), CryptoSigner.generate_ed25519()), "not signed by a trusted key"),
        (_relabelled(), "not signed by a trusted key"),
        (_other_type(), "not an assignment"),
        (sign_assignment(_assignment(device_id="cam-2"), SIGNER), "for device cam-2"),
        (sign_assignment(_assignment(version=3), SIGNER), "older than the accepted 4"),
    ],
    ids=["noise", "unsigned", "payload", "key", "relabelled", "type", "device", "replayed"],
)
def test_a_false_assignment_is_refused_with_its_reason(raw: bytes, reason: str) -> None:
    """Every way an assignment can be false is refused, and the message names it."""
    with pytest.raises(TrustError, match=reason):
        verify_assignment(raw, KEYS, "cam-1", TrustFloor(assignment_version=4))


def test_no_key_trusts_nothing() -> None:
    """A root without assignment keys makes every assignment false, not every assignment true."""
    with pytest.raises(TrustError, match="names no key"):
        verify_assignment(sign_assignment(_assignment(), SIGNER), {}, "cam-1", TrustFloor())


def test_one_version_never_says_two_things() -> None:
    """A second assignment under an accepted version is refused."""
    floor = verify_assignment(sign_assignment(_assignment(), SIGNER), KEYS, "cam-1", TrustFloor()).floor
    with pytest.raises(TrustError, match="other contents"):
        verify_assignment(sign_assignment(_assignment(release_id="r-3"), SIGNER), KEYS, "cam-1", floor)


@given(st.lists(st.integers(min_value=1, max_value=20), max_size=12))
def test_accepted_assignment_versions_never_fall(order: list[int]) -> None:
    """In whatever order assignments arrive, what is followed never gets older."""
    floor = TrustFloor()
    followed = []
    for version in order:
        try:
            believed = verify_assignment(sign_assignment(_assignment(version=version), SIGNER), KEYS, "cam-1", floor)
        except TrustError:
            assert version < floor.assignment_version
        else:
            floor = believed.floor
            followed.append(believed.assignment.version)
    assert followed == sorted(followed)
    assert floor.assignment_version == max(order, default=0)


@given(metadata_versions, metadata_versions)
def test_metadata_floor_accepts_exactly_what_is_not_older(
    accepted: MetadataVersions, offered: MetadataVersions
) -> None:
    """Within one root no role goes back; a newer root starts the other roles afresh; the root never goes back."""
    floor = TrustFloor(metadata=accepted)
    same_root_and_newer = all(value >= getattr(accepted, role) for role, value in offered)
    if offered.root > accepted.root or same_root_and_newer:
        assert raise_metadata_floor(offered, floor).metadata == offered
    else:
        with pytest.raises(TrustError, match="older than the accepted"):
            raise_metadata_floor(offered, floor)


@given(st.integers(1, 9), st.integers(0, 9), st.booleans())
def test_an_older_release_needs_a_signed_downgrade(number: int, floor_number: int, allowed: bool) -> None:
    """A release number below the floor is refused unless the assignment allows it; the floor itself never falls."""
    floor = TrustFloor(release_number=floor_number)
    assignment = _assignment(allow_downgrade=allowed)
    if number >= floor_number or allowed:
        verify_release(_manifest(number), assignment, floor)
    else:
        with pytest.raises(TrustError, match="older than the accepted"):
            verify_release(_manifest(number), assignment, floor)
    assert raise_release_floor(number, "r-2", floor).release_number == max(number, floor_number)


@pytest.mark.parametrize("downgrade", [False, True])
def test_a_number_names_one_release(downgrade: bool) -> None:
    """Another release under an accepted number needs a signed permission; the accepted one itself may be fetched again,
    and a floor from before numbers were kept with their release refuses nothing."""
    floor = raise_release_floor(7, "r-1", TrustFloor(release_number=6, release_id="r-0"))
    assert (floor.release_number, floor.release_id) == (7, "r-1")
    assert raise_release_floor(7, "r-2", floor) == floor
    verify_release(_manifest(7, release_id="r-1"), _assignment(release_id="r-1"), floor)
    verify_release(_manifest(7, release_id="r-2"), _assignment(release_id="r-2"), TrustFloor(release_number=7))
    other = _assignment(release_id="r-2", allow_downgrade=downgrade)
    if downgrade:
        verify_release(_manifest(7, release_id="r-2"), other, floor)
    else:
        with pytest.raises(TrustError, match="accepted before as r-1"):
            verify_release(_manifest(7, release_id="r-2"), other, floor)


def test_a_manifest_of_another_release_is_refused() -> None:
    """A signed manifest under another release's name is refused."""
    with pytest.raises(TrustError, match="describes r-1"):
        verify_release(_manifest(7, release_id="r-1"), _assignment(), TrustFloor())


def test_an_older_root_is_refused() -> None:
    """A root below the floor names no keys to be believed."""
    verify_root_version(3, TrustFloor(metadata=MetadataVersions(root=3)))
    with pytest.raises(TrustError, match="root version 2"):
        verify_root_version(2, TrustFloor(metadata=MetadataVersions(root=3)))


@pytest.mark.parametrize(
    ("current", "assignment", "installs"),
    [
        (None, None, None),
        ("r-1", None, None),
        ("r-1", _assignment(release_id=None), None),
        ("r-2", _assignment(), None),
        ("r-1", _assignment(), "r-2"),
        (None, _assignment(), "r-2"),
    ],
)
def test_only_another_release_is_installed(
    current: str | None, assignment: Assignment | None, installs: str | None
) -> None:
    """The plan names a release exactly when one is assigned that is not installed."""
    plan = decide_update(current, assignment)
    assert plan.release_id == installs
    assert bool(plan) == (installs is not None)
