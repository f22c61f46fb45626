"""Why one sample was chosen, and what came of it: everything the catalog knows, gathered for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from curate.catalog.models import FeedbackRow, Sample, SelectedRow, TaskRow
from curate.errors import CatalogError
from flows._labels import agreed_labels
from flows._wiring import Services

POLICY_FACT = "selection_policy"
"""Under this name a round keeps the policy it chose by."""
NAMED = 5
"""So many ids are named where a prefix fits several."""


@dataclass(frozen=True, eq=False)
class Account:
    """One chosen sample with all that speaks of it."""

    sample: Sample
    row: SelectedRow
    chosen: int
    """How many its round chose."""
    feedback: tuple[FeedbackRow, ...]
    task: TaskRow | None
    label: Mapping[str, Any] | None
    """What people settled on, None while they have not."""
    nearest: Sample | None
    """The closest training label of that time."""
    nearest_label: Mapping[str, Any] | None
    class_names: tuple[str, ...]
    policy_digest: str
    """Of the selection policy in force now."""
    policy_changes: tuple[str, ...] = ()
    """What has changed in it since, in words."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: the stored row, the capture without its embeddings, and what came of it."""
        sample, prediction = self.sample, self.sample.prediction
        return {
            **asdict(self.row),
            "chosen": self.chosen,
            "device_id": sample.device_id,
            "camera_id": sample.camera_id,
            "captured_at": sample.captured_at.isoformat(),
            "release_id": sample.release_id,
            "image_key": sample.image_key,
            "prediction": None if prediction is None else prediction.model_dump(mode="json", exclude=_EMBEDDINGS),
            "arms": list(sample.arms),
            "arm_reasons": list(sample.reasons),
            "random_probability": sample.random_probability,
            "arm_probability": sample.inclusion_probability,
            "policy_in_force": self.policy_digest,
            "policy_changes": list(self.policy_changes),
            "feedback": [_verdict(each) for each in self.feedback],
            "status": sample.status.value,
            "task_id": None if self.task is None else self.task.backend_task_id,
            "label": None if self.label is None else dict(self.label),
            "nearest_label": None if self.nearest_label is None else dict(self.nearest_label),
        }


_EMBEDDINGS: Any = {"embedding": True, "boxes": {"__all__": {"embedding"}}}


def explain_sample(wired: Services, name: str) -> Account:
    """Gather why a sample was chosen; `name` is its id or the beginning of it.

    Raises:
        CatalogError: no sample or several are named so, or it was never chosen.
    """
    sample = find_sample(wired, name)
    row = wired.catalog.selected(sample.sample_id)
    if row is None:
        arms = " and ".join(sample.arms) or "no"
        raise CatalogError(
            f"{sample.sample_id} was never chosen",
            hint=f"it is in the catalog as {sample.status}, kept by the {arms} arm; only chosen samples have reasons",
        )
    nearest = None if row.nearest_id is None else wired.catalog.sample(row.nearest_id)
    labels = agreed_labels(wired, [each for each in (sample.sample_id, row.nearest_id) if each is not None])
    tasks = wired.catalog.tasks(round_number=row.round_number)
    chosen_in, policy = wired.catalog.round(row.round_number), wired.settings.selection
    return Account(
        sample=sample,
        row=row,
        chosen=len(tasks),
        feedback=tuple(wired.catalog.feedback(sample_ids=[sample.sample_id])),
        task=next((task for task in tasks if task.sample_id == sample.sample_id), None),
        label=labels.get(sample.sample_id),
        nearest=nearest,
        nearest_label=None if row.nearest_id is None else labels.get(row.nearest_id),
        class_names=wired.settings.labels.class_names,
        policy_digest=policy.digest(),
        policy_changes=_changes(
            (chosen_in.facts if chosen_in else {}).get(POLICY_FACT), policy.model_dump(mode="json")
        ),
    )


def find_sample(wired: Services, name: str) -> Sample:
    """Return the sample with that id, or the only one whose id begins with it.

    Raises:
        CatalogError: there is none, or there are several.
    """
    if (exact := wired.catalog.sample(name)) is not None:
        return exact
    ids = wired.catalog.sample_ids(name, NAMED + 1) if name else []
    found = wired.catalog.sample(ids[0]) if len(ids) == 1 else None
    if found is not None:
        return found
    if not ids:
        raise CatalogError(f"no sample's id begins with {name!r}", hint="ids stand in the round's contact sheet")
    listed = ", ".join(ids[:NAMED])
    raise CatalogError(
        f"{name!r} is not one sample: {listed}{' and more' if len(ids) > NAMED else ''}", hint="give more of the id"
    )


def _changes(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> tuple[str, ...]:
    if then is None:
        return ()
    return tuple(f"{name} was {then[name]}, is {now[name]}" for name in now if name in then and then[name] != now[name])


def _verdict(row: FeedbackRow) -> dict[str, Any]:
    return {
        "verdict": row.verdict,
        "reason": row.reason,
        "label": row.label,
        "user": row.user,
        "received_at": row.received_at.isoformat(),
        "quarantined": row.quarantined,
    }
