"""Fashion-MNIST, the demo's 70,000 real photographs: found or fetched, and verified by SHA-256 either way."""

from __future__ import annotations

import gzip
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.sandbox.fetched_data import (
    DatasetError,
    Source,
    download,
    fetch_debian_package,
    load_fetched,
    verify_sha256,
)

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
_MAX_DOWNLOAD_BYTES = 40_000_000


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
    return load_fetched(
        "Fashion-MNIST (about 31 MB)",
        cache_dir,
        (
            Source(f"Debian's package {DEBIAN_PACKAGE}", fetch_package_files),
            Source(f"the project's page {PROJECT_URL}", lambda scratch: fetch_project_files(scratch, PROJECT_URL)),
        ),
        read_cache=lambda: _load_folder(cache_dir) if _has_files(cache_dir) else None,
        adopt=lambda found: _adopt(found, cache_dir),
        hint=f"install Debian's package {DEBIAN_PACKAGE}, or download the four idx files and name their folder",
    )


def _adopt(found: Path, cache_dir: Path) -> FashionMnist:
    """Verify what was fetched, and only then move the files into the cache."""
    data = _load_folder(found)
    for file in FILES:
        path = _find(found, file)
        (cache_dir / file.name).unlink(missing_ok=True)  # a damaged plain file would hide the good .gz
        path.replace(cache_dir / path.name)
    return data


def fetch_package_files(scratch: Path) -> Path:
    """Unpack Debian's package under `scratch`; return the folder with the files. Raises `DatasetError`."""
    return fetch_debian_package(DEBIAN_PACKAGE, scratch) / "usr/share/datasets/fashion-mnist"


def fetch_project_files(scratch: Path, url: str) -> Path:
    """Download the four .gz files from the project's page into `scratch`; return the folder that holds them.

    Raises `DatasetError` when the page cannot be reached.
    """
    folder = scratch / "project"
    folder.mkdir(exist_ok=True)
    for file in FILES:
        download(f"{url}/{file.name}.gz", folder / f"{file.name}.gz", _MAX_DOWNLOAD_BYTES)
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
    verify_sha256(content, file.name, file.sha256)
    header_bytes = 4 + 4 * len(file.shape)
    return np.frombuffer(content, dtype=np.uint8, offset=header_bytes).reshape(file.shape)
