"""The values that go into and come out of choosing what to label."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curate.errors import SelectionError

if TYPE_CHECKING:
    from curate.selection.cells import Cells

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
EmbeddingArray = NDArray[np.floating[Any]]
"""As they were stored; selection works on unit rows in float32, a block at a time."""
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


Progress = Callable[[str], None]
"""Told the name of each stage of a selection as it begins."""


def tell_nobody(stage: str) -> None:
    """Let the stages pass unseen."""


BudgetUnit = Literal["images", "boxes", "minutes"]


class SampleRole(StrEnum):
    """Why a sample is labelled: to measure the field honestly, or to teach the model."""

    AUDIT = "audit"
    ACTIVE = "active"


class SelectionPolicy(BaseModel):
    """How a labelling budget is spent; every knob has a default that works on bursty camera streams."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal[
        "uherding",
        "k_center",
        "typiclust",
        "badge",
        "cluster_margin",
        "bald",
        "power_margin",
        "margin",
        "entropy",
        "least_confidence",
        "random",
    ] = Field(default="uherding", description="Query strategy of the active share.")
    uncertainty: Literal["margin", "entropy", "least_confidence"] = Field(
        default="margin", description="Uncertainty that weighs the coverage of `uherding`."
    )
    audit_share: float = Field(
        default=0.2, ge=0, le=1, description="Share of the budget spent on uniformly random captures, kept held out."
    )
    explore_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the active budget drawn at random, times the share of captures that no random arm kept.",
    )
    burst_duplicate_cosine: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Two captures of one group, or of one camera within `scene_gap_s`, at least this similar are one"
        " sight. Lower it where frames of one thing look less alike, as at night.",
    )
    duplicate_cosine: float = Field(
        default=0.99, gt=0, le=1, description="Any two captures at least this similar are one sight."
    )
    scene_gap_s: float = Field(
        default=5.0, ge=0, description="Captures of one camera at most this far apart may show one scene."
    )
    scene_cosine: float = Field(
        default=0.6, gt=0, le=1, description="From this similarity on they do, and stay on one side of a split."
    )
    max_device_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Largest share of the active budget that one device may take. Null: three equal shares, at least"
        " a tenth and at most six tenths.",
    )
    max_site_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Largest share that the devices of one site may take together; 1: no limit.",
    )
    max_probation_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Largest share that all devices on probation may take together; 1: no limit.",
    )
    probation_labels: int = Field(
        default=5, ge=0, description="Answered audits after which a device's probation ends; 0: there is none."
    )
    throttle_below: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="A device whose dismissals are surely right less often than this share of the fleet's rate is not"
        " believed; 0: all are.",
    )
    max_class_share: float = Field(
        default=1.0, gt=0, le=1, description="Largest share that one predicted class may take; 1: no limit."
    )
    max_hour_share: float = Field(
        default=1.0, gt=0, le=1, description="Largest share that one hour of the day (UTC) may take; 1: no limit."
    )
    multiplicity_power: float = Field(
        default=0.25, ge=0, le=1, description="A sight seen m times weighs m to this power: 0 ignores, 1 counts."
    )
    half_life_s: float | None = Field(
        default=None,
        gt=0,
        description="A sight seen this long before the newest one weighs half as much: what the cameras see now is what"
        " the next model will meet. Null: age does not count.",
    )
    dismissed_weight: float = Field(
        default=1.0, ge=0, le=1, description="Trust in the pool's feedback evidence when it raises uncertainty."
    )
    disagreement_weight: float = Field(
        default=0.0, ge=0, le=1, description="Share of the uncertainty that is the pool's disagreement column."
    )
    max_compared: int = Field(
        default=5000,
        ge=0,
        description="So many of the least sure captures are held against the float model, where the disagreement has"
        " weight and no device measured it. Bounds a round's pictures fetched and inferences run.",
    )
    exclude_labelled_groups: bool = Field(
        default=True, description="Keep active picks out of bursts that already hold a training label."
    )
    max_candidates: int = Field(
        default=4000,
        ge=1,
        description="Up to so many sights n are compared all with all, and more by cells; this many, or 4 a label,"
        " are weighed against each other. Bounds the coverage kernel's memory to about 8 n² bytes.",
    )
    max_radius: float = Field(default=1.0, gt=0, description="Kernel radius on the unit sphere with few labels.")
    min_radius: float = Field(default=0.5, gt=0, description="Floor of the kernel radius with many labels.")
    budget_unit: BudgetUnit = Field(
        default="images", description="What the budget counts; boxes and minutes need the pool's expected boxes."
    )
    seconds_per_image: float = Field(
        default=4.0, ge=0, description="Time a person takes to open an image and look it over, boxes aside."
    )
    seconds_per_box: float = Field(
        default=7.0, ge=0, description="Time a person takes for one box (7 s by extreme clicking, arXiv:1708.02750)."
    )

    @model_validator(mode="after")
    def _minutes_cost_something(self) -> Self:
        if self.budget_unit == "minutes" and self.seconds_per_image <= 0:
            raise ValueError("seconds_per_image must be positive when the budget counts minutes")
        return self

    def device_share(self, devices: int) -> float:
        """Return the largest share of the active budget that one of so many devices may take."""
        if self.max_device_share is not None:
            return self.max_device_share
        return min(0.6, max(0.1, 3.0 / max(1, devices)))

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the policy's canonical JSON."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class CandidatePool:
    """Unlabelled captures that may be chosen now; N rows, row i of every field is one capture.

    `embeddings` float16 or float32 [N, D], may be memory-mapped: it is read in blocks; `probabilities` float32 [N, K],
    temperature-calibrated, or None where a frame has no one distribution (detection); `uncertainty` float64 [N] in
    [0, 1] or None, how unsure the model is of the frame: it stands in for what would be computed from the
    probabilities, and without them it is needed; `groups` the burst or camera and time block; `random_probability`
    float64 [N], the inclusion probability recorded by the random arm, NaN where that arm did not pick the capture or
    where it must not be audited (for example, it belongs to an earlier period); `feedback` float64 [N] in [0, 1] or
    None, the evidence that the prediction is wrong (0 = no feedback); `captured_s` float64 [N] seconds or None, which
    lets active picks keep clear of the scenes of audits; `cost` float64 [N] > 0 or None, what a person spends on the
    capture in the policy's `budget_unit` (`annotation_cost`), None where every capture costs one image; `disagreement`
    float64 [N] in [0, 1] or None, how far the model on the device (int8) is from the one it was made of (float), NaN
    where the two were not compared; `sites` int64 [N] numbers where the device stands, -1 where that is not known, or
    None; `probation` bool [N] or None marks captures of devices that have not proven themselves yet; `members` float32
    [N, T, K] or None, what each of T models (an ensemble, or one with dropout left on) says of the capture.
    Raises `SelectionError` on mismatched lengths, wrong ranks or repeated ids; bad numbers inside a row are not an
    error but reported by `select_batch`, so that one broken capture cannot stop a round.
    """

    ids: tuple[str, ...]
    embeddings: EmbeddingArray
    probabilities: Float32Array | None
    devices: tuple[str, ...]
    cameras: tuple[str, ...]
    groups: tuple[str, ...]
    random_probability: Float64Array
    feedback: Float64Array | None = None
    captured_s: Float64Array | None = None
    uncertainty: Float64Array | None = None
    cost: Float64Array | None = None
    disagreement: Float64Array | None = None
    sites: IntArray | None = None
    probation: BoolArray | None = None
    members: Float32Array | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        optional = {name: getattr(self, name) for name in _OPTIONAL}
        lengths = {
            "embeddings": len(self.embeddings),
            "devices": len(self.devices),
            "cameras": len(self.cameras),
            "groups": len(self.groups),
            "random_probability": len(self.random_probability),
        } | {name: len(column) for name, column in optional.items() if column is not None}
        wrong = {name: length for name, length in lengths.items() if length != n}
        if wrong:
            raise SelectionError(f"the pool has {n} ids but other lengths elsewhere: {wrong}")
        if n and not self.embeddings.ndim == 2 == (2 if self.probabilities is None else self.probabilities.ndim):
            raise SelectionError("embeddings and probabilities must be matrices, one row a capture")
        if self.members is not None and self.members.ndim != 3:
            raise SelectionError(f"members must be captures by models by classes, not {self.members.shape}")
        if self.probabilities is None and self.uncertainty is None:
            raise SelectionError("the pool has neither probabilities nor uncertainties")
        if len(set(self.ids)) < n:
            repeated = [sample_id for sample_id, count in Counter(self.ids).items() if count > 1]
            raise SelectionError(f"the pool repeats ids: {', '.join(sorted(repeated)[:5])}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_newcomers(self) -> bool:
        """Whether any capture is of a device on probation."""
        return self.probation is not None and bool(self.probation.any())

    def take(self, rows: Sequence[int] | IntArray) -> CandidatePool:
        """Return the pool of the given rows, in the given order. Copies their embeddings."""
        index = np.asarray(rows, dtype=np.int64)
        return replace(self.describe(index), embeddings=self.embeddings[index])

    def describe(self, rows: IntArray) -> CandidatePool:
        """Return the given rows without their embeddings, which stay where they are: those have width 0."""
        picked = rows.tolist()
        return CandidatePool(
            ids=tuple(map(self.ids.__getitem__, picked)),
            embeddings=np.empty((len(rows), 0), np.float32),
            devices=tuple(map(self.devices.__getitem__, picked)),
            cameras=tuple(map(self.cameras.__getitem__, picked)),
            groups=tuple(map(self.groups.__getitem__, picked)),
            random_probability=self.random_probability[rows],
            **{name: None if (column := getattr(self, name)) is None else column[rows] for name in _OPTIONAL},
        )


_OPTIONAL = (
    "probabilities",
    "feedback",
    "captured_s",
    "uncertainty",
    "cost",
    "disagreement",
    "sites",
    "probation",
    "members",
)


def annotation_cost(boxes: Float64Array, policy: SelectionPolicy) -> Float64Array | None:
    """Return what N captures with that many (expected) boxes cost a person in the policy's unit; None for images.

    An empty frame is looked at, too: it counts as one box.
    """
    costs: dict[BudgetUnit, Float64Array | None] = {
        "images": None,
        "boxes": np.maximum(boxes, 1.0),
        "minutes": (policy.seconds_per_image + policy.seconds_per_box * boxes) / 60.0,
    }
    return costs[policy.budget_unit]


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """What is labelled or queued already; M rows.

    `held_out` bool [M] or None (none held out): labels that test the model. They guard their bursts and near-duplicates
    against being trained on, but they cover nothing, because the model does not learn from them. `classes` int64 [M] or
    None: class indices as in the pool's probabilities, -1 where a label has none; what has few labels is looked for.
    Raises `SelectionError` on mismatched lengths or non-finite embeddings.
    """

    ids: tuple[str, ...]
    embeddings: Float32Array
    groups: tuple[str, ...]
    held_out: BoolArray | None = None
    cameras: tuple[str, ...] | None = None
    captured_s: Float64Array | None = None
    classes: IntArray | None = None

    def __post_init__(self) -> None:
        m = len(self.ids)
        held_out = m if self.held_out is None else len(self.held_out)
        if not m == len(self.embeddings) == len(self.groups) == held_out:
            raise SelectionError("the labelled set's ids, embeddings, groups and held_out differ in length")
        if not np.isfinite(self.embeddings).all():
            raise SelectionError("the labelled set holds embeddings that are not finite")

    @classmethod
    def empty(cls, dim: int) -> LabelledSet:
        """Return a labelled set of nothing, for embeddings of `dim` numbers."""
        return cls(ids=(), embeddings=np.empty((0, dim), np.float32), groups=())

    @property
    def testing(self) -> BoolArray:
        """The held-out mask, bool [M]."""
        return np.zeros(len(self.ids), np.bool_) if self.held_out is None else self.held_out


@dataclass(frozen=True)
class SelectedSample:
    """One chosen capture, with everything needed to explain the choice and to weigh its label.

    `inclusion_probability` is known for audit samples only (random arm times audit draw); `stands_for` counts the
    near-duplicates in the pool that this label speaks for, itself included; `nearest_labelled` is the cosine similarity
    to the closest training label, `nearest_id`, None while there is none; `cost` counts in the selection's unit.
    `explored` says that it was drawn at random among the distinct sights; `cell` is the part of a large pool's
    embedding space that it lies in; `parts` are what its score is made of (`explain.PARTS`).
    """

    sample_id: str
    rank: int
    role: SampleRole
    device: str
    utility: float
    reasons: tuple[str, ...]
    cluster: int
    stands_for: int
    inclusion_probability: float | None = None
    nearest_labelled: float | None = None
    cost: float = 1.0
    nearest_id: str | None = None
    explored: bool = False
    cell: int | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RejectedSample:
    """A pool row that could not be considered, and why."""

    sample_id: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """A ranked batch. `notes` says what had to give (a relaxed quota, too few candidates).

    `budget` and `spent` (never above it) count in `unit`. `cells` are what the embedding space of a large pool was cut
    into, to be handed in with the next round's pool; a small pool has none.
    """

    items: tuple[SelectedSample, ...]
    budget: int
    seed: int
    policy_digest: str
    pool_size: int
    distinct_sights: int
    rejected: tuple[RejectedSample, ...] = ()
    notes: tuple[str, ...] = ()
    unit: BudgetUnit = "images"
    spent: float = 0.0
    cells: Cells | None = field(default=None, compare=False, repr=False)

    @property
    def per_device(self) -> dict[str, int]:
        """Count chosen samples by device."""
        return dict(sorted(Counter(item.device for item in self.items).items()))

    @property
    def per_role(self) -> dict[str, int]:
        """Count chosen samples by role."""
        return dict(sorted(Counter(item.role.value for item in self.items).items()))
