"""Which labels train, which stop training, which judge. Pure.

Near-duplicates and the frames of one burst share a group, and a group stays on one side: otherwise a model
would be judged on what it has all but seen. Random-arm audits judge, everything else teaches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from curate.catalog.models import IMPORTED, DatasetItem, DatasetVersion, Sample, SelectionRole, Split

_TEACHING = frozenset({Split.TRAIN, Split.VALIDATION})


class SplitPolicy(BaseModel):
    """How labels are divided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    validation_fraction: float = Field(
        default=0.15, ge=0, lt=1, description="Share of the groups that teach kept aside for stopping and temperature."
    )
    block_s: float = Field(
        default=60.0, gt=0, description="Frames of one camera within one such block of time share a group."
    )


@dataclass(frozen=True)
class LabelledSample:
    """A sample with the label people settled on, and why it was asked about."""

    sample: Sample
    role: SelectionRole
    label: dict[str, Any]
    inclusion_probability: float | None = None


def teaching_items(dataset: DatasetVersion, split: Split, imported_until: int | None) -> list[DatasetItem]:
    """Return what one split teaches with.

    Imported labels leave as soon as `imported_until` labels of the field train: pictures from elsewhere, or made up,
    are a start, and a distraction afterwards. None keeps them for good.
    """
    items = [item for item in dataset.items if item.split is split]
    from_field = sum(item.split is Split.TRAIN and item.device_id != IMPORTED for item in dataset.items)
    if imported_until is None or from_field < imported_until:
        return items
    return [item for item in items if item.device_id != IMPORTED]


def assign_groups(samples: Iterable[Sample], clusters: Mapping[str, int], block_s: float) -> dict[str, str]:
    """Group by sample: samples linked by a near-duplicate cluster or a (device, camera, time block) share one.

    `clusters` maps sample ids to near-duplicate clusters; a sample without one is linked by time alone. A group bears
    the smallest sample id in it. Give the whole pool, not only the labelled: an unlabelled frame can be the link.
    """
    parents: dict[Hashable, Hashable] = {}
    ids = []
    for sample in samples:
        ids.append(sample.sample_id)
        block = int(sample.captured_at.timestamp() // block_s)
        _union(parents, ("sample", sample.sample_id), ("block", sample.device_id, sample.camera_id, block))
        if sample.sample_id in clusters:
            _union(parents, ("sample", sample.sample_id), ("cluster", clusters[sample.sample_id]))
    root_of = {sample_id: _find(parents, ("sample", sample_id)) for sample_id in ids}
    smallest: dict[Hashable, str] = {}
    for sample_id, root in root_of.items():
        smallest[root] = min(sample_id, smallest.get(root, sample_id))
    return {sample_id: smallest[root] for sample_id, root in root_of.items()}


def plan_splits(
    previous: DatasetVersion | None,
    labelled: Sequence[LabelledSample],
    groups: Mapping[str, str],
    policy: SplitPolicy,
    *,
    seed: int,
    round_number: int,
    now: datetime,
    withdrawn: Collection[str] = (),
    shared_scenes: Collection[tuple[str, str]] = (),
) -> DatasetVersion:
    """Extend a dataset version by new labels.

    Items of `previous` keep their split; one that is labelled again takes the new label, one in `withdrawn` leaves.
    A new sample follows its group (`groups`, from `assign_groups`, covers old and new samples):

    - group unseen: audits judge, and then the rest of the group is excluded; without audits the whole group
      teaches or, for a share drawn by the group's hash, validates;
    - group judges: audits judge, others are excluded;
    - group teaches or validates: audits are excluded, others join;
    - group holds old items of several splits (new frames can link groups that were apart): excluded.

    `shared_scenes` names pairs of samples that show one object although their groups differ (a burst across the border
    of two time blocks): a new audit that shares one with something taught is excluded, and so is a new teacher that
    shares one with something that judges.

    The result does not depend on the order of `labelled`; its version is the digest of its items.
    """
    kept = {item.sample_id: item for item in (previous.items if previous else ()) if item.sample_id not in withdrawn}
    fresh = [entry for entry in labelled if entry.sample.sample_id not in kept]
    for entry in labelled:
        if entry.sample.sample_id in kept:
            kept[entry.sample.sample_id] = replace(kept[entry.sample.sample_id], label=entry.label)
    old_by_group = _old_items_by_group(previous, groups)
    by_group: dict[str, list[LabelledSample]] = {}
    for entry in fresh:
        by_group.setdefault(groups.get(entry.sample.sample_id, entry.sample.sample_id), []).append(entry)
    items = list(kept.values())
    for group, members in by_group.items():
        items.extend(_place_group(group, members, old_by_group.get(group, []), policy, seed))
    items = _part_scenes(items, {entry.sample.sample_id for entry in fresh}, shared_scenes)
    ordered = tuple(sorted(items, key=lambda item: item.sample_id))
    return DatasetVersion(dataset_digest(ordered), round_number, now, ordered)


def _part_scenes(
    items: Sequence[DatasetItem], fresh: Collection[str], shared: Collection[tuple[str, str]]
) -> list[DatasetItem]:
    """Exclude new items that show what the other side of the split shows."""
    partners: dict[str, set[str]] = {}
    for left, right in shared:
        partners.setdefault(left, set()).add(right)
        partners.setdefault(right, set()).add(left)
    split_of = {item.sample_id: item.split for item in items}

    def meets(item: DatasetItem, splits: Collection[Split], *, only_old: bool) -> bool:
        others = partners.get(item.sample_id, set()) - (set(fresh) if only_old else set())
        return any(split_of.get(other) in splits for other in others)

    for item in items:
        if item.sample_id in fresh and item.split is Split.TEST and meets(item, _TEACHING, only_old=True):
            split_of[item.sample_id] = Split.EXCLUDED
    for item in items:
        if item.sample_id in fresh and item.split in _TEACHING and meets(item, {Split.TEST}, only_old=False):
            split_of[item.sample_id] = Split.EXCLUDED
    return [replace(item, split=split_of[item.sample_id]) for item in items]


def dataset_digest(items: Sequence[DatasetItem]) -> str:
    """sha256 over the items as canonical JSON, hex."""
    canonical = json.dumps([vars(item) for item in items], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _old_items_by_group(previous: DatasetVersion | None, groups: Mapping[str, str]) -> dict[str, list[DatasetItem]]:
    """Old items under the group they are in now and under the one they were stored with, lest a name be used twice.

    Withdrawn items still count: a model has seen them.
    """
    found: dict[str, list[DatasetItem]] = {}
    for item in previous.items if previous else ():
        for group in {groups.get(item.sample_id, item.group), item.group}:
            found.setdefault(group, []).append(item)
    return found


def _place_group(
    group: str, members: Sequence[LabelledSample], old: Sequence[DatasetItem], policy: SplitPolicy, seed: int
) -> list[DatasetItem]:
    bound = [item for item in old if item.split is not Split.EXCLUDED]
    # New members take the stored name of the group they join: names recompute differently as frames arrive.
    name = min((item.group for item in bound), default=group)
    side = _side({item.split for item in bound}, members, _is_validation(group, policy, seed))
    return [_item(member, _follow(side, member.role), name if side else group) for member in members]


def _side(bound: set[Split], members: Sequence[LabelledSample], is_validation: bool) -> Split | None:
    """The one split of a group, or None when old items disagree."""
    if len(bound) > 1:
        return None
    if bound:
        return next(iter(bound))
    if any(member.role is SelectionRole.AUDIT for member in members):
        return Split.TEST
    return Split.VALIDATION if is_validation else Split.TRAIN


def _follow(side: Split | None, role: SelectionRole) -> Split:
    if side is None or (role is SelectionRole.AUDIT) != (side is Split.TEST):
        return Split.EXCLUDED
    return side


def _is_validation(group: str, policy: SplitPolicy, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < policy.validation_fraction


def _item(member: LabelledSample, split: Split, group: str) -> DatasetItem:
    return DatasetItem(
        sample_id=member.sample.sample_id,
        image_key=member.sample.image_key,
        label=member.label,
        split=split,
        group=group,
        device_id=member.sample.device_id,
        camera_id=member.sample.camera_id,
        inclusion_probability=member.inclusion_probability,
    )


def _find(parents: dict[Hashable, Hashable], node: Hashable) -> Hashable:
    while (parent := parents.setdefault(node, node)) != node:
        parents[node] = parents[parent]  # path halving keeps chains short
        node = parent
    return node


def _union(parents: dict[Hashable, Hashable], left: Hashable, right: Hashable) -> None:
    parents[_find(parents, left)] = _find(parents, right)
