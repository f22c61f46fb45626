"""The kinds of cameras, as settings."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from curate.errors import ConfigError
from edge_agent.config.base import MIB, AnchoredPath, Section, ShortName, anchor


class FolderCameraConfig(Section):
    """Frames from a folder that another program fills, or a folder of pictures to loop over."""

    camera_id: ShortName
    kind: Literal["folder"] = "folder"
    path: AnchoredPath
    follow: bool = True
    fps: float = Field(default=5.0, gt=0.0, le=240.0)
    poll_interval_s: float = Field(default=0.02, ge=0.001, le=10.0)
    max_lag_frames: int = Field(default=100, ge=1)
    max_image_pixels: int = Field(default=25_000_000, ge=1)
    max_file_bytes: int = Field(default=32 * MIB, ge=1)


_ADDRESS = re.compile(r"(rtsps?|https?|rtmps?|udp|tcp)://.+", re.IGNORECASE)
_HOST = re.compile(r"[\w.-]+(:\d+)?|\[[0-9a-f:.]+\](:\d+)?", re.IGNORECASE | re.ASCII)
_FROM_ENVIRONMENT = "env:"


class VideoCameraConfig(Section):
    """Frames from a video file, or from a live address (RTSP, HTTP)."""

    camera_id: ShortName
    kind: Literal["video"]
    source: str = Field(min_length=1)
    fps: float | None = Field(default=None, gt=0.0, le=240.0)
    loop: bool = False
    poll_interval_s: float = Field(default=0.02, ge=0.001, le=10.0)
    max_lag_frames: int = Field(default=100, ge=1)
    max_queued_frames: int = Field(default=4, ge=1, le=1000)
    timeout_s: float = Field(default=10.0, gt=0.0, le=600.0)
    max_reconnect_s: float = Field(default=30.0, gt=0.0)
    max_image_pixels: int = Field(default=25_000_000, ge=1)
    jpeg_quality: int = Field(default=90, ge=50, le=100)

    @field_validator("source")
    @classmethod
    def _anchor_file(cls, value: str, info: ValidationInfo) -> str:
        if value.startswith(_FROM_ENVIRONMENT) or _ADDRESS.fullmatch(value):
            return value
        if "://" in value:
            raise ValueError("give a path, or an address that begins with rtsp, rtsps, http, https, rtmp, udp or tcp")
        return str(anchor(Path(value), info))

    @property
    def address(self) -> str:
        """The file or address itself. It may hold a password: log `public_source` instead.

        Raises:
            ConfigError: it stands in an environment variable that is not set.
        """
        if not self.source.startswith(_FROM_ENVIRONMENT):
            return self.source
        name = self.source.removeprefix(_FROM_ENVIRONMENT)
        value = os.environ.get(name)
        if not value:
            raise ConfigError(
                f"camera.source names the environment variable {name}, which is not set",
                hint="Set it where the agent is started, for example in systemd's EnvironmentFile.",
            )
        return value

    @property
    def is_live(self) -> bool:
        """Whether the source is an address and not a file."""
        return _ADDRESS.fullmatch(self.address) is not None

    @property
    def public_source(self) -> str:
        """The source for logs and messages: a file, a variable's name, or an address's scheme and host.

        Passwords hold `/`, `?` and `#`, and cameras take them in the path and the query, too. Where it is not certain
        what is the host, `***` stands for it.
        """
        if not _ADDRESS.fullmatch(self.source):
            return self.source
        scheme, _, rest = self.source.partition("://")
        authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
        host = authority.rpartition("@")[2]
        is_certain = "@" not in rest[len(authority) :] and _HOST.fullmatch(host)
        return f"{scheme}://{host if is_certain else '***'}"


class UsbCameraConfig(Section):
    """Frames from a USB camera by Video4Linux."""

    camera_id: ShortName
    kind: Literal["usb"]
    device: Annotated[int, Field(ge=0, le=255)] | Annotated[str, Field(pattern=r"^/dev/")]
    """An index, or better a path below /dev/v4l/by-id, which stays the same when cameras are plugged in anew."""
    width: int | None = Field(default=None, ge=16, le=16384)
    height: int | None = Field(default=None, ge=16, le=16384)
    fps: float | None = Field(default=None, gt=0.0, le=240.0)
    poll_interval_s: float = Field(default=0.02, ge=0.001, le=10.0)
    max_queued_frames: int = Field(default=4, ge=1, le=1000)
    max_reconnect_s: float = Field(default=30.0, gt=0.0)
    max_image_pixels: int = Field(default=25_000_000, ge=1)
    jpeg_quality: int = Field(default=90, ge=50, le=100)

    @model_validator(mode="after")
    def _has_a_whole_size(self) -> Self:
        if (self.width is None) is not (self.height is None):
            raise ValueError("`width` and `height` go together")
        return self

    @property
    def public_source(self) -> str:
        """The device, for logs and messages."""
        return f"/dev/video{self.device}" if isinstance(self.device, int) else self.device


LiveCameraConfig: TypeAlias = VideoCameraConfig | UsbCameraConfig
"""Cameras that go on whether anybody reads them or not."""


def _camera_kind(value: Any) -> str:
    """Return the kind of a camera section; one without `kind` is a folder."""
    return str(value.get("kind", "folder") if isinstance(value, dict) else getattr(value, "kind", "folder"))


CameraConfig: TypeAlias = Annotated[
    Annotated[FolderCameraConfig, Tag("folder")]
    | Annotated[VideoCameraConfig, Tag("video")]
    | Annotated[UsbCameraConfig, Tag("usb")],
    Discriminator(_camera_kind),
]
