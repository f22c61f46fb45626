"""Forget a device, or take that back: what would change, and changing it."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from curate.catalog.models import DatasetVersion, ModelStatus, TaskStatus
from curate.catalog.unlearning import (
    Holdings,
    UnlearnPlan,
    count_items,
    models_that_saw,
    plan_relearning,
    plan_unlearning,
)
from curate.errors import CatalogError
from flows._wiring import Services

LOCK = "curation-round"
"""A round that turns beside this could train on what is being forgotten."""


def plan_unlearn(wired: Services, device_id: str, now: datetime, *, undo: bool = False) -> UnlearnPlan:
    """Say what forgetting a device changes, or with `undo` what taking that back does. Changes nothing.

    Raises:
        CatalogError: there is no such device.
    """
    found = next((each for each in wired.catalog.devices() if each.device_id == device_id), None)
    if found is None:
        raise CatalogError(f"there is no device {device_id}", hint="see `gleaner device list`")
    newest = wired.catalog.latest_dataset_version()
    holdings, is_marked = _holdings(wired, device_id, newest), found.unlearned_at is not None
    if undo:
        last = wired.catalog.last_version_with(device_id) if is_marked else None
        return plan_relearning(
            holdings,
            is_marked=is_marked,
            newest=newest,
            last_with=wired.catalog.dataset_version(last) if last else None,
            now=now,
        )
    return plan_unlearning(holdings, is_marked=is_marked, newest=newest, rounds=wired.catalog.rounds(), now=now)


def unlearn_device(wired: Services, device_id: str, now: datetime, *, undo: bool = False) -> UnlearnPlan:
    """Do what `plan_unlearn` says, and return it. A crash anywhere only means running it again.

    Raises:
        CatalogError: there is no such device, or a round is turning (then retryable).
    """
    with wired.catalog.exclusive(LOCK):
        plan = plan_unlearn(wired, device_id, now, undo=undo)
        if not undo:
            wired.catalog.unlearn_device(device_id, now)
        if plan.dataset is not None:
            wired.catalog.save_dataset_version(plan.dataset, renew=True)
        for model_id in plan.refused:
            reason = f"it has seen samples of {device_id}, which was unlearned"
            gate = {"promote": False, "reasons": [reason]}
            wired.catalog.update_model(model_id, gate=gate, status=ModelStatus.REFUSED)
        if undo and plan.is_marked:  # last: until here the next run would bring the items back as well
            wired.catalog.relearn_device(device_id)
        return plan


def describe_plan(plan: UnlearnPlan, *, done: bool) -> list[str]:
    """Say in lines what a plan changes, or has changed."""
    held, name = plan.holdings, plan.holdings.device_id
    if not plan:
        return [f"{name}: nothing to do, it {'counts' if plan.undo else 'is unlearned already'}"]
    verbs = {(False, False): "would be unlearned", (False, True): "is unlearned"}
    verbs |= {(True, False): "would count again", (True, True): "counts again"}
    lines = [
        f"{name} {verbs[plan.undo, done]}",
        f"samples: {sum(held.samples.values())} ({_counted(held.samples)}), verdicts: {held.verdicts}",
    ]
    if not plan.undo:
        lines.append(f"questions that are no longer asked: {held.waiting}")
        lines.append(f"labels in the newest dataset version: {_counted(held.items)}")
    if plan.dataset is not None:
        lines.append(f"dataset version: {plan.dataset.version[:10]} with {len(plan.dataset.items)} labels")
    lines += [f"{each} will not be released" for each in plan.refused]
    seen = [each.release_id for each in held.models if each.release_id]
    lines.append(f"releases that have seen its samples: {', '.join(seen) or 'none'}")
    return lines


def _holdings(wired: Services, device_id: str, newest: DatasetVersion | None) -> Holdings:
    samples = wired.catalog.samples(devices=[device_id], unlearned_too=True)
    ids = {sample.sample_id for sample in samples}
    open_tasks = (TaskStatus.PLANNED, TaskStatus.SENT)
    return Holdings(
        device_id,
        samples=dict(sorted(Counter(sample.status.value for sample in samples).items())),
        verdicts=len(wired.catalog.feedback(device_id=device_id)),
        waiting=sum(task.sample_id in ids and task.status in open_tasks for task in wired.catalog.tasks()),
        items=count_items(newest, device_id),
        models=models_that_saw(wired.catalog.models(), wired.catalog.taught_by([device_id])),
    )


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
