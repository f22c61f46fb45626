"""A folder of pictures as a camera: one that another program fills, or one that is played over and over."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edge_agent.cameras.base import (
    Camera,
    CameraState,
    Frame,
    Skipped,
    SkipReason,
    UndecodableError,
    decode_image,
    due_in_s,
)
from edge_agent.clock import LATEST_S
from edge_agent.config.cameras import FolderCameraConfig

log = logging.getLogger(__name__)

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg"})
_RACY_MTIME_NS: Final = 50_000_000
"""A folder changed this shortly before it was listed may change again under the same modification time."""


def open_folder(config: FolderCameraConfig) -> Camera:
    """Build the camera that plays or follows the folder."""
    return FollowedFolder(config) if config.follow else LoopedFolder(config)


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

    def join(self, timeout_s: float) -> None:
        """Nothing goes on."""

    def _list_new(self) -> int:
        """Queue the unread files; return how many frames were passed over."""
        entries = self._list_if_changed()
        if not entries:
            return 0
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
        """List the folder, one file an index and in order, unless it has not changed since the last listing."""
        try:
            now_ns = time.time_ns()
            mtime_ns = self._config.path.stat().st_mtime_ns
            if mtime_ns == self._listed_mtime_ns:
                return []
            with os.scandir(self._config.path) as listing:
                names = {index: item.name for item in listing if (index := _index_of(item.name)) is not None}
        except OSError as exc:
            if not self._folder_missing:
                log.warning("camera folder cannot be read", extra={"folder": str(self._config.path), "error": str(exc)})
            self._folder_missing = True
            return []
        self._folder_missing = False
        self._listed_mtime_ns = mtime_ns if now_ns - mtime_ns > _RACY_MTIME_NS else None
        return sorted(names.items())


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
        self._is_refused = False
        self._started_s = monotonic()
        self._next_index = 0

    @property
    def camera_id(self) -> str:
        """The camera's name."""
        return self._config.camera_id

    @property
    def state(self) -> CameraState:
        """Starting while the folder holds no picture; lost while it cannot be read."""
        if self._is_refused:
            return CameraState.LOST
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

    def join(self, timeout_s: float) -> None:
        """Nothing goes on."""

    def _load_pictures(self) -> bool:
        if self._pictures:
            return True
        try:
            self._pictures = sorted(p for p in self._config.path.iterdir() if p.suffix.lower() in SUFFIXES)
            self._is_refused = False
        except FileNotFoundError:
            self._is_refused = False
        except OSError as exc:
            if not self._is_refused:
                log.warning("camera folder cannot be read", extra={"folder": str(self._config.path), "error": str(exc)})
            self._is_refused = True
        return bool(self._pictures)


def _read_frame(
    config: FolderCameraConfig, index: int, path: Path, monotonic_s: float, captured_at: datetime | None = None
) -> Frame:
    # A pipe that nobody writes to must not hold up the camera.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UndecodableError("not a file")
        if status.st_size > config.max_file_bytes:
            raise UndecodableError(f"{status.st_size} bytes are more than {config.max_file_bytes}")
        # Its own size and no more: room for the largest allowed one would be mapped and given back at every frame.
        encoded = file.read(status.st_size)
    return Frame(
        camera_id=config.camera_id,
        index=index,
        image=decode_image(encoded, max_pixels=config.max_image_pixels),
        # Some file systems bear times that the calendar does not.
        captured_at=captured_at or datetime.fromtimestamp(min(max(status.st_mtime, 0.0), LATEST_S), UTC),
        monotonic_s=monotonic_s,
        encoded=encoded,
    )


def _index_of(name: str) -> int | None:
    stem, dot, suffix = name.rpartition(".")
    if f"{dot}{suffix.lower()}" not in SUFFIXES or not (stem.isascii() and stem.isdigit()) or len(stem) > 18:
        return None
    return int(stem)
