"""The kinds of cameras: what opens each, and what says whether it is in reach. Found by the type of configuration."""

from __future__ import annotations

from functools import singledispatch

from curate.errors import ConfigError
from edge_agent.cameras.base import Camera, open_folder
from edge_agent.cameras.video import describe_video, open_video
from edge_agent.config.cameras import CameraConfig, FolderCameraConfig, VideoCameraConfig


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


open_camera.register(FolderCameraConfig, open_folder)
open_camera.register(VideoCameraConfig, open_video)
describe_camera.register(VideoCameraConfig, describe_video)


@describe_camera.register
def _describe_folder(config: FolderCameraConfig) -> str:
    if not config.path.is_dir():
        raise ConfigError(
            f"{config.path} is not a folder", hint="The program that writes the frames creates it; start it."
        )
    return f"{config.path} is there"
