"""What a device says about itself: counters that must close, and a heartbeat."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from curate.contracts.document import Document, UtcDatetime
from curate.contracts.ids import SafeName


class DeviceCounters(Document):
    """Running totals over the device's life; they survive restarts with the spool.

    Laws (the ledger): `frames_seen = frames_inferred + sum(frames_skipped)`;
    `selected = spooled + sum(dropped)`; `spooled = acknowledged + pending + evicted`;
    `feedback_spooled = feedback_acknowledged + feedback_pending + sum(feedback_given_up)`.
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
    evicted_by: dict[str, int] = Field(default_factory=dict)
    """The same by reason: `gave_way` to a more valuable one, `unreadable`, `lost` by the disk, `refused` by the bucket.
    Adds up to less where an older agent evicted some."""
    acknowledged: int = Field(default=0, ge=0)
    pending: int = Field(default=0, ge=0)
    uploaded: int = Field(default=0, ge=0)
    """Captures whose batch record the bucket has accepted."""
    bytes_uploaded: int = Field(default=0, ge=0)
    feedback_spooled: int = Field(default=0, ge=0)
    feedback_acknowledged: int = Field(default=0, ge=0)
    feedback_pending: int = Field(default=0, ge=0)
    feedback_given_up: dict[str, int] = Field(default_factory=dict)
    """Verdicts that will never arrive, by reason: `refused` by the bucket, `unreadable`, `lost` by the disk. An older
    agent counts them as pending."""


STEP_OUTCOMES: Final = frozenset({"downloading", "verified", "smoke", "trial"})
"""Outcomes of update events on the way; the next one makes them history."""
FINE_OUTCOMES: Final = STEP_OUTCOMES | {"committed", "swapped"}
"""Outcomes of update events that tell of nothing wrong."""


class UpdateEvent(Document):
    """One step of the model updater worth telling: a new phase, a refusal, a swap, a failed self-check."""

    at: UtcDatetime
    outcome: str
    release_id: SafeName | None = None
    detail: str | None = None
    camera_id: SafeName | None = None
    """Whose stream felt the swap: each camera tells its own gap."""
    swap_gap_ms: float | None = None
    """Time between the last answer of the old model and the first of the new, beyond the frame interval."""
    frames_lost: int | None = None


class DeviceLimits(Document):
    """What the device is held to at this moment, and what it gives up for it."""

    held_back: dict[str, int] = Field(default_factory=dict)
    """Captures waiting on the device by what keeps them there: `budget`, `window`, `metered`, and `unreadable` for what
    the disk does not give at present. Empty: nothing does."""
    reserve_ready: bool = True
    """Whether the disk's reserve is there; it was given up for the agent's own state if not."""
    clock_offset_s: float = 0.0
    """What is added to the device's own clock."""
    clock_uncertainty_s: float | None = Field(default=None, ge=0.0)
    """How far its time may be off; None while the bucket has not told its own."""


class ModelState(Document):
    """How far the newest update has come, and how the model that answers now runs."""

    phase: str
    """`idle`, `downloading`, `verified`, `smoke`, `trial`, `committed`, `rolled_back` or `refused`."""
    candidate_id: SafeName | None = None
    """The release the phase is about."""
    starts: int = Field(default=0, ge=0)
    """How often the check or the trial of it has begun."""
    reason: str | None = None
    slot: str | None = None
    """Where the model that is kept lies: `a`, `b` or `factory`."""
    trial_answers: int | None = Field(default=None, ge=0)
    """Frames that a release on trial has answered."""
    trial_frames: int | None = Field(default=None, ge=0)
    """Frames it has to answer."""
    threads: int | None = Field(default=None, ge=1)
    providers: list[str] = Field(default_factory=list)
    """What runs the model, by the names of the configuration, in order of preference."""
    notes: list[str] = Field(default_factory=list)
    """What was asked for and could not be had, such as a provider."""
    p50_ms: float | None = Field(default=None, ge=0.0)
    """Median time of the newest answers."""
    machine: str | None = None
    """Architecture of the device, such as `aarch64`."""


class SceneGateState(Document):
    """What the scene gates of all cameras did since the process started."""

    frames: int = Field(default=0, ge=0)
    """Frames they looked at."""
    skipped: int = Field(default=0, ge=0)
    """Frames for which the last answer stood."""
    checked: int = Field(default=0, ge=0)
    """Unchanged frames that were answered all the same, drawn at random."""
    wrong: int = Field(default=0, ge=0)
    """Of those, how many got another answer than would have stood for them: `wrong / checked` is the gates' error."""


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
    limits: DeviceLimits | None = None
    scene_gate: SceneGateState | None = None
    """None while no gate is on."""
    model_state: ModelState | None = None
