"""The bucket as this device sees it: reachable, its own rights and no more, releases in sight, clocks that agree.

What is written is one small blob under the device's own captures, always the same, which no record ever names.
"""

from __future__ import annotations

import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Final

from curate.contracts.paths import TUF_METADATA, capture_key
from curate.errors import AccessDeniedError, BlobExistsError, BlobNotFoundError, Error, StorageError
from curate.storage.ports import BlobStore
from edge_agent.config.sections import BucketConfig
from edge_agent.doctor.findings import Finding, fail, ok, warn
from edge_agent.doctor.machine import judge_skew
from edge_agent.sync.bucket import describe_access, open_store

PROBE: Final = b"gleaner-agent doctor was here"
STRANGER: Final = "gleaner-doctor-stranger"
"""A device that does not exist: whoever may write for it may write for any."""
_RIGHTS_ADVICE: Final = "Compare the key's policy with `gleaner device policy {device}`."
_TIMEOUT_S: Final = 5.0


def examine_bucket(config: BucketConfig, device_id: str) -> Iterator[Finding]:
    """Look at the bucket from the outside in; what cannot be told without the step before is left out."""
    try:
        store = open_store(config)
        found = describe_access(store, device_id)
    except Error as exc:
        yield fail("bucket", str(exc), exc.hint or "Look at bucket in the configuration.")
        return
    yield ok("bucket", found)
    yield from _examine_rights(store, device_id)
    yield _examine_releases(store, device_id)


def examine_clock(config: BucketConfig) -> Iterator[Finding]:
    """Compare this machine's clock with the bucket's, from the date of any answer."""
    if config.kind != "s3":
        return
    url = config.endpoint_url or f"https://s3.{config.region}.amazonaws.com"
    date = _fetch_date(url)
    if date is not None:
        yield judge_skew(time.time() - date)


def _examine_rights(store: BlobStore, device_id: str) -> Iterator[Finding]:
    advice = _RIGHTS_ADVICE.format(device=device_id)
    own, strange = (capture_key(name, hashlib.sha256(PROBE).hexdigest()) for name in (device_id, STRANGER))
    try:
        store.put(own, PROBE)
    except StorageError as exc:
        yield fail("own prefix", f"{device_id} may not write its captures: {exc}", advice)
        return
    yield ok("own prefix", f"{device_id} may write its captures")
    yield _examine_creates(store, own)
    try:
        store.put(strange, PROBE)
    except AccessDeniedError:
        yield ok("other devices", "this device may not write for others")
    except StorageError as exc:
        yield warn("other devices", f"whether this device may write for others cannot be told: {exc}", advice)
    else:
        yield warn(
            "other devices",
            "these keys may write for any device: one that is stolen could speak for the whole fleet",
            f"{advice} (A folder as bucket knows no rights: for trying things out only.)",
        )


def _examine_creates(store: BlobStore, taken_key: str) -> Finding:
    """See whether a create of what exists is refused; the agent is safe without, but pays for it."""
    try:
        store.create(taken_key, PROBE)
    except BlobExistsError:
        return ok("conditional writes", "the store keeps what is there")
    except StorageError as exc:
        return warn(
            "conditional writes", f"cannot be told: {exc}", "Nothing is lost; see whether the store is current."
        )
    return warn(
        "conditional writes",
        "the store overwrites what should have been kept",
        "Nothing is lost: keys have one writer and blobs one content. A newer store refuses such writes.",
    )


def _examine_releases(store: BlobStore, device_id: str) -> Finding:
    try:
        store.get(f"{TUF_METADATA}timestamp.json", max_bytes=1024 * 1024)
    except BlobNotFoundError:
        return warn("releases", "nothing has been released yet", "Release a first model; see docs/operations.md.")
    except StorageError as exc:
        return fail("releases", f"cannot be read: {exc}", _RIGHTS_ADVICE.format(device=device_id))
    return ok("releases", "can be read")


def _fetch_date(url: str) -> float | None:
    """Return the server's time as seconds since 1970; None when it does not say or does not answer."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            text = response.headers.get("Date")
    except urllib.error.HTTPError as exc:
        with exc:
            text = exc.headers.get("Date")
    except (OSError, ValueError):
        return None
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except ValueError:
        return None
