"""The sections of the report, each a pure function from what the demo left behind to JSON values."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from curate.catalog.models import (
    DatasetVersion,
    FeedbackRow,
    ModelRow,
    Round,
    Sample,
    Split,
    TaskRow,
    TaskStatus,
)
from curate.contracts.feedback import FeedbackReason, Verdict
from curate.contracts.telemetry import ReportedState
from flows.sandbox.heldout import HeldOutScore, RoundFacts, drift_cost, recovered_share
from flows.sandbox.journal import Metric, Sighting, measure_until
from flows.sandbox.ledger import AnnotationBook
from flows.sandbox.worlds.base import Witness

Json = dict[str, Any]

FIELD_FACT = "field_accuracy"
"""Where a round keeps the product's own estimate, whatever it measures."""
_SAID_WRONG = {FeedbackReason.WRONG_CLASS, FeedbackReason.NOT_THERE}
"""Reasons that a simulated person gives exactly when the prediction was wrong."""


def describe_rounds(
    facts: Sequence[RoundFacts],
    tasks: Sequence[TaskRow],
    sightings: Sequence[Sighting],
    scores: Mapping[str, HeldOutScore],
    metric: Metric,
) -> list[Json]:
    """One entry a round: what it cost, what it brought, and whether the product's own estimate was right."""
    answered = Counter(task.round_number for task in tasks if task.status is TaskStatus.COMPLETED)
    labels, entries = 0, []
    for each in facts:
        labels += int(each.round.facts.get("imported", 0)) + answered[each.round.number]
        estimate: Json | None = each.round.facts.get(FIELD_FACT)
        oracle = _oracle(each.round, estimate, sightings, metric) if estimate else None
        entries.append(
            {
                "number": each.round.number,
                "labels": labels,
                "release": each.in_field.release_id,
                "promoted": each.candidate is each.in_field,
                "gate": each.candidate.gate,
                metric.heldout: each.heldout.mean,
                "heldout": dict(each.heldout.cells),
                metric.candidate: scores[each.candidate.model_id].mean,
                metric.field: estimate,
                metric.oracle: oracle,
                "oracle_in_ci95": contains(estimate["ci95"], oracle) if estimate and oracle is not None else None,
                metric.control: each.control.mean if each.control else None,
                "control_random": dict(each.control.cells) if each.control else None,
            }
        )
    return entries


def contains(interval: Sequence[float], value: float) -> bool:
    """Whether the closed interval [low, high] holds the value."""
    low, high = interval
    return low <= value <= high


def _oracle(current: Round, estimate: Json, sightings: Sequence[Sighting], metric: Metric) -> float | None:
    until = datetime.fromisoformat(current.facts["selected_at"])
    return measure_until(metric, sightings, estimate["release"], until)


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
    names = ("float_bytes", "int8_bytes", "float_p50_ms", "int8_p50_ms", "parity_images", "scheme")
    shown = {name: metrics.get(name) for name in names}
    # How much of the answers is equal has a name of its own for each kind.
    shown |= {name: value for name, value in metrics.items() if name == "parity" or name.startswith("parity_")}
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


def count_leaks(dataset: DatasetVersion | None, samples: Mapping[str, Sample], witness: Witness) -> Json:
    """Count test items whose true scene also holds a frame that the model learned from."""
    scenes: dict[Split, list[Hashable]] = {split: [] for split in Split}
    for item in dataset.items if dataset else ():
        sample = samples.get(item.sample_id)
        scene = witness.scene_of(sample) if sample is not None else None
        if scene is not None:
            scenes[item.split].append(scene)
    learned = {*scenes[Split.TRAIN], *scenes[Split.VALIDATION]}
    tests = scenes[Split.TEST]
    return {"test_items_sharing_a_burst_with_training": sum(s in learned for s in tests), "of": len(tests)}


def describe_dismissals(feedback: Sequence[FeedbackRow], sightings: Sequence[Sighting]) -> Json:
    """How people judged what they were shown, and what they missed in it."""
    against = [row for row in feedback if row.verdict != Verdict.CONFIRMED]
    # Who gives no reason reports something that was not shown at all.
    about_shown = [row for row in against if row.reason is not None]
    wrong = sum(row.reason in _SAID_WRONG for row in about_shown)
    mistakes = sum(sighting.mistakes for sighting in sightings)
    return {
        "sent": len(against),
        "corrected": sum(row.verdict == Verdict.CORRECTED for row in against),
        "missed_reported": len(against) - len(about_shown),
        "wrong_share": wrong / len(about_shown) if about_shown else None,
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


def follow_metric(
    sightings: Sequence[Sighting],
    metric: Metric,
    zero: datetime,
    dusk: Mapping[str, datetime | None],
    *,
    window_s: float = 12.0,
    step_s: float = 3.0,
) -> dict[str, Json]:
    """The metric over a rolling window per camera, the moment each release began to answer there, and when dusk fell.

    `points` holds [seconds, metric, frames] for windows that end at each step; windows without frames are left out.
    """
    followed = {}
    for camera in sorted({sighting.camera_id for sighting in sightings}):
        own = sorted((s for s in sightings if s.camera_id == camera), key=lambda s: s.at)
        starts: dict[str, float] = {}
        for sighting in own:
            starts.setdefault(sighting.release_id, round((sighting.at - zero).total_seconds(), 2))
        fell = dusk.get(camera)
        followed[camera] = {
            "points": _rolling(own, metric, zero, window_s, step_s),
            "releases": starts,
            "dusk_from_s": round((fell - zero).total_seconds(), 2) if fell else None,
        }
    return followed


def _rolling(
    own: Sequence[Sighting], metric: Metric, zero: datetime, window_s: float, step_s: float
) -> list[tuple[float, float, int]]:
    """`own` in order of time."""
    times = [sighting.at for sighting in own]
    points = []
    end = times[0] + timedelta(seconds=step_s)
    while end <= times[-1] + timedelta(seconds=step_s):
        seen = own[bisect_left(times, end - timedelta(seconds=window_s)) : bisect_right(times, end)]
        value = metric.measure(seen)
        if value is not None:
            points.append((round((end - zero).total_seconds(), 2), round(value, 4), len(seen)))
        end += timedelta(seconds=step_s)
    return points
