"""The signed releases on the bucket, as this device sees them. The agent's one home of the TUF client."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from securesystemslib.signer import Key
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    LengthOrHashMismatchError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, T, Targets, Timestamp
from tuf.ngclient import FetcherInterface, TargetFile, Updater

from curate.contracts.paths import TUF_METADATA, TUF_TARGETS
from curate.contracts.release import Artifact
from curate.contracts.signing import ASSIGNMENT_KEYS_FIELD
from curate.errors import (
    AccessDeniedError,
    AgentError,
    BlobNotFoundError,
    StorageError,
    TrustError,
)
from curate.storage.ports import BlobStore
from edge_agent.durable import remove_files, sync_folder
from edge_agent.models.trust import MetadataVersions

PART_SUFFIX: Final = ".part"


@dataclass(frozen=True)
class TrustedRoot:
    """What the newest verified root says of assignments."""

    version: int
    assignment_keys: dict[str, Key]


class SignedRepository:
    """Verified reads of the TUF repository. Not thread-safe: the update loop owns it."""

    def __init__(
        self,
        store: BlobStore,
        folder: Path,
        trusted_root: bytes,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Keep TUF's metadata under `folder`; `trusted_root` is what the device was set up with, and by `now`
        metadata expire.

        Raises:
            TrustError: `trusted_root` is not a signed TUF root.
        """
        _verify_trusted_root(trusted_root)
        self._folder = folder
        self._trusted_root = trusted_root
        self._fetcher = _BlobFetcher(store)
        self._now = now
        self._client: Updater | None = None

    def refresh(self) -> MetadataVersions:
        """Walk root, timestamp, snapshot and targets; 2 requests when nothing changed.

        The device's own root is the start of every walk, never a file found on the disk.

        Raises:
            TrustError: something is unsigned, tampered with, older, expired or missing. The root is
                followed as far as it verified.
            StorageUnavailableError: the bucket cannot be reached.
            AgentError: the disk refused.
        """
        self._client = None
        with _translated("the release repository"):
            client = Updater(
                str(self._folder),
                TUF_METADATA,
                target_base_url=TUF_TARGETS,
                fetcher=self._fetcher,
                bootstrap=self._trusted_root,
            )
            # The only place for another clock than the machine's, which may stand in 1970.
            client._trusted_set.reference_time = self._now()
            client.refresh()
            versions = MetadataVersions(
                root=self._load(Root).version,
                timestamp=self._load(Timestamp).version,
                snapshot=self._load(Snapshot).version,
                targets=self._load(Targets).version,
            )
        self._client = client
        return versions

    def load_trusted_root(self) -> TrustedRoot:
        """Return what the last `refresh` trusts, even one that failed later than at the root.

        Raises:
            TrustError: there is none, or its keys cannot be read.
        """
        with _translated("the trusted root"):
            root = self._load(Root)
            try:
                fields = dict(root.unrecognized_fields.get(ASSIGNMENT_KEYS_FIELD, {}))
                keys = {keyid: Key.from_dict(keyid, dict(value)) for keyid, value in fields.items()}
            except (KeyError, TypeError, ValueError) as exc:
                raise TrustError(f"the trusted root's assignment keys cannot be read: {exc}") from exc
            return TrustedRoot(root.version, keys)

    def fetch_small(self, name: str, *, max_bytes: int) -> bytes:
        """Download a signed target into memory and verify it.

        Raises:
            TrustError: the target is unknown, too large, or its bytes are wrong.
            StorageUnavailableError: the bucket cannot be reached.
            AgentError: `refresh` has not succeeded before.
        """
        target = self._find_target(name, max_bytes, None)
        with _translated(name):
            raw = self._fetcher.read(_target_key(target), target.length)
            target.verify_length_and_hashes(raw)
        return raw

    def fetch_target(self, expected: Artifact, path: Path, *, max_bytes: int) -> None:
        """Download a signed target to `path`, verified and synced; one that lies there whole is kept.

        What has come lies beside `path` until it is whole, so a link that breaks, or a restart, costs nothing twice.

        Raises:
            TrustError: the target is unknown, too large, not what `expected` says, or its bytes are wrong.
            StorageUnavailableError: the bucket cannot be reached.
            AgentError: the disk refused, or `refresh` has not succeeded before.
        """
        target = self._find_target(expected.target, max_bytes, expected)
        with _translated(expected.target):
            if _is_whole(path, target):
                _sync_file(path)
                return
            part = path.with_name(f"{path.name}.{expected.sha256[:16]}{PART_SUFFIX}")
            remove_files(found for found in path.parent.glob(f"{path.name}.*{PART_SUFFIX}") if found != part)
            if self._fetch_rest(target, part) and not _is_whole(part, target):
                remove_files([part])  # a power cut may have left other bytes than were written
                self._fetch_rest(target, part)
            _verify_part(part, target)
            os.replace(part, path)  # noqa: PTH105 - the system call is the commit point; keep it visible
            sync_folder(path.parent)

    def _fetch_rest(self, target: TargetFile, part: Path) -> int:
        """Append what is missing; return how many bytes lay there before."""
        before = part.stat().st_size if part.exists() else 0
        left = target.length - before
        with part.open("ab") as file:
            try:
                pieces = self._fetcher.stream(_target_key(target), start=before) if left > 0 else ()
                for piece in pieces:
                    file.write(piece[:left])
                    left -= len(piece)
                    if left <= 0:
                        break
            finally:
                file.flush()
                os.fsync(file.fileno())
        return before

    def _find_target(self, name: str, max_bytes: int, expected: Artifact | None) -> TargetFile:
        if self._client is None:
            raise AgentError("the release repository was not refreshed")
        with _translated(name):
            target = self._client.get_targetinfo(name)
        if target is None:
            raise TrustError(f"{name} is not among the signed targets")
        _verify_target(target, max_bytes, expected)
        return target

    def _load(self, kind: type[T]) -> T:
        signed = Metadata[T].from_bytes((self._folder / f"{kind.type}.json").read_bytes()).signed
        if not isinstance(signed, kind):
            raise RepositoryError(f"{kind.type}.json holds {signed.type}")
        return signed


class _BlobFetcher(FetcherInterface):
    """TUF asks for "URLs" below our prefixes: they are the bucket's keys.

    An unreachable bucket is not the repository's fault, so what may pass by itself passes through TUF as it is.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[io.BytesIO]:
        """Fetch one blob of at most `max_length` bytes; not through a temporary file, /tmp may be tiny."""
        yield io.BytesIO(self.read(url, max_length))

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self.read(url, None)

    def read(self, url: str, max_bytes: int | None) -> bytes:
        """Read one blob; its absence and its size are told as TUF tells them."""
        with _fetching(url):
            return self._store.get(url, max_bytes=max_bytes)

    def stream(self, url: str, *, start: int) -> Iterator[bytes]:
        """Yield one blob from `start` on; its absence is told as TUF tells it."""
        with _fetching(url):
            yield from self._store.stream(url, start=start)


@contextmanager
def _fetching(url: str) -> Iterator[None]:
    try:
        yield
    except BlobNotFoundError as exc:
        raise DownloadHTTPError(f"{url}: nothing lies there", 404) from exc
    except AccessDeniedError as exc:  # what S3 answers for a missing key without the right to list
        raise DownloadHTTPError(f"{url}: access denied", 403) from exc
    except StorageError as exc:
        if exc.retryable:
            raise
        raise DownloadLengthMismatchError(str(exc)) from exc


def _target_key(target: TargetFile) -> str:
    """Where the publisher puts a target: named by its digest, which every repository of ours does."""
    return f"{TUF_TARGETS}{target.hashes['sha256']}.{target.path}"


def _verify_part(part: Path, target: TargetFile) -> None:
    try:
        with part.open("rb") as file:
            target.verify_length_and_hashes(file)
    except LengthOrHashMismatchError:
        remove_files([part])
        raise


def _is_whole(path: Path, target: TargetFile) -> bool:
    try:
        with path.open("rb") as file:
            target.verify_length_and_hashes(file)
    except (FileNotFoundError, LengthOrHashMismatchError):
        return False
    return True


def _verify_trusted_root(raw: bytes) -> None:
    try:
        metadata = Metadata[Root].from_bytes(raw)
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError, AttributeError) as exc:
        raise TrustError(
            f"the device's trusted root is not a signed TUF root: {exc}",
            hint="put the file that starting the repository returned at trust.root_file",
        ) from exc


def _verify_target(target: TargetFile, max_bytes: int, expected: Artifact | None) -> None:
    if target.length > max_bytes:
        raise TrustError(f"{target.path} has {target.length} bytes, this device takes at most {max_bytes}")
    if expected and (target.hashes.get("sha256"), target.length) != (expected.sha256, expected.size_bytes):
        raise TrustError(f"the manifest and the signed targets disagree about {target.path}")


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (RepositoryError, DownloadError) as exc:
        raise TrustError(f"{what}: {exc}") from exc
    except OSError as exc:
        raise AgentError(f"{what}: the disk refused: {exc}", retryable=True) from exc
