"""The sections of the report, each a pure function from what the demo left behind to JSON values."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from curate.catalog.models import (
    DatasetVersion,
    FeedbackRow,
    ModelRow,
    ModelStatus,
    Round,
    Sample,
    Split,
    TaskRow,
    TaskStatus,
)
from curate.contracts.feedback import FeedbackReason, Verdict
from curate.contracts.telemetry import ReportedState
from flows.sandbox.heldout import HeldOutAccuracy, drift_cost, recovered_share
from flows.sandbox.journal import Sighting, oracle_accuracy
from flows.sandbox.ledger import AnnotationBook
from flows.sandbox.world_schedule import Schedule, WorldConfig

Json = dict[str, Any]


@dataclass(frozen=True)
class RoundFacts:
    """One finished round with its model, the one in the field after it, and both held-out scores."""

    round: Round
    candidate: ModelRow
    in_field: ModelRow
    heldout: HeldOutAccuracy
    """Of `in_field`."""
    control: HeldOutAccuracy


def pair_rounds(
    rounds: Sequence[Round],
    models: Sequence[ModelRow],
    scores: Mapping[str, HeldOutAccuracy],
    controls: Mapping[int, HeldOutAccuracy],
) -> list[RoundFacts]:
    """Join each round that trained a model with the model that ran after it; a refused candidate changes nothing."""
    by_round = {model.round_number: model for model in models}
    found: list[RoundFacts] = []
    for each in sorted(rounds, key=lambda r: r.number):
        candidate = by_round.get(each.number)
        if candidate is None:
            continue
        released = candidate.status is ModelStatus.RELEASED or not found
        in_field = candidate if released else found[-1].in_field
        found.append(RoundFacts(each, candidate, in_field, scores[in_field.model_id], controls[each.number]))
    return found


def describe_rounds(
    facts: Sequence[RoundFacts],
    tasks: Sequence[TaskRow],
    sightings: Sequence[Sighting],
    scores: Mapping[str, HeldOutAccuracy],
) -> list[Json]:
    """One entry a round: what it cost, what it brought, and whether the product's own estimate was right."""
    answered = Counter(task.round_number for task in tasks if task.status is TaskStatus.COMPLETED)
    labels, entries = 0, []
    for each in facts:
        labels += int(each.round.facts.get("imported", 0)) + answered[each.round.number]
        estimate: Json | None = each.round.facts.get("field_accuracy")
        oracle = _oracle(each.round, estimate, sightings) if estimate else None
        gate = each.candidate.gate
        entries.append(
            {
                "number": each.round.number,
                "labels": labels,
                "release": each.in_field.release_id,
                "promoted": each.candidate is each.in_field,
                "gate": gate,
                "heldout_accuracy_int8": each.heldout.mean,
                "heldout": dict(each.heldout.cells),
                "candidate_accuracy_int8": scores[each.candidate.model_id].mean,
                "field_accuracy": estimate,
                "oracle_accuracy": oracle,
                "oracle_in_ci95": contains(estimate["ci95"], oracle) if estimate and oracle is not None else None,
                "control_random_accuracy": each.control.mean,
                "control_random": dict(each.control.cells),
            }
        )
    return entries


def contains(interval: Sequence[float], value: float) -> bool:
    """Whether the closed interval [low, high] holds the value."""
    low, high = interval
    return low <= value <= high


def _oracle(current: Round, estimate: Json, sightings: Sequence[Sighting]) -> float | None:
    return oracle_accuracy(sightings, estimate["release"], datetime.fromisoformat(current.facts["selected_at"]))


def describe_coverage(rounds: Sequence[Json]) -> Json:
    """In how many of the rounds that can be judged the 95 % interval held the truth."""
    judged = [entry["oracle_in_ci95"] for entry in rounds if entry["oracle_in_ci95"] is not None]
    return {"contained": sum(judged), "rounds": len(judged), "share": sum(judged) / len(judged) if judged else None}


def describe_device(device_id: str, state: ReportedState | None) -> Json:
    """What the device's last heartbeat says; only its name when there is none."""
    if state is None:
        return {"device_id": device_id, "release": None, "reported": False}
    counters = state.counters
    swaps = [event for event in state.updates if event.outcome == "swapped"]
    return {
        "device_id": device_id,
        "release": state.release_id,
        "reported": True,
        "frames_seen": counters.frames_seen,
        "frames_inferred": counters.frames_inferred,
        "frames_skipped": sum(counters.frames_skipped.values()),
        "frames_skipped_by_reason": counters.frames_skipped,
        "selected": counters.selected,
        "captured": counters.captured,
        "dropped": counters.dropped,
        "spooled": counters.spooled,
        "uploaded": counters.uploaded,
        "acked": counters.acknowledged,
        "evicted": counters.evicted,
        "pending": counters.pending,
        "bytes_seen": counters.bytes_seen,
        "bytes_uploaded": counters.bytes_uploaded,
        "swap_gap_ms": [event.swap_gap_ms for event in swaps if event.swap_gap_ms is not None],
        "frames_lost_at_swap": sum(event.frames_lost or 0 for event in swaps),
        "feedback_sent": counters.feedback_acknowledged,
        "feedback_pending": counters.feedback_pending,
        "quarantined": state.quarantined,
        "errors": state.errors,
    }


def describe_totals(devices: Sequence[Json]) -> Json:
    """The fleet's sums."""
    names = ("frames_seen", "frames_skipped", "selected", "acked", "bytes_seen", "bytes_uploaded")
    sums: Json = {
        name: sum(device.get(name, 0) for device in devices)
        for name in (*names, "frames_lost_at_swap", "feedback_sent")
    }
    share = sums["bytes_uploaded"] / sums["bytes_seen"] if sums["bytes_seen"] else None
    return {**sums, "uploaded_share_of_bytes": share}


def describe_model(model: ModelRow | None) -> Json | None:
    """What the newest release weighs and costs, int8 against float."""
    if model is None:
        return None
    metrics = model.metrics
    names = ("float_bytes", "int8_bytes", "float_p50_ms", "int8_p50_ms", "parity_top1", "parity_images", "scheme")
    shown = {name: metrics.get(name) for name in names}
    return {"release": model.release_id, **shown, "ratio": metrics["int8_bytes"] / metrics["float_bytes"]}


def describe_annotation(book: AnnotationBook, tasks: Sequence[TaskRow]) -> Json:
    """Tasks and answers as the annotation tool holds them."""
    return {
        "tasks": book.backend_tasks,
        "annotations": book.annotation_records,
        "duplicates": book.backend_tasks - book.sampled_tasks,
        "skipped": sum(task.status is TaskStatus.SKIPPED for task in tasks),
    }


def describe_drift(facts: Sequence[RoundFacts], camera: str, drift: Json | None) -> Json | None:
    """What dusk cost the model that met it, and how much of that the last release won back; None without a drift."""
    met = [each for each in facts if drift and each.round.closed_at and each.round.closed_at.isoformat() <= drift["at"]]
    if not drift or not met:
        return None
    before, after = met[-1], facts[-1]
    return {
        "camera": camera,
        "frame": drift.get("frame"),
        "before": before.in_field.release_id,
        "after": after.in_field.release_id,
        "cost": drift_cost(before.heldout, camera),
        "recovered_share": recovered_share(before.heldout, after.heldout, camera),
    }


def count_leaks(dataset: DatasetVersion | None, samples: Mapping[str, Sample], world: WorldConfig) -> Json:
    """Count test items whose true burst also holds a frame that the model learned from."""
    schedules = {camera.camera_id: Schedule(world, camera.camera_id) for camera in world.cameras}
    bursts: dict[Split, list[tuple[str, int]]] = {split: [] for split in Split}
    for item in dataset.items if dataset else ():
        sample = samples.get(item.sample_id)
        if sample is not None and sample.camera_id in schedules:
            number = schedules[sample.camera_id].burst_at(sample.frame_index).number
            bursts[item.split].append((sample.camera_id, number))
    learned = {*bursts[Split.TRAIN], *bursts[Split.VALIDATION]}
    tests = bursts[Split.TEST]
    return {"test_items_sharing_a_burst_with_training": sum(b in learned for b in tests), "of": len(tests)}


def describe_dismissals(feedback: Sequence[FeedbackRow], sightings: Sequence[Sighting]) -> Json:
    """How people judged. A simulated person says `wrong_class` exactly when the prediction was wrong."""
    against = [row for row in feedback if row.verdict != Verdict.CONFIRMED]
    wrong = sum(row.reason == FeedbackReason.WRONG_CLASS for row in against)
    mistakes = sum(not sighting.correct for sighting in sightings)
    return {
        "sent": len(against),
        "corrected": sum(row.verdict == Verdict.CORRECTED for row in against),
        "wrong_share": wrong / len(against) if against else None,
        "frame_gone": sum(not row.frame_available for row in against),
        "share_of_mistakes_dismissed": wrong / mistakes if mistakes else None,
    }


def place_events(events: Sequence[Json], zero: datetime) -> list[Json]:
    """The timeline with seconds since the field opened."""
    return [{"t_s": round(seconds(event["at"], zero), 2), **event} for event in events]


def find_zero(events: Sequence[Json], sightings: Sequence[Sighting]) -> datetime:
    """The moment the report counts from: the field opens, or else the first thing known.

    Raises:
        ValueError: nothing at all is known.
    """
    opened = [event["at"] for event in events if event["kind"] == "field_open"] or [event["at"] for event in events]
    if opened:
        return datetime.fromisoformat(opened[0])
    return min(sighting.at for sighting in sightings)


def seconds(at: str, zero: datetime) -> float:
    """Seconds from `zero` to the ISO time `at`."""
    return (datetime.fromisoformat(at) - zero).total_seconds()


def follow_accuracy(
    sightings: Sequence[Sighting], zero: datetime, drift: Json | None, *, window_s: float = 12.0, step_s: float = 3.0
) -> dict[str, Json]:
    """Rolling true accuracy per camera, the moment each release began to answer there, and when dusk fell.

    `points` holds [seconds, accuracy, frames] for windows that end at each step; windows without frames are left out.
    """
    followed = {}
    for camera in sorted({sighting.camera_id for sighting in sightings}):
        own = sorted((s for s in sightings if s.camera_id == camera), key=lambda s: s.at)
        starts: dict[str, float] = {}
        for sighting in own:
            starts.setdefault(sighting.release_id, round((sighting.at - zero).total_seconds(), 2))
        dark = [s.at for s in own if drift and drift["camera"] == camera and s.frame_index >= drift["frame"]]
        followed[camera] = {
            "points": _rolling(own, zero, window_s, step_s),
            "releases": starts,
            "dusk_from_s": round((min(dark) - zero).total_seconds(), 2) if dark else None,
        }
    return followed


def _rolling(own: Sequence[Sighting], zero: datetime, window_s: float, step_s: float) -> list[tuple[float, float, int]]:
    """`own` in order of time."""
    times = [sighting.at for sighting in own]
    right = [0]
    for sighting in own:
        right.append(right[-1] + sighting.correct)
    points = []
    end = times[0] + timedelta(seconds=step_s)
    while end <= times[-1] + timedelta(seconds=step_s):
        first, last = bisect_left(times, end - timedelta(seconds=window_s)), bisect_right(times, end)
        if last > first:
            accuracy = (right[last] - right[first]) / (last - first)
            points.append((round((end - zero).total_seconds(), 2), round(accuracy, 4), last - first))
        end += timedelta(seconds=step_s)
    return points
