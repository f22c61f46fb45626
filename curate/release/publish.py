"""Publish a release: targets first, then the metadata that name them, the timestamp last."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from curate.contracts.paths import TUF_TARGETS
from curate.contracts.release import ReleaseManifest
from curate.contracts.signing import manifest_target
from curate.errors import BlobNotFoundError, ReleaseError, TrustError
from curate.release.manifest import ReleaseDraft, build_manifest, name_targets
from curate.release.repository import Expiry, commit, require_state
from curate.storage.ports import BlobStore

_NUMBER = "number"


def publish_release(
    store: BlobStore,
    key_dir: Path,
    manifest_draft: ReleaseDraft,
    files: Mapping[str, bytes],
    now: datetime,
    *,
    expiry: Expiry | None = None,
) -> ReleaseManifest:
    """Publish one release under the next number; the same release again changes nothing.

    A run that dies anywhere is repaired by running again: readers see the old repository until the last write.

    Args:
        store: the bucket, with a started repository.
        key_dir: holds the `targets` and `online` keys.
        manifest_draft: what the release says of itself.
        files: `golden`, `int8` and optionally `float`, each with its bytes.
        now: becomes `created_at`; expiries count from it.
        expiry: lives of the signatures.

    Raises:
        ReleaseError: no repository, a file missing, or the release id is taken by other contents.
        TrustError: the bucket's metadata are not this publisher's.
    """
    targets = name_targets(manifest_draft.release_id, files)
    state = require_state(store, key_dir)
    known = state.targets.targets
    name = manifest_target(manifest_draft.release_id)
    if name in known:
        published = _fetch_manifest(store, known[name])
        _verify_same_release(published, manifest_draft, files)
        return published
    number = 1 + max((int(target.custom[_NUMBER]) for target in known.values() if target.custom), default=0)
    manifest = build_manifest(manifest_draft, files, number=number, created_at=now)
    added = {target: TargetFile.from_data(target, data) for target, data in targets.items()}
    added[name] = TargetFile.from_data(name, manifest.to_bytes())
    added[name].unrecognized_fields["custom"] = {_NUMBER: number}
    for target, data in {**targets, name: manifest.to_bytes()}.items():
        _put_target(store, added[target], data)
    commit(store, key_dir, state, {**known, **added}, now=now, expiry=expiry or Expiry())
    return manifest


def target_key(target: TargetFile) -> str:
    """Key of an immutable target: its digest and its name."""
    return f"{TUF_TARGETS}{target.hashes['sha256']}.{target.path}"


def _put_target(store: BlobStore, target: TargetFile, data: bytes) -> None:
    # The key holds the digest and writes are atomic, so a blob of the right size is this blob.
    if store.size(target_key(target)) != target.length:
        store.put(target_key(target), data)


def _fetch_manifest(store: BlobStore, target: TargetFile) -> ReleaseManifest:
    try:
        raw = store.get(target_key(target), max_bytes=target.length)
        target.verify_length_and_hashes(raw)
    except (BlobNotFoundError, LengthOrHashMismatchError) as exc:
        raise TrustError(f"the bucket's {target.path} is not the signed one: {exc}") from exc
    return ReleaseManifest.from_bytes(raw)


def _verify_same_release(published: ReleaseManifest, draft: ReleaseDraft, files: Mapping[str, bytes]) -> None:
    again = build_manifest(draft, files, number=published.number, created_at=published.created_at)
    if again != published:
        raise ReleaseError(
            f"release {draft.release_id} is already published with other contents",
            hint="a release never changes: publish under a new release id",
        )
