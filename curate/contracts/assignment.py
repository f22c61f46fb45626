"""What the cloud wants of one device, and which batches it has durably taken."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from curate.contracts.device_settings import DeviceSettings
from curate.contracts.document import Document, UtcDatetime
from curate.contracts.ids import SafeName
from curate.contracts.sketch import MAX_FLEET_CENTRES, EmbeddingSketch


class CapturePolicySpec(Document):
    """How the device chooses captures. Travels in the assignment, so a fleet's policy changes without a visit."""

    version: str = "default"
    random_probability: float = Field(default=0.02, gt=0.0, le=1.0)
    uncertain_budget_fraction: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of frames the uncertain arm may keep; its threshold adapts to it."""
    novel_budget_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of frames kept because nothing like them was sent yet."""
    temporal_budget_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of frames kept because the answers around them disagree: flicker, a track that was lost."""
    uncertainty_score: str = "margin"
    cooldown_frames: int = Field(default=0, ge=0)
    """Frames an arm with a budget rests after keeping one, so that a burst cannot fill the spool."""


class Assignment(Document):
    """The payload of `twin/<device>/desired.json`, inside a signed `Envelope`."""

    schema_version: Literal[1] = 1
    device_id: SafeName
    version: int = Field(ge=1)
    """Grows with every change; a device never follows a lower one than it has accepted."""
    release_id: SafeName | None = None
    capture_policy: CapturePolicySpec = Field(default_factory=CapturePolicySpec)
    settings: DeviceSettings = Field(default_factory=DeviceSettings)
    allow_downgrade: bool = False
    """Only with this set may the release be older than the newest the device has accepted."""
    issued_at: UtcDatetime
    fleet_sketch: EmbeddingSketch | None = None
    """What the fleet has sent already, for the novel arm: at most `MAX_FLEET_CENTRES` centres."""

    @field_validator("fleet_sketch")
    @classmethod
    def _fits_an_assignment(cls, value: EmbeddingSketch | None) -> EmbeddingSketch | None:
        if value is not None and value.count > MAX_FLEET_CENTRES:
            raise ValueError(f"a fleet's sketch holds at most {MAX_FLEET_CENTRES} centres")
        return value


class Acknowledgement(Document):
    """`twin/<device>/ack.json`: the highest sequence durably taken, of each boot still in use.

    Batches of one boot are taken in order, so one number a boot says it all. The device deletes
    only what is acknowledged. A batch in the cloud's quarantine is taken too.
    """

    device_id: SafeName
    through: dict[SafeName, int] = Field(default_factory=dict)
    updated_at: UtcDatetime
