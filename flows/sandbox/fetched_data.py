"""What the demo's data sets share: fetch once from the first source that works, verify, keep; no root needed."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import logging
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from curate.errors import Error

_log = logging.getLogger(__name__)

_APT_TIMEOUT_S = 180.0
_DOWNLOAD_TIMEOUT_S = 20.0

_Data = TypeVar("_Data")


class DatasetError(Error):
    """The data set cannot be found, fetched or verified."""


@dataclass(frozen=True)
class Source:
    """A place to fetch from; `fetch` gets an empty scratch folder and returns what `adopt` is to look at."""

    title: str
    fetch: Callable[[Path], Path]


def load_fetched(
    name: str,
    cache_dir: Path,
    sources: Sequence[Source],
    *,
    read_cache: Callable[[], _Data | None],
    adopt: Callable[[Path], _Data],
    hint: str,
) -> _Data:
    """Return the data from the cache, or fetched from the first source whose content `adopt` accepts.

    One process at a time fetches; the others wait and find the cache filled. `adopt` verifies and moves into the cache.
    Raises `DatasetError` with `hint` when every source fails.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / "fetch.lock"):
        for left_over in cache_dir.glob("fetching-*"):  # of a fetch that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        try:
            cached = read_cache()  # another process may have filled it while this one waited for the lock
        except DatasetError:
            _log.info("fetching %s again, what is cached is damaged", name)
            cached = None
        if cached is not None:
            return cached
        failures = []
        for source in sources:
            _log.info("fetching %s from %s", name, source.title)
            try:
                with tempfile.TemporaryDirectory(dir=cache_dir, prefix="fetching-") as scratch:
                    data = adopt(source.fetch(Path(scratch)))
            except DatasetError as exc:
                _log.warning("%s did not come from %s: %s", name, source.title, exc)
                failures.append(f"{source.title}: {exc}")
            else:
                _log.info("%s is verified and kept in %s", name, cache_dir)
                return data
    raise DatasetError(
        f"{name} is not on this machine and could not be fetched (" + "; ".join(failures) + ")",
        hint=hint,
        retryable=True,
    )


def verify_sha256(content: bytes, name: str, expected: str) -> None:
    """Return nothing if `content` is the known one; raises `DatasetError` otherwise."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DatasetError(
            f"{name} has SHA-256 {found}, expected {expected}",
            hint="delete the damaged file; it will be fetched again",
        )


def download(url: str, path: Path, max_bytes: int) -> None:
    """Write what `url` answers to `path`, at most `max_bytes`.

    Raises `DatasetError` when it does not arrive.
    """
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT_S) as answer:
            path.write_bytes(answer.read(max_bytes))
    except (OSError, http.client.HTTPException) as exc:
        raise DatasetError(f"{path.name} did not arrive: {exc}") from exc


def fetch_debian_package(package: str, scratch: Path) -> Path:
    """Download and unpack a Debian package under `scratch` without root; return the folder that stands for `/`.

    Package lists of its own make this work for any user, and where the system's lists are empty.
    Raises `DatasetError` when apt or dpkg is missing or fails.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise DatasetError("this machine has no apt-get and dpkg")
    try:
        _run(["apt-get", "-q", "download", package], scratch)
    except DatasetError:
        _log.info("the system's package lists do not help; fetching lists of our own")
        options = _own_apt_state(scratch)
        _run(["apt-get", "-q", *options, "update"], scratch)
        _run(["apt-get", "-q", *options, "download", package], scratch)
    packages = list(scratch.glob(f"{package}_*.deb"))
    if not packages:
        raise DatasetError("apt-get left no package behind")
    root = scratch / "package"
    _run(["dpkg", "-x", str(packages[0]), str(root)], scratch)
    return root


def _own_apt_state(scratch: Path) -> list[str]:
    for part in ("apt/lists/partial", "apt/cache/archives/partial"):
        (scratch / part).mkdir(parents=True, exist_ok=True)
    state = scratch / "apt"
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": state / "cache",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_APT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise DatasetError(f"{command[0]} did not finish: {exc}") from exc
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise DatasetError(f"{command[0]} failed with {done.returncode}: {last}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the kernel drops it when the process dies, so a crash blocks nobody."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
