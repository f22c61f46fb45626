"""The catalog's values: what flows pass between the stages. Frozen, plain, without a database in sight."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.contracts.feedback import NOT_WRONG, Verdict
from curate.contracts.ids import BootId, DeviceId, batch_id
from curate.contracts.prediction import Prediction
from curate.contracts.telemetry import DeviceCounters, ReportedState

IMPORTED = "imported"
"""The device id of samples that no device captured."""


class SampleStatus(StrEnum):
    """Where a sample stands. Only `POOL` samples can be selected."""

    POOL = "pool"
    QUEUED = "queued"
    LABELLED = "labelled"
    SKIPPED = "skipped"
    """An annotator declined it; it is not asked again."""


class SelectionRole(StrEnum):
    """Why a sample was chosen: to learn from, to keep the numbers honest, or to tell two models apart."""

    ACTIVE = "active"
    AUDIT = "audit"
    CONTESTED = "contested"
    """A candidate and its incumbent answered it differently; it teaches from the next round on."""


class Split(StrEnum):
    """What a labelled sample may be used for. Sticky: a sample never changes its split."""

    TRAIN = "train"
    VALIDATION = "validation"
    """Early stopping and temperature."""
    TEST = "test"
    """The gate and the field estimate; only random-arm samples, never trained on."""
    EXCLUDED = "excluded"
    """Shares a group with the other side of the split."""


@dataclass(frozen=True)
class Sample:
    """A capture the catalog has admitted. `sample_id` is the capture's id."""

    sample_id: str
    device_id: str
    camera_id: str
    frame_index: int
    captured_at: datetime
    boot_id: str
    batch_sequence: int
    image_key: str
    image_sha256: str
    image_bytes: int
    width: int
    height: int
    release_id: str | None
    """The release that made the prediction; None for an imported sample."""
    prediction: Prediction | None
    embedding: NDArray[np.float32] | None
    """float32 [D], as the device computed it with `release_id`; None for an imported sample."""
    arms: tuple[str, ...]
    """Arms that kept it."""
    random_probability: float | None
    """The random arm's probability when that arm kept it, else None."""
    inclusion_probability: float
    reasons: tuple[str, ...]
    status: SampleStatus = SampleStatus.POOL
    ingested_at: datetime | None = None
    flags: tuple[str, ...] = ()
    """What admission noticed and let pass, such as `clock_unset` or `clock_ahead`."""


@dataclass(frozen=True)
class FeedbackRow:
    """A person's verdict as the catalog keeps it; `sample_id` is None while (or if ever) no capture joins."""

    feedback_id: str
    device_id: str
    prediction_id: str
    verdict: str
    reason: str | None
    label: str | None
    user: str | None
    received_at: datetime
    frame_available: bool
    sample_id: str | None = None
    quarantined: bool = False
    """It came in a flood."""
    box_id: str | None = None
    """The box it is about; None for the whole frame, or for something that has no box."""

    @property
    def says_wrong(self) -> bool:
        """Whether it is evidence that the prediction was wrong. Not interesting is not wrong."""
        return not (self.quarantined or self.verdict == Verdict.CONFIRMED or self.reason in NOT_WRONG)


class BatchStatus(StrEnum):
    """What became of a batch. Both are acknowledged: the device has nothing left to do."""

    INGESTED = "ingested"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class BatchRow:
    """A batch the catalog has taken; identified by device, boot and sequence."""

    device_id: str
    boot_id: str
    sequence: int
    digest: str
    """sha256 of the record's bytes, hex."""
    status: BatchStatus
    taken_at: datetime
    created_at: datetime | None = None
    """The device's clock; None when the record could not be read."""
    counters: DeviceCounters | None = None
    captures: int = 0
    """Captures the record names, admitted or not."""
    feedback: int = 0

    @property
    def batch_id(self) -> str:
        """The batch's fleet-wide name."""
        return batch_id(DeviceId(self.device_id), BootId(self.boot_id), self.sequence)


@dataclass(frozen=True)
class DeviceRow:
    """A device as the cloud last saw it; times are the cloud's."""

    device_id: str
    first_seen: datetime
    last_seen: datetime
    reported: ReportedState | None = None
    site: str | None = None
    """Where it stands, by its operator's word; several devices may share a site."""
    unlearned_at: datetime | None = None
    """Since when nothing of it counts: its samples are neither chosen nor trained on."""


@dataclass(frozen=True)
class QuarantineRow:
    """Something that arrived and was not admitted, with the reason in a person's words."""

    quarantine_id: str
    device_id: str | None
    key: str
    reason: str
    detail: str
    at: datetime


class RoundPhase(StrEnum):
    """How far a round has come; a restarted flow goes on from here."""

    OPEN = "open"
    SELECTED = "selected"
    SENT = "sent"
    ANNOTATED = "annotated"
    TRAINED = "trained"
    COMPRESSED = "compressed"
    SETTLED = "settled"
    """Nobody has to be asked any more to judge the candidate."""
    DECIDED = "decided"
    CLOSED = "closed"


@dataclass(frozen=True)
class Round:
    """One turn of the loop."""

    number: int
    phase: RoundPhase
    budget: int
    seed: int
    opened_at: datetime
    closed_at: datetime | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """What the stages learned, by stage name: estimates, metrics, decisions; JSON values only."""


@dataclass(frozen=True)
class SelectedRow:
    """One chosen sample of a round, as stored: enough to explain the choice later."""

    round_number: int
    sample_id: str
    rank: int
    role: SelectionRole
    utility: float
    inclusion_probability: float | None
    """For audits and contested captures: random arm probability times the probability of the draw."""
    reasons: tuple[str, ...]
    cluster: int | None = None
    """The sight it was taken as part of; numbered within its round."""
    stands_for: int = 1
    explored: bool = False
    """Drawn at random among the distinct sights, not by the policy's strategy."""
    nearest_id: str | None = None
    """The closest training label of that time, None while there was none."""
    nearest_cosine: float | None = None
    cell: int | None = None
    """The part of the embedding space it lies in, None where the pool was compared as a whole."""
    parts: dict[str, float] = field(default_factory=dict)
    """What its score is made of, by name."""
    policy_digest: str | None = None
    """SHA-256 of the selection policy, hex."""


class TaskStatus(StrEnum):
    """The ledger of annotation tasks. `PLANNED` is written before anything is sent."""

    PLANNED = "planned"
    SENT = "sent"
    COMPLETED = "completed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class TaskRow:
    """One annotation task: at most one a sample, whatever crashes."""

    sample_id: str
    round_number: int
    rank: int
    status: TaskStatus
    backend_task_id: str | None = None


@dataclass(frozen=True)
class AnnotationRow:
    """One person's answer. `label` is kind-specific JSON; for classification `{"class": name}`; None when skipped."""

    annotation_id: str
    sample_id: str
    annotator: str | None
    label: dict[str, Any] | None
    was_cancelled: bool
    created_at: datetime
    updated_at: datetime
    lead_time_s: float | None = None


@dataclass(frozen=True)
class DatasetItem:
    """One labelled image of a dataset version."""

    sample_id: str
    image_key: str
    label: dict[str, Any]
    split: Split
    group: str
    """Samples of one group (burst, near-duplicates) are never on two sides of a split."""
    device_id: str
    camera_id: str
    weight: float = 1.0
    inclusion_probability: float | None = None


@dataclass(frozen=True)
class DatasetVersion:
    """An immutable set of labelled images; `version` is the digest of its items."""

    version: str
    round_number: int
    created_at: datetime
    items: tuple[DatasetItem, ...]


class ModelStatus(StrEnum):
    """What became of a trained model."""

    CANDIDATE = "candidate"
    REFUSED = "refused"
    RELEASED = "released"


@dataclass(frozen=True)
class ModelRow:
    """A trained and compressed model; its files lie in the bucket under content-addressed keys."""

    model_id: str
    round_number: int
    dataset_version: str
    created_at: datetime
    status: ModelStatus
    artifacts: dict[str, str]
    """Role (`int8`, `float`, `weights`, `golden`) to bucket key."""
    metrics: dict[str, Any]
    release_id: str | None = None
    release_number: int | None = None
    gate: dict[str, Any] | None = None
