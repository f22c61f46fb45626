"""The plaza clip, 795 frames of a real fixed camera: found or fetched, verified by SHA-256, read frame by frame."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
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

FRAMES = 795
FRAMES_PER_S = 10.0
HEIGHT_PX, WIDTH_PX = 576, 768
NAME = "vtest.avi"
SHA256 = "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf"
DEBIAN_PACKAGE = "opencv-doc"
SYSTEM_FOLDER = Path("/usr/share/doc/opencv-doc/examples/data")
PROJECT_URL = f"https://raw.githubusercontent.com/opencv/opencv/4.x/samples/data/{NAME}"
_MAX_CLIP_BYTES = 20_000_000


def find_clip(cache: Path, folder: Path | None = None) -> Path:
    """Return where the verified clip lies, from the first source that has it.

    A given `folder` is the only source asked, so that a person's choice is never silently replaced. Otherwise: where
    Debian's package installs it, `cache`, the package fetched without root, the OpenCV project's own sample data; the
    last two fill `cache`, one process at a time. A gzipped copy is unpacked into `cache`.

    Raises `DatasetError` when no source gives a clip with the known checksum.
    """
    if folder is not None:
        return _usable(folder, cache)
    for known in (SYSTEM_FOLDER, cache):
        if _has_clip(known):
            try:
                return _usable(known, cache)
            except DatasetError as exc:
                _log.warning("the clip in %s is not usable: %s", known, exc)
    return load_fetched(
        "the plaza clip (8 MB)",
        cache,
        (
            Source(f"Debian's package {DEBIAN_PACKAGE}", _fetch_from_package),
            Source("the OpenCV project's sample data", _fetch_from_project),
        ),
        read_cache=lambda: _usable(cache, cache) if _has_clip(cache) else None,
        adopt=partial(_keep, cache),
        hint=f"install Debian's package {DEBIAN_PACKAGE}, or put the OpenCV samples' {NAME} into a folder and name it",
    )


def iterate_frames(path: Path, first: int = 0, last: int = FRAMES - 1) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames `first`..`last` (both included, counted from 0) as RGB uint8 [576, 768, 3], one in memory.

    Frames are decoded in order from the start: seeking in a compressed clip may land beside the frame asked for.
    Raises `DatasetError` when the range is not in the clip, or the clip cannot be decoded.
    """
    if not 0 <= first <= last < FRAMES:
        raise DatasetError(f"the clip has frames 0..{FRAMES - 1}, not {first}..{last}")
    capture = cv2.VideoCapture(str(path))
    try:
        for number in range(last + 1):
            if not capture.grab():
                raise DatasetError(f"{path} ends before frame {number}", hint="is it the OpenCV samples' clip?")
            if number < first:
                continue
            decoded, image = capture.retrieve()
            if not decoded or image.shape != (HEIGHT_PX, WIDTH_PX, 3):
                raise DatasetError(f"frame {number} of {path} cannot be decoded")
            yield np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    finally:
        capture.release()


def read_frames(path: Path, first: int = 0, last: int = FRAMES - 1) -> NDArray[np.uint8]:
    """Return the frames `first`..`last` (both included) as RGB uint8 [N, 576, 768, 3]: 1.3 MB a frame.

    Raises `DatasetError` as `iterate_frames` does.
    """
    return np.stack(list(iterate_frames(path, first, last)))


def _has_clip(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (NAME, f"{NAME}.gz"))


def _usable(folder: Path, cache: Path) -> Path:
    """The verified clip in `folder`: the file itself, or a gzipped one unpacked into `cache`."""
    plain = folder / NAME
    if plain.is_file() or not (folder / f"{NAME}.gz").is_file():
        _verified(plain)
        return plain
    return _keep(cache, folder)


def _keep(cache: Path, found: Path) -> Path:
    """Verify the clip in the folder `found`, and only then put it, uncompressed, into the cache."""
    packed = found / f"{NAME}.gz"
    content = _verified(found / NAME if (found / NAME).is_file() else packed)
    cache.mkdir(parents=True, exist_ok=True)
    arriving = cache / f"{NAME}.arriving"
    arriving.write_bytes(content)
    return arriving.replace(cache / NAME)


def _verified(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as exc:
        raise DatasetError(f"{path} cannot be read: {exc}", hint=f"the folder must hold {NAME} or {NAME}.gz") from exc
    verify_sha256(content, path.name, SHA256)
    return content


def _fetch_from_package(scratch: Path) -> Path:
    return fetch_debian_package(DEBIAN_PACKAGE, scratch) / SYSTEM_FOLDER.relative_to("/")


def _fetch_from_project(scratch: Path) -> Path:
    download(PROJECT_URL, scratch / NAME, _MAX_CLIP_BYTES)
    return scratch
