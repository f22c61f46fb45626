"""What a device says about itself: counters that must close, and a heartbeat."""

from __future__ import annotations

from pydantic import Field

from curate.contracts.document import Document, UtcDatetime
from curate.contracts.ids import SafeName


class DeviceCounters(Document):
    """Running totals over the device's life; they survive restarts with the spool.

    Laws (the ledger): `frames_seen = frames_inferred + sum(frames_skipped)`;
    `selected = spooled + sum(dropped)`; `spooled = acknowledged + pending + evicted`;
    `feedback_spooled = feedback_acknowledged + feedback_pending`.
    """

    frames_seen: int = Field(default=0, ge=0)
    frames_inferred: int = Field(default=0, ge=0)
    frames_skipped: dict[str, int] = Field(default_factory=dict)
    bytes_seen: int = Field(default=0, ge=0)
    """Encoded size of every inferred frame: what uploading all of them would have cost."""
    selected: int = Field(default=0, ge=0)
    captured: dict[str, int] = Field(default_factory=dict)
    """Spooled captures by arm; a frame kept by two arms counts under both."""
    dropped: dict[str, int] = Field(default_factory=dict)
    spooled: int = Field(default=0, ge=0)
    evicted: int = Field(default=0, ge=0)
    acknowledged: int = Field(default=0, ge=0)
    pending: int = Field(default=0, ge=0)
    uploaded: int = Field(default=0, ge=0)
    """Captures whose batch record the bucket has accepted."""
    bytes_uploaded: int = Field(default=0, ge=0)
    feedback_spooled: int = Field(default=0, ge=0)
    feedback_acknowledged: int = Field(default=0, ge=0)
    feedback_pending: int = Field(default=0, ge=0)


class UpdateEvent(Document):
    """One step of the model updater worth telling: a refusal, a swap, a failed self-check."""

    at: UtcDatetime
    outcome: str
    release_id: SafeName | None = None
    detail: str | None = None
    swap_gap_ms: float | None = None
    """Time between the last answer of the old model and the first of the new, beyond the frame interval."""
    frames_lost: int | None = None


class ReportedState(Document):
    """`twin/<device>/reported.json`: the heartbeat."""

    device_id: SafeName
    boot_id: SafeName
    reported_at: UtcDatetime
    agent_version: str
    release_id: SafeName | None = None
    assignment_version: int | None = None
    policy_version: str | None = None
    counters: DeviceCounters
    quarantined: int = Field(default=0, ge=0)
    updates: list[UpdateEvent] = Field(default_factory=list)
    """The newest few, oldest first."""
    errors: dict[str, int] = Field(default_factory=dict)
