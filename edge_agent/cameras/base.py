"""Where frames come from. The one file that knows how pictures reach the agent, and that decodes them."""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curate.errors import AgentError
from edge_agent.config.cameras import FolderCameraConfig

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg"})
_RACY_MTIME_NS: Final = 50_000_000
"""A folder changed this shortly before it was listed may change again under the same modification time."""


class SkipReason(StrEnum):
    """Why a frame was seen and not inferred."""

    BACKPRESSURE = "backpressure"
    UNDECODABLE = "undecodable"
    NO_MODEL = "no_model"
    BAD_OUTPUT = "bad_output"
    UNCHANGED = "unchanged"
    """The scene gate let the last answer stand for it."""


class CameraState(StrEnum):
    """Whether a camera gives frames now."""

    STARTING = "starting"
    """Not one frame has come yet."""
    DELIVERING = "delivering"
    LOST = "lost"
    """The source does not answer; it is tried again."""
    ENDED = "ended"
    """A file was played to its end."""


class UndecodableError(AgentError):
    """A picture cannot be decoded, or is larger than allowed."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture in memory."""

    camera_id: str
    index: int
    """The camera's own running number."""
    image: Pixels
    """uint8, [height, width, 3], RGB."""
    captured_at: datetime
    monotonic_s: float
    """This process's monotonic clock when the frame was read."""
    encoded: bytes
    """PNG or JPEG: the camera's own encoding where it has one. Decodes to `image` again, for a video nearly so, and
    says what uploading it would cost."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Frames that passed without reaching the model."""

    reason: SkipReason
    count: int


class Camera(Protocol):
    """A source of frames. `poll` never waits: it gives the next frame, what was skipped, or None for nothing new."""

    @property
    def camera_id(self) -> str:
        """The camera's name."""

    @property
    def state(self) -> CameraState:
        """Whether it gives frames now. May be asked from any thread."""

    @property
    def idle_s(self) -> float:
        """Seconds in which no frame can come, as far as it knows; 0 when it does not. Until then polling is in vain."""

    def poll(self) -> Frame | Skipped | None:
        """Return the next event in order, or None when there is none now."""

    def close(self) -> None:
        """Let go of what it holds; there is nothing to poll afterwards."""


def open_folder(config: FolderCameraConfig) -> Camera:
    """Build the camera that plays or follows the folder."""
    return FollowedFolder(config) if config.follow else LoopedFolder(config)


def due_in_s(index: int, fps: float, played_s: float) -> float:
    """Return the seconds until frame `index` is due, at most 1, so that a slow camera still shows that it is read."""
    return min(1.0, max(0.0, index / fps - played_s))


def decode_image(encoded: bytes, *, max_pixels: int) -> Pixels:
    """Decode a PNG or JPEG into RGB pixels, uint8 [H, W, 3].

    Raises:
        UndecodableError: not such a picture, damaged, or more than `max_pixels`; the size is read from the
            header, so a decompression bomb is refused before it is unpacked.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > max_pixels:
                raise UndecodableError(f"{picture.width}x{picture.height} pixels are more than {max_pixels}")
            return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"), dtype=np.uint8)
    # Pillow's decoders raise whatever the damaged bytes lead them to.
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, struct.error, zlib.error) as exc:
        raise UndecodableError(f"cannot decode: {exc}") from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise UndecodableError(str(exc)) from exc


def encode_jpeg(image: Pixels, *, quality: int) -> bytes:
    """Encode RGB pixels, uint8 [H, W, 3], as a JPEG without colour subsampling and without metadata."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


class FollowedFolder:
    """Follows a folder of `<index>.png|jpg` files that another program renames into place and prunes.

    Starts at the newest file (which an agent that just died may have read too), then gives each higher index once,
    in order. Indices that were pruned unread, and the
    oldest ones when more than `max_lag_frames` wait, are skipped for backpressure. The folder is listed only when all
    known files are read and its modification time says that something changed.
    """

    def __init__(self, config: FolderCameraConfig, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._monotonic = monotonic
        self._waiting: deque[tuple[int, str]] = deque()
        self._last_index: int | None = None
        self._listed_mtime_ns: int | None = None
        self._folder_missing = False

    @property
    def camera_id(self) -> str:
        """The camera's name."""
        return self._config.camera_id

    @property
    def state(self) -> CameraState:
        """Lost while the folder cannot be read."""
        if self._folder_missing:
            return CameraState.LOST
        return CameraState.STARTING if self._last_index is None else CameraState.DELIVERING

    @property
    def idle_s(self) -> float:
        """Unknown: somebody else writes the files."""
        return 0.0

    def poll(self) -> Frame | Skipped | None:
        """Return the next frame, what was skipped before it, or None when nothing new lies in the folder."""
        if not self._waiting:
            skipped = self._list_new()
            if skipped:
                return Skipped(SkipReason.BACKPRESSURE, skipped)
        if not self._waiting:
            return None
        index, name = self._waiting.popleft()
        self._last_index = index
        try:
            return _read_frame(self._config, index, self._config.path / name, self._monotonic())
        except FileNotFoundError:
            return Skipped(SkipReason.BACKPRESSURE, 1)
        except (UndecodableError, OSError) as exc:
            log.warning("frame cannot be read", extra={"file": name, "error": str(exc)})
            return Skipped(SkipReason.UNDECODABLE, 1)

    def close(self) -> None:
        """Hold nothing."""

    def _list_new(self) -> int:
        """Queue the unread files; return how many frames were passed over."""
        entries = self._list_if_changed()
        if not entries:
            return 0
        entries.sort()
        newest = entries[-1][0]
        if self._last_index is None or newest < self._last_index:
            # First look, or the writer has started to count anew: what lies there is history.
            self._waiting.append(entries[-1])
            return 0
        last = self._last_index
        unread = [entry for entry in entries if entry[0] > last]
        pruned = max(0, entries[0][0] - last - 1)
        surplus = max(0, len(unread) - self._config.max_lag_frames)
        self._waiting.extend(unread[surplus:])
        if surplus:
            self._last_index = unread[surplus - 1][0]
        elif pruned:
            self._last_index = entries[0][0] - 1
        return pruned + surplus

    def _list_if_changed(self) -> list[tuple[int, str]]:
        """List the folder, unless it has not changed since the last listing."""
        try:
            now_ns = time.time_ns()
            mtime_ns = self._config.path.stat().st_mtime_ns
            if mtime_ns == self._listed_mtime_ns:
                return []
            with os.scandir(self._config.path) as listing:
                entries = [(index, item.name) for item in listing if (index := _index_of(item.name)) is not None]
        except OSError as exc:
            if not self._folder_missing:
                log.warning("camera folder cannot be read", extra={"folder": str(self._config.path), "error": str(exc)})
            self._folder_missing = True
            return []
        self._folder_missing = False
        self._listed_mtime_ns = mtime_ns if now_ns - mtime_ns > _RACY_MTIME_NS else None
        return entries


class LoopedFolder:
    """Plays the pictures of a folder over and over at a fixed rate: a camera for a first try.

    Like a real camera it does not wait for its reader: frames that fell due more than `max_lag_frames` ago are
    skipped for backpressure. `captured_at` is the time of reading.
    """

    def __init__(
        self,
        config: FolderCameraConfig,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._config = config
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        self._pictures: list[Path] = []
        self._started_s = monotonic()
        self._next_index = 0

    @property
    def camera_id(self) -> str:
        """The camera's name."""
        return self._config.camera_id

    @property
    def state(self) -> CameraState:
        """Starting while the folder holds no picture."""
        return CameraState.DELIVERING if self._pictures else CameraState.STARTING

    @property
    def idle_s(self) -> float:
        """Until the next picture is due."""
        return due_in_s(self._next_index, self._config.fps, self._monotonic() - self._started_s)

    def poll(self) -> Frame | Skipped | None:
        """Return the next frame when it is due, what was skipped, or None."""
        due = int((self._monotonic() - self._started_s) * self._config.fps) + 1 - self._next_index
        if due <= 0 or not self._load_pictures():
            return None
        if due > self._config.max_lag_frames:
            self._next_index += due - 1
            return Skipped(SkipReason.BACKPRESSURE, due - 1)
        index = self._next_index
        self._next_index += 1
        path = self._pictures[index % len(self._pictures)]
        try:
            return _read_frame(self._config, index, path, self._monotonic(), self._wall_clock())
        except (UndecodableError, OSError) as exc:
            log.warning("frame cannot be read", extra={"file": path.name, "error": str(exc)})
            return Skipped(SkipReason.UNDECODABLE, 1)

    def close(self) -> None:
        """Hold nothing."""

    def _load_pictures(self) -> bool:
        if not self._pictures and self._config.path.is_dir():
            self._pictures = sorted(p for p in self._config.path.iterdir() if p.suffix.lower() in SUFFIXES)
        return bool(self._pictures)


def _read_frame(
    config: FolderCameraConfig, index: int, path: Path, monotonic_s: float, captured_at: datetime | None = None
) -> Frame:
    # A pipe that nobody writes to must not hold up the camera.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UndecodableError("not a file")
        if status.st_size > config.max_file_bytes:
            raise UndecodableError(f"{status.st_size} bytes are more than {config.max_file_bytes}")
        encoded = file.read(config.max_file_bytes)
    return Frame(
        camera_id=config.camera_id,
        index=index,
        image=decode_image(encoded, max_pixels=config.max_image_pixels),
        captured_at=captured_at or datetime.fromtimestamp(status.st_mtime, UTC),
        monotonic_s=monotonic_s,
        encoded=encoded,
    )


def _index_of(name: str) -> int | None:
    stem, dot, suffix = name.rpartition(".")
    if f"{dot}{suffix.lower()}" not in SUFFIXES or not (stem.isascii() and stem.isdigit()) or len(stem) > 18:
        return None
    return int(stem)
