"""Fashion-MNIST, the demo's 70,000 real photographs: found or fetched, and verified by SHA-256 either way."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import http.client
import logging
import os
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate.errors import Error

_log = logging.getLogger(__name__)

CLASS_NAMES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
PROJECT_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_APT_TIMEOUT_S = 180.0
_DOWNLOAD_TIMEOUT_S = 20.0
_MAX_DOWNLOAD_BYTES = 40_000_000


class DatasetError(Error):
    """The data set cannot be found, fetched or verified."""


@dataclass(frozen=True)
class IdxFile:
    """One of the data set's four files; `sha256` is that of the uncompressed content, so any gzip of it will do."""

    name: str
    shape: tuple[int, ...]
    sha256: str


# Each was cross-checked once: with the file name and time that Debian strips put back into the gzip header, Debian's
# files have exactly the MD5 sums that the project publishes for its own .gz files.
TRAIN_IMAGES = IdxFile(
    "train-images-idx3-ubyte",
    (60_000, 28, 28),
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
)
TRAIN_LABELS = IdxFile(
    "train-labels-idx1-ubyte",
    (60_000,),
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
)
TEST_IMAGES = IdxFile(
    "t10k-images-idx3-ubyte",
    (10_000, 28, 28),
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
)
TEST_LABELS = IdxFile(
    "t10k-labels-idx1-ubyte",
    (10_000,),
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


@dataclass(frozen=True)
class FashionMnist:
    """The data set in memory, read-only: images uint8 [n, 28, 28] (0 is background), labels uint8 [n] in 0..9."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    class_names: tuple[str, ...] = CLASS_NAMES


def load_fashion_mnist(cache_dir: Path, folder: Path | None = None) -> FashionMnist:
    """Load Fashion-MNIST from the first source that has it, verified.

    A given `folder` is the only source asked, so that a person's choice is never silently replaced. Otherwise: the
    system's dataset folder, `cache_dir`, Debian's package (no root needed), the project's download page; the last two
    fill `cache_dir`, one process at a time.

    Raises `DatasetError` when no source gives four files with the known checksums.
    """
    if folder is not None:
        return _load_folder(folder)
    for known in (SYSTEM_FOLDER, cache_dir):
        if _has_files(known):
            try:
                return _load_folder(known)
            except DatasetError as exc:
                _log.warning("Fashion-MNIST in %s is not usable: %s", known, exc)
    return _load_fetched(cache_dir)


def _load_fetched(cache_dir: Path) -> FashionMnist:
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / "fetch.lock"):
        for left_over in cache_dir.glob("fetching-*"):  # of a fetch that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        if _has_files(cache_dir):  # another process may have filled it while this one waited for the lock
            try:
                return _load_folder(cache_dir)
            except DatasetError:
                _log.info("fetching Fashion-MNIST again, the cached files are damaged")
        sources: tuple[tuple[str, Callable[[Path], Path]], ...] = (
            (f"Debian's package {DEBIAN_PACKAGE}", fetch_debian_package),
            (f"the project's page {PROJECT_URL}", lambda scratch: fetch_project_files(scratch, PROJECT_URL)),
        )
        failures = []
        for title, fetch in sources:
            try:
                return _adopt(fetch, title, cache_dir)
            except DatasetError as exc:
                _log.warning("Fashion-MNIST did not come from %s: %s", title, exc)
                failures.append(f"{title}: {exc}")
    raise DatasetError(
        "Fashion-MNIST is not on this machine and could not be fetched (" + "; ".join(failures) + ")",
        hint=f"install Debian's package {DEBIAN_PACKAGE}, or download the four idx files and name their folder",
        retryable=True,
    )


def _adopt(fetch: Callable[[Path], Path], title: str, cache_dir: Path) -> FashionMnist:
    """Fetch into a scratch folder, verify, and only then move the files into the cache."""
    _log.info("fetching Fashion-MNIST (about 31 MB) from %s", title)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix="fetching-") as scratch:
        found = fetch(Path(scratch))
        data = _load_folder(found)
        for file in FILES:
            path = _find(found, file)
            (cache_dir / file.name).unlink(missing_ok=True)  # a damaged plain file would hide the good .gz
            path.replace(cache_dir / path.name)
    _log.info("Fashion-MNIST is verified and kept in %s", cache_dir)
    return data


def fetch_debian_package(scratch: Path) -> Path:
    """Download and unpack Debian's package under `scratch` without root; return the folder with the files.

    Package lists of its own make this work for any user, and where the system's lists are empty.
    Raises `DatasetError` when apt or dpkg is missing or fails.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise DatasetError("this machine has no apt-get and dpkg")
    try:
        _run(["apt-get", "-q", "download", DEBIAN_PACKAGE], scratch)
    except DatasetError:
        _log.info("the system's package lists do not help; fetching lists of our own")
        options = _own_apt_state(scratch)
        _run(["apt-get", "-q", *options, "update"], scratch)
        _run(["apt-get", "-q", *options, "download", DEBIAN_PACKAGE], scratch)
    packages = list(scratch.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    if not packages:
        raise DatasetError("apt-get left no package behind")
    _run(["dpkg", "-x", str(packages[0]), str(scratch / "package")], scratch)
    return scratch / "package" / "usr/share/datasets/fashion-mnist"


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


def fetch_project_files(scratch: Path, url: str) -> Path:
    """Download the four .gz files from the project's page into `scratch`; return the folder that holds them.

    Raises `DatasetError` when the page cannot be reached.
    """
    folder = scratch / "project"
    folder.mkdir(exist_ok=True)
    for file in FILES:
        try:
            with urllib.request.urlopen(f"{url}/{file.name}.gz", timeout=_DOWNLOAD_TIMEOUT_S) as answer:
                (folder / f"{file.name}.gz").write_bytes(answer.read(_MAX_DOWNLOAD_BYTES))
        except (OSError, http.client.HTTPException) as exc:
            raise DatasetError(f"{file.name}.gz did not arrive: {exc}") from exc
    return folder


def _has_files(folder: Path) -> bool:
    return all(_find(folder, file).is_file() for file in FILES)


def _find(folder: Path, file: IdxFile) -> Path:
    """The uncompressed file if it is there, else where the compressed one would be."""
    plain = folder / file.name
    return plain if plain.is_file() else folder / f"{file.name}.gz"


def _load_folder(folder: Path) -> FashionMnist:
    train_images, train_labels, test_images, test_labels = (load_idx(_find(folder, file), file) for file in FILES)
    return FashionMnist(train_images, train_labels, test_images, test_labels)


def load_idx(path: Path, file: IdxFile) -> NDArray[np.uint8]:
    """Read one idx file (gzipped or not), verify its checksum and return it as a read-only uint8 array of `file.shape`.

    The format: a header of 4 + 4 x dimensions bytes, then the values. Raises `DatasetError`.
    """
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as exc:
        raise DatasetError(
            f"{path} cannot be read: {exc}",
            hint=f"the folder must hold {', '.join(each.name for each in FILES)}, each plain or as .gz",
        ) from exc
    verify_sha256(content, file)
    header_bytes = 4 + 4 * len(file.shape)
    return np.frombuffer(content, dtype=np.uint8, offset=header_bytes).reshape(file.shape)


def verify_sha256(content: bytes, file: IdxFile) -> None:
    """Return nothing if `content` is the known one; raises `DatasetError` otherwise."""
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise DatasetError(
            f"{file.name} has SHA-256 {found}, expected {file.sha256}",
            hint="delete the damaged file; it will be fetched again",
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the kernel drops it when the process dies, so a crash blocks nobody."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
