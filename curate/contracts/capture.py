"""What a device keeps of a frame, and how it tells the cloud: capture records in a batch."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from curate.contracts.document import Document, UtcDatetime
from curate.contracts.feedback import Feedback
from curate.contracts.ids import SafeName, Sha256
from curate.contracts.prediction import Prediction
from curate.contracts.telemetry import DeviceCounters


class Arm(StrEnum):
    """A reason to keep a frame; each decides by itself and states its probability."""

    RANDOM = "random"
    UNCERTAIN = "uncertain"
    NOVEL = "novel"
    TEMPORAL = "temporal"
    DISMISSED = "dismissed"


class ArmOutcome(Document):
    """What one arm decided for this frame and with which probability it would have kept it."""

    arm: Arm
    probability: float = Field(ge=0.0, le=1.0)
    kept: bool


class ImageRef(Document):
    """The immutable, content-addressed image of a capture."""

    sha256: Sha256
    size_bytes: int = Field(ge=1)
    width: int = Field(ge=1, le=16384)
    height: int = Field(ge=1, le=16384)
    media_type: Literal["image/jpeg"] = "image/jpeg"


class CaptureClock(Document):
    """How well the device knew the time of a capture. Order never depends on it: boot id and monotonic time give it."""

    offset_s: float = 0.0
    """What was added to the device's own clock to get `captured_at`."""
    uncertainty_s: float | None = Field(default=None, ge=0.0)
    """How far that may be off; None when nobody had told the device the time."""
    system_epoch_s: float
    """What the device's own clock showed when its monotonic clock was 0, in seconds since 1970."""


class CaptureRecord(Document):
    """One kept frame: which image, what the model said, which arms kept it and how likely that was."""

    capture_id: SafeName
    camera_id: SafeName
    frame_index: int = Field(ge=0)
    """The camera's own running number of the frame."""
    captured_at: UtcDatetime
    boot_id: SafeName
    monotonic_s: float = Field(ge=0)
    clock: CaptureClock | None = None
    image: ImageRef
    prediction: Prediction
    arms: list[ArmOutcome] = Field(min_length=1)
    inclusion_probability: float = Field(ge=0.0, le=1.0)
    """Probability that at least one arm keeps a frame like this one."""
    reasons: list[str] = Field(default_factory=list)
    reused_from: SafeName | None = None
    """The prediction whose answer stood for this frame: nothing had changed since, and the model has not seen it."""

    def arm_probability(self, arm: Arm) -> float | None:
        """Return the arm's probability if that arm kept this frame, else None."""
        return next((o.probability for o in self.arms if o.arm == arm and o.kept), None)


class BatchRecord(Document):
    """The commit record of a batch. Written after every blob it names; a blob without a record is invisible."""

    schema_version: Literal[1] = 1
    device_id: SafeName
    boot_id: SafeName
    sequence: int = Field(ge=1)
    created_at: UtcDatetime
    captures: list[CaptureRecord] = Field(default_factory=list)
    feedback: list[Feedback] = Field(default_factory=list)
    counters: DeviceCounters
