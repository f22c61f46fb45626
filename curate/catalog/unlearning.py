"""What forgetting a device means for datasets and models (pure): which hold something of it, and what stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from curate.catalog.models import DatasetItem, DatasetVersion, ModelRow, ModelStatus, Round, RoundPhase, Split
from curate.catalog.splits import dataset_digest

STARTED_FROM = "started_from"
"""The metric of a model that names the one whose weights its training began with; None for fresh weights."""


@dataclass(frozen=True)
class Holdings:
    """What the catalog holds of a device. `samples` and `items` count by status, and by split of the newest version."""

    device_id: str
    samples: dict[str, int]
    verdicts: int
    waiting: int
    """Questions about its samples that nobody has answered."""
    items: dict[str, int]
    models: tuple[ModelRow, ...]
    """Those that were trained with its samples, or began with the weights of one that was."""


@dataclass(frozen=True)
class UnlearnPlan:
    """What unlearning a device, or taking that back, changes. Falsy when nothing."""

    holdings: Holdings
    is_marked: bool
    """Whether it is unlearned already."""
    dataset: DatasetVersion | None
    """The version to train with from now on; None where the newest may stay."""
    undo: bool = False
    refused: tuple[str, ...] = ()
    """Candidates of unfinished rounds that must not be released."""

    def __bool__(self) -> bool:
        """Whether applying it changes anything."""
        return self.is_marked is self.undo or self.dataset is not None or bool(self.refused)


def plan_unlearning(
    holdings: Holdings, *, is_marked: bool, newest: DatasetVersion | None, rounds: Sequence[Round], now: datetime
) -> UnlearnPlan:
    """Leave a device out of the newest dataset version, and keep candidates that have seen it from being released."""
    kept = () if newest is None else tuple(each for each in newest.items if each.device_id != holdings.device_id)
    unfinished = {each.number for each in rounds if each.phase is not RoundPhase.CLOSED}
    waiting = (
        each
        for each in holdings.models
        if each.round_number in unfinished and each.release_id is None and each.status is not ModelStatus.REFUSED
    )
    return UnlearnPlan(
        holdings,
        is_marked,
        _version_of(kept, newest, now),
        refused=tuple(each.model_id for each in waiting),
    )


def plan_relearning(
    holdings: Holdings,
    *,
    is_marked: bool,
    newest: DatasetVersion | None,
    last_with: DatasetVersion | None,
    now: datetime,
) -> UnlearnPlan:
    """Bring a device's items back from the last version that held them, each to the split that it had.

    Planned anew, what had taught could come to judge. An item whose group has joined the other side in the meantime is
    excluded.
    """
    present = () if newest is None else newest.items
    known = {each.sample_id for each in present}
    sides = _sides(present)
    returning = [
        _fitted(each, sides)
        for each in (last_with.items if last_with else ())
        if each.device_id == holdings.device_id and each.sample_id not in known
    ]
    items = tuple(sorted((*present, *returning), key=lambda each: each.sample_id))
    return UnlearnPlan(holdings, is_marked, _version_of(items, newest, now), undo=True)


def models_that_saw(models: Sequence[ModelRow], versions: Collection[str]) -> tuple[ModelRow, ...]:
    """Return the models that were trained with one of these versions, or began with the weights of one that was."""
    seen = {each.model_id for each in models if each.dataset_version in versions}
    grew = True
    while grew:
        heirs = {each.model_id for each in models if each.metrics.get(STARTED_FROM) in seen} - seen
        seen, grew = seen | heirs, bool(heirs)
    return tuple(each for each in models if each.model_id in seen)


def newest_clean(models: Sequence[ModelRow], versions: Collection[str]) -> ModelRow | None:
    """Return the released model with the highest number that saw none of these versions, None where none is clean."""
    tainted = {each.model_id for each in models_that_saw(models, versions)}
    released = [each for each in models if each.status is ModelStatus.RELEASED and each.model_id not in tainted]
    return max(released, key=lambda each: (each.release_number or 0, each.created_at), default=None)


def count_items(newest: DatasetVersion | None, device_id: str) -> dict[str, int]:
    """Return how many items of a device the version holds, by split."""
    items = () if newest is None else newest.items
    return dict(sorted(Counter(each.split.value for each in items if each.device_id == device_id).items()))


def _version_of(items: tuple[DatasetItem, ...], newest: DatasetVersion | None, now: datetime) -> DatasetVersion | None:
    if newest is None or items == newest.items:
        return None
    return DatasetVersion(dataset_digest(items), newest.round_number, now, items)


def _sides(items: Sequence[DatasetItem]) -> dict[str, set[bool]]:
    """Whether the members of each group judge."""
    sides: dict[str, set[bool]] = {}
    for each in items:
        if each.split is not Split.EXCLUDED:
            sides.setdefault(each.group, set()).add(each.split is Split.TEST)
    return sides


def _fitted(item: DatasetItem, sides: dict[str, set[bool]]) -> DatasetItem:
    judges = item.split is Split.TEST
    return replace(item, split=Split.EXCLUDED) if not sides.get(item.group, set()) <= {judges} else item
