"""What the cloud may change on a device beside its model: everything here travels in the signed assignment."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, StringConstraints, field_validator, model_validator

from curate.contracts.document import Document
from curate.contracts.ids import SafeName

Share = Annotated[float, Field(ge=0.0, le=1.0)]
TimeOfDay = Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_MAX_ZONE_LENGTH = 64
ALL_WEEK: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class TimeWindow(Document):
    """A part of the week on the device's wall clock. One whose end is not after its start runs over midnight."""

    days: tuple[Weekday, ...] = Field(default=ALL_WEEK, min_length=1)
    """The days on which it starts."""
    start: TimeOfDay = "00:00"
    end: TimeOfDay = "00:00"
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if len(value) > _MAX_ZONE_LENGTH:  # zoneinfo looks for it part by part, and a long one ends in a RecursionError
            raise ValueError(f"a time zone's name has at most {_MAX_ZONE_LENGTH} characters")
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise ValueError(f"unknown time zone {value!r}; use a name such as Europe/Berlin") from exc
        return value


class SceneGateSpec(Document):
    """Spares the model frames on which nothing has changed: the last answer stands for them."""

    enabled: bool = False
    max_reuse_s: float = Field(default=10.0, gt=0.0, le=3600.0)
    """The oldest answer that may stand for a frame."""
    force_every: int = Field(default=100, ge=1)
    """One in so many frames that the gate would skip, drawn at random, is answered all the same: it measures the
    gate's own error."""
    sensitivity: Share = 0.5
    """From 0 (only large changes count) to 1 (nearly every change counts)."""


class RedactionRegion(Document):
    """A polygon that is blacked out before a picture reaches the disk."""

    camera_id: SafeName | None = None
    """Which camera; every camera of the device without it."""
    points: tuple[tuple[Share, Share], ...] = Field(min_length=3, max_length=64)
    """Corners (x, y) as shares of width and height, from the top left."""


class PrivacySpec(Document):
    """What may be kept at all. What the device's own file forbids, no assignment allows."""

    regions: tuple[RedactionRegion, ...] = Field(default=(), max_length=64)
    windows: tuple[TimeWindow, ...] = Field(default=(), max_length=64)
    """When captures may be kept; always without any."""


class MeteredPolicy(StrEnum):
    """What goes out while the link is metered. Heartbeats, acknowledgements and updates of settings always do."""

    EVERYTHING = "everything"
    FEEDBACK = "feedback"
    NOTHING = "nothing"


class BandwidthSpec(Document):
    """What uploads may cost."""

    max_bytes_per_hour: int | None = Field(default=None, ge=64 * 1024)
    """Filled continuously; no limit without it."""
    burst_bytes: int = Field(default=4 * 1024 * 1024, ge=64 * 1024)
    """The most that unused allowance adds up to."""
    windows: tuple[TimeWindow, ...] = Field(default=(), max_length=64)
    """When captures may be uploaded; always without any."""
    metered: MeteredPolicy = MeteredPolicy.FEEDBACK


class RetentionSpec(Document):
    """What a full spool gives up last."""

    dismissed_floor: Share = 0.2
    """Share of the spool that dismissed captures may fill before they are given up for others."""
    random_floor: Share = 0.2
    """The same for the random arm."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.dismissed_floor + self.random_floor > 1.0:
            raise ValueError("the floors add up to more than the spool")
        return self


class DeviceSettings(Document):
    """A section that is absent stays as the device's own file has it."""

    scene_gate: SceneGateSpec | None = None
    privacy: PrivacySpec | None = None
    bandwidth: BandwidthSpec | None = None
    retention: RetentionSpec | None = None
