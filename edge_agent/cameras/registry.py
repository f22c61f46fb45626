"""The kinds of cameras: what opens each, and what says whether it is in reach. Found by the type of configuration."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from pathlib import Path
from typing import Final

from curate.errors import AgentError, ConfigError
from edge_agent.cameras.base import Camera, Pixels
from edge_agent.cameras.folder import open_folder
from edge_agent.cameras.live import LiveVideo
from edge_agent.cameras.video import VideoStream, load_cv2, open_address, open_device
from edge_agent.cameras.video_file import VideoFile
from edge_agent.config.cameras import CameraConfig, FolderCameraConfig, UsbCameraConfig, VideoCameraConfig

_FIRST_FRAME_TRIES: Final = 20
_PAUSE_S: Final = 0.05


@singledispatch
def open_camera(config: CameraConfig) -> Camera:
    """Build the camera that the configuration names.

    Raises:
        ConfigError: it can never give a frame as it is configured.
    """
    raise ConfigError(f"no camera is known for {type(config).__name__}")


@singledispatch
def describe_camera(config: CameraConfig) -> str:
    """Look at the camera and say in words what is there.

    Raises:
        Error: it is not in reach; message and hint say what to do.
    """
    raise ConfigError(f"no camera is known for {type(config).__name__}")


def close_cameras(
    cameras: Sequence[Camera], *, timeout_s: float, monotonic: Callable[[], float] = time.monotonic
) -> None:
    """Close them together: every one is told before the first is waited for, and all share the time."""
    for camera in cameras:
        camera.close()
    deadline_s = monotonic() + timeout_s
    for camera in cameras:
        camera.join(max(0.0, deadline_s - monotonic()))


open_camera.register(FolderCameraConfig, open_folder)


@open_camera.register
def _open_video(config: VideoCameraConfig) -> Camera:
    load_cv2()
    return LiveVideo(config, partial(open_address, config)) if config.is_live else VideoFile(config)


@open_camera.register
def _open_usb(config: UsbCameraConfig) -> Camera:
    load_cv2()
    return LiveVideo(config, partial(open_device, config))


@describe_camera.register
def _describe_folder(config: FolderCameraConfig) -> str:
    if not config.path.is_dir():
        raise ConfigError(
            f"{config.path} is not a folder", hint="The program that writes the frames creates it; start it."
        )
    return f"{config.path} is there"


@describe_camera.register
def _describe_video(config: VideoCameraConfig) -> str:
    load_cv2()
    if not config.is_live and not Path(config.address).is_file():
        raise ConfigError(
            f"{config.public_source} is not a file", hint="camera.source is a path, or an address with ://."
        )
    with open_address(config) as stream:
        image = _first_frame(stream)
    if image is None:
        raise AgentError(
            f"{config.public_source} gives no frame", hint="Try the same address with a player such as ffplay."
        )
    return f"{config.public_source} gives frames of {image.shape[1]}x{image.shape[0]} pixels"


@describe_camera.register
def _describe_usb(config: UsbCameraConfig) -> str:
    load_cv2()
    path = Path(config.public_source)
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist", hint="Is the camera plugged in? `ls -l /dev/v4l/by-id` lists what is there."
        )
    with open_device(config) as stream:
        image = _first_frame(stream) if stream.is_open else None
    if image is None:
        raise AgentError(
            f"{path} gives no frame",
            hint="Another program may hold it, or the agent's user is not in the group `video`. "
            "`v4l2-ctl --list-formats-ext` shows which sizes it has.",
        )
    return f"{path} gives frames of {image.shape[1]}x{image.shape[0]} pixels"


def _first_frame(stream: VideoStream) -> Pixels | None:
    """Return the first frame that can be decoded; a stream may begin in the middle of something."""
    for _ in range(_FIRST_FRAME_TRIES):
        if not stream.grab():
            return None
        if (image := stream.retrieve()) is not None:
            return image
        time.sleep(_PAUSE_S)
    return None
