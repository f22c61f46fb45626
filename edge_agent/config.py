"""The agent's configuration file: what every setting is, its unit and its default. Unknown keys are errors."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from curate.answers.registry import SCORE_NAMES
from curate.contracts.assignment import CapturePolicySpec
from curate.errors import ConfigError

_MIB = 1024 * 1024
_MAX_CONFIG_BYTES = _MIB

ShortName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""A device or camera name: short enough that every id built from it is still a safe object key."""


def _anchor(path: Path, info: ValidationInfo) -> Path:
    context: dict[str, Path] = info.context or {}
    return context.get("base", Path()) / path.expanduser()


AnchoredPath = Annotated[Path, AfterValidator(_anchor)]
"""A path that, when relative, starts at the configuration file's folder."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FolderCameraConfig(_Section):
    """Frames from a folder that another program fills, or a folder of pictures to loop over."""

    camera_id: ShortName
    kind: Literal["folder"] = "folder"
    path: AnchoredPath
    follow: bool = True
    fps: float = Field(default=5.0, gt=0.0, le=240.0)
    poll_interval_s: float = Field(default=0.02, ge=0.001, le=10.0)
    max_lag_frames: int = Field(default=100, ge=1)
    max_image_pixels: int = Field(default=25_000_000, ge=1)
    max_file_bytes: int = Field(default=32 * _MIB, ge=1)


_ADDRESS = re.compile(r"(rtsps?|https?|rtmps?|udp|tcp)://.+", re.IGNORECASE)
_FROM_ENVIRONMENT = "env:"


class VideoCameraConfig(_Section):
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
        return str(_anchor(Path(value), info))

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
        """The source without user name and password, for logs and messages."""
        return re.sub(r"://[^/]*@", "://", self.source)


def _camera_kind(value: Any) -> str:
    """Return the kind of a camera section; one without `kind` is a folder."""
    return str(value.get("kind", "folder") if isinstance(value, dict) else getattr(value, "kind", "folder"))


CameraConfig: TypeAlias = Annotated[
    Annotated[FolderCameraConfig, Tag("folder")] | Annotated[VideoCameraConfig, Tag("video")],
    Discriminator(_camera_kind),
]


class BucketConfig(_Section):
    """The bucket shared with the cloud: any S3-compatible store, or a folder for trying things out."""

    kind: Literal["s3", "folder"]
    path: AnchoredPath | None = None
    endpoint_url: str | None = None
    bucket: str | None = None
    region: str = "us-east-1"
    credentials_file: AnchoredPath | None = None
    connect_timeout_s: float = Field(default=10.0, gt=0.0)
    read_timeout_s: float = Field(default=30.0, gt=0.0)

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if self.kind == "folder" and self.path is None:
            raise ValueError("kind folder needs `path`")
        if self.kind == "s3" and self.bucket is None:
            raise ValueError("kind s3 needs `bucket`")
        return self


class TrustConfig(_Section):
    """The root of trust that was put on the device when it was set up."""

    root_file: AnchoredPath


class ApiConfig(_Section):
    """The HTTP API for programs on this device. It has no authentication, hence loopback only."""

    host: str = "127.0.0.1"
    port: int = Field(default=8600, ge=0, le=65535)
    max_body_bytes: int = Field(default=16 * 1024, ge=256)
    recent_predictions: int = Field(default=4096, ge=2000)

    @field_validator("host")
    @classmethod
    def _is_loopback(cls, value: str) -> str:
        if not ipaddress.IPv4Address(value).is_loopback:
            raise ValueError("must be a loopback IPv4 address such as 127.0.0.1; put a proxy with a login before it")
        return value


class SpoolConfig(_Section):
    """Bounds of the durable queue, and when a batch is closed."""

    max_bytes: int = Field(default=512 * _MIB, ge=_MIB)
    min_free_bytes: int = Field(default=32 * _MIB, ge=0)
    max_feedback: int = Field(default=10_000, ge=1)
    batch_max_captures: int = Field(default=32, ge=1)
    batch_max_age_s: float = Field(default=10.0, ge=0.0)


class SyncConfig(_Section):
    """How often the agent talks to the bucket, and how often its counters reach the disk."""

    interval_s: float = Field(default=5.0, gt=0.0)
    heartbeat_interval_s: float = Field(default=30.0, gt=0.0)
    persist_interval_s: float = Field(default=5.0, gt=0.0)
    max_backoff_s: float = Field(default=60.0, gt=0.0)


class UpdateConfig(_Section):
    """How often the agent asks which model it should run."""

    interval_s: float = Field(default=30.0, gt=0.0)


class CapturePolicyConfig(CapturePolicySpec):
    """The capture policy as a setting: on the wire unknown fields are tolerated, here they are typing mistakes."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("uncertainty_score")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in SCORE_NAMES:
            raise ValueError(f"unknown; this agent computes {', '.join(sorted(SCORE_NAMES))}")
        return value

    def to_spec(self) -> CapturePolicySpec:
        """Return the same policy as the wire document."""
        return CapturePolicySpec.model_validate(self.model_dump())


class CaptureConfig(_Section):
    """How captures are chosen until the cloud assigns a policy, and how they are stored."""

    policy: CapturePolicyConfig = Field(default_factory=CapturePolicyConfig)
    jpeg_quality: int = Field(default=95, ge=50, le=100)
    max_queued: int = Field(default=64, ge=1)


class RingConfig(_Section):
    """Memory that holds recent frames, so that a dismissal minutes later still finds its frame."""

    max_bytes: int = Field(default=32 * _MIB, ge=0)


class InferenceConfig(_Section):
    """How the model runs."""

    threads: int = Field(default=1, ge=1, le=64)
    variant: Literal["int8", "float"] = "int8"


class LogConfig(_Section):
    """Where the JSON lines go: standard error, or a file that is rotated once."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    file: AnchoredPath | None = None
    max_bytes: int = Field(default=8 * _MIB, ge=4096)


class AgentConfig(_Section):
    """Everything one agent needs to know. Secrets are not in here: they come from a file or the environment."""

    device_id: ShortName
    state_dir: AnchoredPath
    camera: CameraConfig
    bucket: BucketConfig
    trust: TrustConfig
    api: ApiConfig = Field(default_factory=ApiConfig)
    spool: SpoolConfig = Field(default_factory=SpoolConfig)
    sync: SyncConfig = Field(default_factory=SyncConfig)
    update: UpdateConfig = Field(default_factory=UpdateConfig)
    capture: CaptureConfig = Field(default_factory=CaptureConfig)
    ring: RingConfig = Field(default_factory=RingConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    log: LogConfig = Field(default_factory=LogConfig)


def load_config(path: Path) -> AgentConfig:
    """Read and validate a YAML configuration; relative paths are relative to the file's folder.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or a setting is wrong or unknown.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_CONFIG_BYTES)
        document = yaml.safe_load(raw)
    except OSError as exc:
        raise ConfigError(
            f"cannot read {path}: {exc.strerror}", hint="Start from configs/agent.yaml and pass its path with --config."
        ) from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"{path} is not YAML: {exc}", hint="Check the indentation around that line.") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no settings", hint="Start from configs/agent.yaml.")
    try:
        return AgentConfig.model_validate(document, context={"base": path.resolve().parent})
    except ValidationError as exc:
        raise ConfigError(_explain(path, exc), hint="configs/agent.yaml explains every setting.") from exc


def _explain(path: Path, error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    lines = [f"  {_place(problem['loc'])}: {problem['msg']}" for problem in problems]
    return f"{path}: {len(lines)} wrong setting(s)\n" + "\n".join(lines)


def _place(parts: tuple[int | str, ...]) -> str:
    """Return where in the file a setting stands; the camera's kind, which pydantic puts in, is no part of that."""
    shown = parts[:1] + parts[2:] if parts[:1] == ("camera",) else parts
    return ".".join(str(part) for part in shown)
