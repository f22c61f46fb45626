"""Every section of the configuration except the cameras: what each setting is, its unit and its default."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from curate.answers.registry import SCORE_NAMES
from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.device_settings import PrivacySpec
from curate.contracts.ids import Sha256
from edge_agent.config.base import MIB, AnchoredPath, Section
from edge_agent.models.providers import ProviderName


class BucketConfig(Section):
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


class TrustConfig(Section):
    """The root of trust that was put on the device when it was set up."""

    root_file: AnchoredPath


class SpoolConfig(Section):
    """Bounds of the durable queue, and when a batch is closed."""

    max_bytes: int = Field(default=512 * MIB, ge=MIB)
    min_free_bytes: int = Field(default=32 * MIB, ge=0)
    reserve_bytes: int = Field(default=4 * MIB, ge=0)
    max_feedback: int = Field(default=10_000, ge=1)
    batch_max_captures: int = Field(default=32, ge=1)
    batch_max_age_s: float = Field(default=10.0, ge=0.0)


class SyncConfig(Section):
    """How often the agent talks to the bucket, and how often its counters reach the disk."""

    interval_s: float = Field(default=5.0, gt=0.0)
    heartbeat_interval_s: float = Field(default=30.0, gt=0.0)
    persist_interval_s: float = Field(default=5.0, gt=0.0)
    max_backoff_s: float = Field(default=60.0, gt=0.0)


class UpdateConfig(Section):
    """How often the agent asks which model it should run, and what a new one must live through."""

    interval_s: float = Field(default=30.0, gt=0.0)
    max_latency_s: float = Field(default=5.0, gt=0.0)
    max_memory_bytes: int = Field(default=512 * MIB, ge=MIB)
    smoke_timeout_s: float = Field(default=120.0, gt=0.0)
    trial_s: float = Field(default=60.0, ge=0.0)
    trial_frames: int = Field(default=200, ge=0)
    max_slowdown: float | None = Field(default=4.0, gt=1.0)
    hang_s: float = Field(default=30.0, gt=0.0)


class ModelsConfig(Section):
    """The model the device was made with."""

    factory_dir: AnchoredPath | None = None
    factory_manifest_sha256: Sha256 | None = None


def _has_known_score(policy: CapturePolicySpec) -> CapturePolicySpec:
    if policy.uncertainty_score not in SCORE_NAMES:
        raise ValueError(f"unknown uncertainty_score; this agent computes {', '.join(sorted(SCORE_NAMES))}")
    return policy


class CaptureConfig(Section):
    """How captures are chosen until the cloud assigns a policy, and how they are stored."""

    policy: Annotated[CapturePolicySpec, AfterValidator(_has_known_score)] = Field(default_factory=CapturePolicySpec)
    jpeg_quality: int = Field(default=95, ge=50, le=100)
    max_queued: int = Field(default=64, ge=1)


class FeedbackConfig(Section):
    """How many verdicts people may give; a burst is what may come at once after a rest. A flood is refused or
    quarantined, never obeyed."""

    user_per_minute: float = Field(default=60.0, gt=0.0)
    user_burst: int = Field(default=60, ge=1)
    device_per_minute: float = Field(default=300.0, gt=0.0)
    device_burst: int = Field(default=300, ge=1)
    hold_after_s: float = Field(default=300.0, gt=0.0)
    """A user who keeps the bucket below its half for so long, after a refusal, is put on hold."""
    max_quarantined: int = Field(default=500, ge=0)
    """Quarantined verdicts this process stores."""


class RingConfig(Section):
    """Memory that holds recent frames, so that a dismissal minutes later still finds its frame."""

    max_bytes: int = Field(default=32 * MIB, ge=0)


class InferenceConfig(Section):
    """How the model runs."""

    threads: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    providers: tuple[ProviderName, ...] = ("cpu",)
    variant: Literal["int8", "float"] = "int8"


class PrivacyConfig(PrivacySpec):
    """What may be kept at all. Only the device's own file names code: an assignment never does."""

    redactor: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None


class LogConfig(Section):
    """Where the JSON lines go: standard error, or a file that is rotated once."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    file: AnchoredPath | None = None
    max_bytes: int = Field(default=8 * MIB, ge=4096)
