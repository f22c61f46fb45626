"""The agent's configuration file as a whole. Unknown keys are errors."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from curate.contracts.device_settings import BandwidthSpec, PrivacySpec, RetentionSpec, SceneGateSpec
from curate.errors import ConfigError
from edge_agent.config.base import MIB, AnchoredPath, Section, ShortName
from edge_agent.config.cameras import CameraConfig
from edge_agent.config.sections import (
    ApiConfig,
    BucketConfig,
    CaptureConfig,
    InferenceConfig,
    LogConfig,
    RingConfig,
    SpoolConfig,
    SyncConfig,
    TrustConfig,
    UpdateConfig,
)
from edge_agent.settings import EffectiveSettings

_MAX_CONFIG_BYTES = MIB


class AgentConfig(Section):
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
    scene_gate: SceneGateSpec = Field(default_factory=SceneGateSpec)
    privacy: PrivacySpec = Field(default_factory=PrivacySpec)
    bandwidth: BandwidthSpec = Field(default_factory=BandwidthSpec)
    retention: RetentionSpec = Field(default_factory=RetentionSpec)
    log: LogConfig = Field(default_factory=LogConfig)

    def effective_settings(self) -> EffectiveSettings:
        """Return what the device follows before any assignment."""
        return EffectiveSettings(self.scene_gate, self.privacy, self.bandwidth, self.retention)


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
    shown = parts[:1] + parts[2:] if parts[:1] == ("camera",) else parts
    return ".".join(str(part) for part in shown)
