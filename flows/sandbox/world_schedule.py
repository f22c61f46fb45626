"""What happens in the simulated world and when: cameras, bursts, truth. No pixels: truth is cheap to recompute."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from curate.errors import ConfigError

Condition = Literal["day", "dusk"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

_SCHEDULE_STREAM = 0  # keeps this file's random numbers apart from the renderer's
_CHUNK_BURSTS = 256


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CameraStyle(_Model):
    """One camera: what it sees (`class_mix`, a share for each of the ten classes) and how its sensor renders it.

    `gain` and `tint` (red, green, blue) multiply grey levels; `noise_levels` is the sensor noise's standard deviation
    and `background` the backdrop, both in grey levels of 0..255.
    """

    camera_id: str
    class_mix: tuple[Share, ...]
    gain: float
    tint: tuple[float, float, float]
    noise_levels: float
    background: float

    @field_validator("class_mix")
    @classmethod
    def _mix_is_a_distribution(cls, mix: tuple[float, ...]) -> tuple[float, ...]:
        if len(mix) != 10 or abs(sum(mix) - 1.0) > 1e-6:
            raise ValueError("class_mix needs ten shares that sum to 1")
        return mix


class Dusk(_Model):
    """How dusk changes a frame: `light` and `tint` multiply, noise is added, `blur_px` is the sigma of a Gaussian."""

    light: float = 0.30
    tint: tuple[float, float, float] = (0.88, 0.95, 1.12)
    extra_noise_levels: float = 6.0
    blur_px: float = 1.2


DEFAULT_CAMERAS = (
    CameraStyle(
        camera_id="cam-1",  # tops and coats: the classes that are hard to tell apart
        class_mix=(0.20, 0.06, 0.17, 0.08, 0.16, 0.02, 0.17, 0.03, 0.08, 0.03),
        gain=1.0,
        tint=(1.04, 1.0, 0.94),
        noise_levels=6.0,
        background=38.0,
    ),
    CameraStyle(
        camera_id="cam-2",  # shoes and bags
        class_mix=(0.05, 0.04, 0.05, 0.05, 0.05, 0.21, 0.05, 0.20, 0.14, 0.16),
        gain=0.92,
        tint=(0.96, 1.0, 1.05),
        noise_levels=8.0,
        background=52.0,
    ),
    CameraStyle(
        camera_id="cam-3",  # a bit of everything; this one meets dusk
        class_mix=(0.08, 0.15, 0.10, 0.19, 0.13, 0.05, 0.10, 0.04, 0.06, 0.10),
        gain=1.06,
        tint=(1.0, 1.02, 0.98),
        noise_levels=7.0,
        background=30.0,
    ),
)


class WorldConfig(_Model):
    """The whole world as a value: the same config gives the same stream, frame by frame, in any process.

    `drift_from_frame` is the frame at which `drift_camera` turns to dusk; None leaves it to the control file.
    `light_range` is how far a burst's light may lie from 1, `reserved_images` how many of the last train images the
    streams never use (the first labelled samples come from there).
    """

    seed: int = Field(default=0, ge=0)
    cameras: tuple[CameraStyle, ...] = DEFAULT_CAMERAS
    min_burst_frames: int = Field(default=8, ge=1)
    max_burst_frames: int = 30
    max_shift_px: int = Field(default=2, ge=0, le=2)
    light_range: float = Field(default=0.25, ge=0.0, lt=1.0)
    drift_camera: str = "cam-3"
    drift_from_frame: int | None = Field(default=None, ge=0)
    dusk: Dusk = Dusk()
    reserved_images: int = Field(default=5_000, ge=0, le=50_000)

    @model_validator(mode="after")
    def _makes_sense(self) -> WorldConfig:
        ids = [camera.camera_id for camera in self.cameras]
        if len(set(ids)) != len(ids) or self.drift_camera not in ids:
            raise ValueError("camera ids must differ and drift_camera must be one of them")
        if self.max_burst_frames < self.min_burst_frames:
            raise ValueError("max_burst_frames is below min_burst_frames")
        return self

    def camera_number(self, camera_id: str) -> int:
        """The camera's place in `cameras`, which seeds its random numbers. Raises `ConfigError` for a stranger."""
        for number, camera in enumerate(self.cameras):
            if camera.camera_id == camera_id:
                return number
        raise ConfigError(f"the world has no camera {camera_id!r}")


class WorldControl(_Model):
    """What the driver decides while the world runs: from which frame on a camera's world is at dusk, and whether the
    cameras take every frame or only every `frame_step`-th. What they see goes on at the same pace.
    """

    drift_from_frame: Mapping[str, int] = Field(default_factory=dict)
    frame_step: int = Field(default=1, ge=1)


class Burst(NamedTuple):
    """One garment in view in frames [first, first + length): its class, and by `pick` in [0, 1) which of the class."""

    number: int
    first: int
    length: int
    label: int
    pick: float


class Truth(NamedTuple):
    """What a frame really shows."""

    label: int
    burst: int
    condition: Condition


class Schedule:
    """The bursts of one camera, any frame in O(log n): drawn in chunks, each from a generator of its own."""

    def __init__(self, config: WorldConfig, camera_id: str) -> None:
        self._config = config
        self._camera_number = config.camera_number(camera_id)
        self._mix = np.asarray(config.cameras[self._camera_number].class_mix)
        self._bursts: list[Burst] = []
        self._ends: list[int] = []

    def burst_at(self, frame: int) -> Burst:
        """The burst that shows frame `frame` (from 0). Raises `ValueError` for a negative index."""
        if frame < 0:
            raise ValueError(f"frames count from 0, got {frame}")
        while not self._ends or self._ends[-1] <= frame:
            self._extend()
        return self._bursts[bisect_right(self._ends, frame)]

    def labels(self, n_frames: int) -> NDArray[np.int64]:
        """True classes of the frames 0..n_frames-1: int64 [n_frames]."""
        if n_frames == 0:
            return np.zeros(0, dtype=np.int64)
        last = self.burst_at(n_frames - 1)
        bursts = self._bursts[: last.number + 1]
        return np.repeat([burst.label for burst in bursts], [burst.length for burst in bursts])[:n_frames]

    def _extend(self) -> None:
        chunk = len(self._bursts) // _CHUNK_BURSTS
        rng = np.random.default_rng([self._config.seed, self._camera_number, _SCHEDULE_STREAM, chunk])
        lengths = rng.integers(self._config.min_burst_frames, self._config.max_burst_frames + 1, size=_CHUNK_BURSTS)
        labels = rng.choice(10, size=_CHUNK_BURSTS, p=self._mix)
        picks = rng.random(_CHUNK_BURSTS)
        for length, label, pick in zip(lengths.tolist(), labels.tolist(), picks.tolist(), strict=True):
            first = self._ends[-1] if self._ends else 0
            self._bursts.append(Burst(len(self._bursts), first, length, label, pick))
            self._ends.append(first + length)


def drift_frame(config: WorldConfig, camera_id: str, control: WorldControl | None = None) -> int | None:
    """The first frame at dusk of this camera, None while it stays day; the control file overrules the config."""
    if control is not None and camera_id in control.drift_from_frame:
        return control.drift_from_frame[camera_id]
    return config.drift_from_frame if camera_id == config.drift_camera else None


def condition_at(frame: int, drift_from_frame: int | None) -> Condition:
    """Dusk from the drift frame on, day before it and without one."""
    return "dusk" if drift_from_frame is not None and frame >= drift_from_frame else "day"


def truth(config: WorldConfig, camera_id: str, frame: int, control: WorldControl | None = None) -> Truth:
    """What the frame really shows. For many frames of one camera keep a `Schedule` instead."""
    burst = Schedule(config, camera_id).burst_at(frame)
    return Truth(burst.label, burst.number, condition_at(frame, drift_frame(config, camera_id, control)))
