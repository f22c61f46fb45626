"""The cameras' lenses: one process shows every camera of the world to its agent, as PNG files at a real-time pace."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from pathlib import Path

from PIL import Image
from pydantic import Field

from curate.errors import ConfigError, Error
from flows.sandbox.fashion_mnist import FashionMnist, load_fashion_mnist
from flows.sandbox.simulator import (
    SimulatorConfig,
    change_control_file,
    load_control_file,
    load_simulator_config,
    stop_event,
)
from flows.sandbox.world import CameraWorld
from flows.sandbox.world_schedule import WorldConfig, WorldControl, drift_frame

_log = logging.getLogger(__name__)

STOP_FILE = "STOP"
_CONTROL_PERIOD_S = 1.0
_MAX_LAG_S = 1.0
# Between two looks at the control file the writer shows at most the frames of one period and of one lag made up for.
_DUSK_LEAD_S = _CONTROL_PERIOD_S + _MAX_LAG_S + 1.0


class WriterConfig(SimulatorConfig):
    """What `main` reads: the world, where each camera's frames go, how fast and how many.

    `max_frames` is the stream's length in frames, None for no end; `keep_frames` is how many newest files stay.
    """

    world: WorldConfig
    folders: dict[str, Path] = Field(min_length=1)
    fps: float = Field(default=25.0, gt=0.0)
    keep_frames: int = Field(default=400, ge=1)
    max_frames: int | None = Field(default=None, ge=0)
    control_file: Path
    dataset_cache: Path
    dataset_folder: Path | None = None


class FrameFolder:
    """A folder of `<index:08d>.png`, oldest removed. It resumes after a kill: the newest file says what comes next.

    Readers never see half a file. Nothing is fsynced: the stream is a function of the seed and can be drawn again.
    """

    def __init__(self, folder: Path, keep_frames: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._keep_frames = keep_frames
        newest = newest_frame(folder)
        self.next_index = 0 if newest is None else newest + 1
        for index in _indices(folder):
            if index < self.next_index - keep_frames:
                (folder / _name(index)).unlink(missing_ok=True)

    def stopped(self) -> bool:
        """Whether somebody put a file named `STOP` here."""
        return (self._folder / STOP_FILE).exists()

    def append(self, image: Image.Image, step: int = 1) -> None:
        """Write the next frame, pass over the `step` - 1 after it and forget those that are too old."""
        fresh = self._folder / ".next-frame"
        image.save(fresh, format="PNG", compress_level=1)
        fresh.replace(self._folder / _name(self.next_index))
        oldest = self.next_index - self._keep_frames
        self.next_index += step
        for index in range(oldest, oldest + step):
            (self._folder / _name(index)).unlink(missing_ok=True)


def newest_frame(folder: Path) -> int | None:
    """Index of the newest frame in a camera's folder, None while there is none."""
    return max(_indices(folder), default=None)


def schedule_dusk(config: WriterConfig, camera_id: str) -> int:
    """Let dusk fall on a camera about three seconds from now and return its first frame; said once, it stays so.

    Raises `ConfigError` for a camera without a folder or an unreadable control file.
    """
    if camera_id not in config.folders:
        raise ConfigError(f"nobody shows camera {camera_id!r}")
    control = load_control_file(config.control_file, WorldControl)
    known = drift_frame(config.world, camera_id, control)
    if known is not None:
        return known
    newest = newest_frame(config.folders[camera_id])
    first = (0 if newest is None else newest + 1) + math.ceil(_DUSK_LEAD_S * config.fps)
    dusk = {**control.drift_from_frame, camera_id: first}
    change_control_file(config.control_file, WorldControl, drift_from_frame=dusk)
    return first


def run_cameras(config: WriterConfig, data: FashionMnist, stopping: threading.Event) -> None:
    """Show all cameras until `stopping`, their `STOP` files or `max_frames`.

    Frames keep their distance in time: after a pause of the process the clock starts anew, nothing is hurried.
    """
    lenses = [_Lens(config, camera_id, data) for camera_id in config.folders]
    due_s = control_due_s = time.monotonic()
    control = WorldControl()
    while lenses and not stopping.wait(max(0.0, due_s - time.monotonic())):
        now_s = time.monotonic()
        if now_s >= control_due_s:
            control = _follow_control(config, control, lenses)
            control_due_s = now_s + _CONTROL_PERIOD_S
        for lens in lenses:
            lens.show_next(control.frame_step)
        lenses = [lens for lens in lenses if not lens.finished()]
        late_s = now_s - due_s
        due_s = (now_s if late_s > _MAX_LAG_S else due_s) + control.frame_step / config.fps


class _Lens:
    """One camera of the running process."""

    def __init__(self, config: WriterConfig, camera_id: str, data: FashionMnist) -> None:
        self.camera_id = camera_id
        self.world = CameraWorld(config.world, camera_id, data)
        self.folder = FrameFolder(config.folders[camera_id], config.keep_frames)
        self._max_frames = math.inf if config.max_frames is None else config.max_frames

    def show_next(self, step: int) -> None:
        if not self.finished():
            self.folder.append(Image.fromarray(self.world.frame(self.folder.next_index).image), step)

    def finished(self) -> bool:
        return self.folder.next_index >= self._max_frames or self.folder.stopped()


def _follow_control(config: WriterConfig, followed: WorldControl, lenses: list[_Lens]) -> WorldControl:
    try:
        control = load_control_file(config.control_file, WorldControl)
    except ConfigError as exc:
        _log.error("keeping the last control: %s", exc)
        return followed
    for lens in lenses:
        first = drift_frame(config.world, lens.camera_id, control)
        if first == lens.world.drift_from_frame:
            continue
        lens.world.drift_from_frame = first
        _log.info("%s is at dusk from frame %s", lens.camera_id, first)
    return control


def _indices(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.png") if path.stem.isdigit()]


def _name(index: int) -> str:
    return f"{index:08d}.png"


def main(argv: list[str]) -> int:
    """Run the writer that the JSON file named in `argv` describes; 0 when it stopped as asked, 2 for a wrong file."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    stopping = stop_event()
    try:
        config = load_simulator_config(argv, WriterConfig)
        for camera_id in config.folders:
            config.world.camera_number(camera_id)
        data = load_fashion_mnist(config.dataset_cache, config.dataset_folder)
        run_cameras(config, data, stopping)
    except Error as exc:
        _log.error("%s%s", exc, f" ({exc.hint})" if exc.hint else "")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
