"""The agent's configuration file as a whole. Unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from curate.contracts.device_settings import BandwidthSpec, RetentionSpec, SceneGateSpec
from curate.errors import ConfigError
from edge_agent.config.base import MIB, AnchoredPath, Section, ShortName
from edge_agent.config.cameras import CameraConfig
from edge_agent.config.interfaces import ApiConfig, GrpcConfig, MqttConfig
from edge_agent.config.sections import (
    BucketConfig,
    CaptureConfig,
    FeedbackConfig,
    InferenceConfig,
    LogConfig,
    ModelsConfig,
    PrivacyConfig,
    RingConfig,
    SpoolConfig,
    SyncConfig,
    TrustConfig,
    UpdateConfig,
)
from edge_agent.settings import EffectiveSettings

_MAX_CONFIG_BYTES: Final = MIB
MAX_CAMERAS: Final = 16


class AgentConfig(Section):
    """Everything one agent needs to know. Secrets are not in here: they come from a file or the environment."""

    device_id: ShortName
    state_dir: AnchoredPath
    camera: CameraConfig | None = None
    cameras: tuple[CameraConfig, ...] = Field(default=(), max_length=MAX_CAMERAS)
    bucket: BucketConfig
    trust: TrustConfig
    api: ApiConfig = Field(default_factory=ApiConfig)
    grpc: GrpcConfig = Field(default_factory=GrpcConfig)
    mqtt: MqttConfig = Field(default_factory=MqttConfig)
    spool: SpoolConfig = Field(default_factory=SpoolConfig)
    sync: SyncConfig = Field(default_factory=SyncConfig)
    update: UpdateConfig = Field(default_factory=UpdateConfig)
    capture: CaptureConfig = Field(default_factory=CaptureConfig)
    feedback: FeedbackConfig = Field(default_factory=FeedbackConfig)
    ring: RingConfig = Field(default_factory=RingConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    models: ModelsConfig = Field(default_factory=ModelsConfig)
    scene_gate: SceneGateSpec = Field(default_factory=SceneGateSpec)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    bandwidth: BandwidthSpec = Field(default_factory=BandwidthSpec)
    retention: RetentionSpec = Field(default_factory=RetentionSpec)
    log: LogConfig = Field(default_factory=LogConfig)

    @model_validator(mode="after")
    def _has_cameras(self) -> Self:
        if (self.camera is None) is (not self.cameras):
            raise ValueError("give either `camera`, or `cameras` as a list")
        names = [camera.camera_id for camera in self.all_cameras]
        if len(set(names)) < len(names):
            raise ValueError("every camera needs a camera_id of its own")
        meant = {region.camera_id for region in self.privacy.regions if region.camera_id is not None}
        if unknown := meant.difference(names):
            raise ValueError(f"privacy.regions name cameras that do not exist: {', '.join(sorted(unknown))}")
        return self

    @property
    def all_cameras(self) -> tuple[CameraConfig, ...]:
        """The cameras of this device, at least one."""
        return self.cameras if self.camera is None else (self.camera,)

    def effective_settings(self) -> EffectiveSettings:
        """Return what the device follows before any assignment."""
        return EffectiveSettings(self.scene_gate, (self.privacy,), self.bandwidth, self.retention)


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
        return AgentConfig.model_validate(document, context={"base": path.resolve().parent}, extra="forbid")
    except ValidationError as exc:
        raise ConfigError(_explain(path, exc), hint="configs/agent.yaml explains every setting.") from exc


def _explain(path: Path, error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    lines = [f"  {_place(problem['loc'])}: {problem['msg']}" for problem in problems]
    return f"{path}: {len(lines)} wrong setting(s)\n" + "\n".join(lines)


def _place(parts: tuple[int | str, ...]) -> str:
    """Return where in the file a setting stands; the camera's kind, which pydantic puts in, is no part of that."""
    kind_at = {"camera": 1, "cameras": 2}.get(str(parts[0])) if parts else None
    shown = [str(part) for at, part in enumerate(parts) if at != kind_at]
    return ".".join(shown) or "the file"
