"""The TUF repository on the bucket: read it with verified signatures, move it forward one state at a time.

A state is `N.targets.json`, `M.snapshot.json` and `timestamp.json`, written in this order. Readers enter by
the timestamp, so they see the old state or the new one, whole; a run that dies half-way leaves files that
nothing names, and the next run writes the same versions again. One publisher at a time: the caller's duty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, T, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from curate.contracts.paths import TUF_METADATA
from curate.contracts.signing import ASSIGNMENT_KEYS_FIELD
from curate.errors import BlobNotFoundError, ReleaseError, TrustError
from curate.release.keys import KeyName, create_keys, key_path, load_key
from curate.storage.ports import BlobStore

_F = TypeVar("_F")
_TARGETS_FILE = "targets.json"
_MAX_METADATA_BYTES = 5_000_000
_ROLE_KEYS: dict[str, KeyName] = {
    Root.type: "root",
    Targets.type: "targets",
    Snapshot.type: "online",
    Timestamp.type: "online",
}
TIMESTAMP_KEY = f"{TUF_METADATA}timestamp.json"


@dataclass(frozen=True)
class Expiry:
    """How long each role's signature is good for.

    An expired repository never stops a camera, it only keeps it from updating; so the lives are long enough
    for a publisher's holiday, and a schedule calls `refresh_timestamp` well within the timestamp's.
    """

    root: timedelta = timedelta(days=5 * 365)
    targets: timedelta = timedelta(days=365)
    snapshot: timedelta = timedelta(days=90)
    timestamp: timedelta = timedelta(days=14)


@dataclass(frozen=True)
class RepositoryState:
    """The state the bucket's timestamp names, every signature and digest verified."""

    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets


def metadata_key(role: str, version: int) -> str:
    """Key of one immutable metadata file."""
    return f"{TUF_METADATA}{version}.{role}.json"


def init_repository(store: BlobStore, key_dir: Path, now: datetime, expiry: Expiry | None = None) -> bytes:
    """Start the repository, or finish a start that was cut off; changes nothing on one that stands.

    Returns:
        The newest root's bytes: what a device gets as `trust.root_file`.

    Raises:
        ReleaseError: the bucket holds a repository of other keys.
    """
    expiry = expiry or Expiry()
    keys = create_keys(key_dir)
    found = fetch_newest_root(store)
    if found is None:
        root = _build_root(keys, version=1, expires=now + expiry.root)
        raw = _put(store, metadata_key(Root.type, 1), root, keys["root"])
    else:
        raw, root = found
        _verify_same_keys(root, keys)
    if fetch_state(store, key_dir) is None:
        commit(store, key_dir, None, {}, now=now, expiry=expiry)
    return raw


def renew_root(store: BlobStore, key_dir: Path, now: datetime, expiry: Expiry | None = None) -> bytes:
    """Sign the next root: a later expiry, and the assignment key that lies in `key_dir` now.

    To rotate the assignment key, put the new `assignment.pem` there, renew, then assign every device anew.

    Raises:
        ReleaseError: there is no repository, or another role's key differs.
    """
    keys = create_keys(key_dir)
    found = fetch_newest_root(store)
    if found is None:
        raise ReleaseError("there is no repository to renew", hint="start it with init_repository")
    _, current = found
    _verify_same_keys(current, keys, assignment_too=False)
    root = _build_root(keys, version=current.version + 1, expires=now + (expiry or Expiry()).root)
    return _put(store, metadata_key(Root.type, root.version), root, keys["root"])


def refresh_timestamp(store: BlobStore, key_dir: Path, now: datetime, expiry: Expiry | None = None) -> None:
    """Extend the signatures' lives; for a schedule, at least twice in the timestamp's life.

    Snapshot and targets are signed anew only when less than half of their own life is left, so most runs
    write one file. The `online` key is enough; without the `targets` key the targets are left as they are.

    Raises:
        ReleaseError: there is no repository, or the online key is absent.
    """
    expiry = expiry or Expiry()
    if key_path(key_dir, "targets").exists():
        state = require_state(store, key_dir)
        if state.targets.expires - now < expiry.targets / 2:
            commit(store, key_dir, state, state.targets.targets, now=now, expiry=expiry)
            return
    timestamp, snapshot = _require(_fetch_online(store, load_key(key_dir, "online").public_key))
    meta = timestamp.snapshot_meta
    if snapshot.expires - now < expiry.snapshot / 2:
        meta = _put_snapshot(store, key_dir, snapshot.version + 1, snapshot.meta[_TARGETS_FILE], now=now, expiry=expiry)
    _put_timestamp(store, key_dir, timestamp.version + 1, meta, now=now, expiry=expiry)


def commit(
    store: BlobStore,
    key_dir: Path,
    state: RepositoryState | None,
    targets: Mapping[str, TargetFile],
    *,
    now: datetime,
    expiry: Expiry,
) -> None:
    """Move the repository from `state` to the next one, which holds exactly `targets`."""
    version = _next(state.targets if state else None)
    signed = Targets(version=version, expires=_utc(now + expiry.targets), targets=dict(targets))
    raw = _put(store, metadata_key(Targets.type, version), signed, load_key(key_dir, "targets"))
    targets_meta = MetaFile.from_data(version, raw, ["sha256"])
    snapshot_meta = _put_snapshot(
        store, key_dir, _next(state.snapshot if state else None), targets_meta, now=now, expiry=expiry
    )
    _put_timestamp(store, key_dir, _next(state.timestamp if state else None), snapshot_meta, now=now, expiry=expiry)


def fetch_state(store: BlobStore, key_dir: Path) -> RepositoryState | None:
    """Read the state the timestamp names, or None where no repository stands yet.

    The publisher verifies what it reads with its own keys: it must never sign over what someone else put there.

    Raises:
        TrustError: the bucket's metadata are not what this publisher signed.
    """
    found = _fetch_online(store, load_key(key_dir, "online").public_key)
    if found is None:
        return None
    timestamp, snapshot = found
    targets_key = load_key(key_dir, "targets").public_key
    return RepositoryState(timestamp, snapshot, _fetch_named(store, Targets, snapshot.meta[_TARGETS_FILE], targets_key))


def require_state(store: BlobStore, key_dir: Path) -> RepositoryState:
    """Like `fetch_state`, but raises ReleaseError where no repository stands."""
    return _require(fetch_state(store, key_dir))


def fetch_newest_root(store: BlobStore) -> tuple[bytes, Root] | None:
    """Read the root of the highest version, unverified, or None where there is none."""
    newest: tuple[bytes, Root] | None = None
    while True:
        version = newest[1].version + 1 if newest else 1
        try:
            raw = store.get(metadata_key(Root.type, version), max_bytes=_MAX_METADATA_BYTES)
        except BlobNotFoundError:
            return newest
        root = _parse(Root, raw).signed
        if root.version != version:
            raise TrustError(f"{metadata_key(Root.type, version)} says it is version {root.version}")
        newest = raw, root


def _build_root(keys: Mapping[KeyName, CryptoSigner], *, version: int, expires: datetime) -> Root:
    assignment = keys["assignment"].public_key
    root = Root(
        version=version,
        expires=_utc(expires),
        consistent_snapshot=True,
        unrecognized_fields={ASSIGNMENT_KEYS_FIELD: {assignment.keyid: assignment.to_dict()}},
    )
    for role, name in _ROLE_KEYS.items():
        root.add_key(keys[name].public_key, role)
    return root


def _verify_same_keys(root: Root, keys: Mapping[KeyName, CryptoSigner], *, assignment_too: bool = True) -> None:
    wrong = [role for role, name in _ROLE_KEYS.items() if root.roles[role].keyids != [keys[name].public_key.keyid]]
    trusted = root.unrecognized_fields.get(ASSIGNMENT_KEYS_FIELD, {})
    if assignment_too and keys["assignment"].public_key.keyid not in trusted:
        wrong.append("assignment")
    if wrong:
        raise ReleaseError(
            f"the bucket's repository trusts other keys than key_dir holds: {', '.join(wrong)}",
            hint="use the key_dir this repository was started with; renew_root after a new assignment key",
        )


def _put_snapshot(
    store: BlobStore, key_dir: Path, version: int, targets: MetaFile, *, now: datetime, expiry: Expiry
) -> MetaFile:
    signed = Snapshot(version=version, expires=_utc(now + expiry.snapshot), meta={_TARGETS_FILE: targets})
    raw = _put(store, metadata_key(Snapshot.type, version), signed, load_key(key_dir, "online"))
    return MetaFile.from_data(version, raw, ["sha256"])


def _put_timestamp(
    store: BlobStore, key_dir: Path, version: int, snapshot: MetaFile, *, now: datetime, expiry: Expiry
) -> None:
    signed = Timestamp(version=version, expires=_utc(now + expiry.timestamp), snapshot_meta=snapshot)
    _put(store, TIMESTAMP_KEY, signed, load_key(key_dir, "online"))


def _put(store: BlobStore, key: str, signed: T, signer: CryptoSigner) -> bytes:
    metadata = Metadata(signed)
    metadata.sign(signer)
    raw = metadata.to_bytes()
    store.put(key, raw, content_type="application/json")
    return raw


def _fetch_online(store: BlobStore, online: Key) -> tuple[Timestamp, Snapshot] | None:
    try:
        raw = store.get(TIMESTAMP_KEY, max_bytes=_MAX_METADATA_BYTES)
    except BlobNotFoundError:
        return None
    timestamp = _verified(Timestamp, raw, online)
    return timestamp, _fetch_named(store, Snapshot, timestamp.snapshot_meta, online)


def _fetch_named(store: BlobStore, kind: type[T], meta: MetaFile, key: Key) -> T:
    name = metadata_key(kind.type, meta.version)
    try:
        raw = store.get(name, max_bytes=_MAX_METADATA_BYTES)
        meta.verify_length_and_hashes(raw)
    except (BlobNotFoundError, RepositoryError) as exc:
        raise TrustError(f"{name} is not what the signed metadata name: {exc}") from exc
    return _verified(kind, raw, key)


def _verified(kind: type[T], raw: bytes, key: Key) -> T:
    metadata = _parse(kind, raw)
    try:
        key.verify_signature(metadata.signatures[key.keyid], metadata.signed_bytes)
    except (KeyError, UnverifiedSignatureError) as exc:
        raise TrustError(f"the bucket's {kind.type} metadata are not signed by this publisher's key") from exc
    return metadata.signed


def _parse(kind: type[T], raw: bytes) -> Metadata[T]:
    try:
        metadata = Metadata[T].from_bytes(raw)
    except DeserializationError as exc:
        raise TrustError(f"the bucket's {kind.type} metadata cannot be read") from exc
    if not isinstance(metadata.signed, kind):
        raise TrustError(f"the bucket's {kind.type} metadata are of another type: {metadata.signed.type}")
    return metadata


def _require(found: _F | None) -> _F:
    if found is None:
        raise ReleaseError("the bucket holds no release repository", hint="start it with init_repository")
    return found


def _next(signed: Signed | None) -> int:
    return signed.version + 1 if signed else 1


def _utc(value: datetime) -> datetime:
    return value.astimezone(UTC)
