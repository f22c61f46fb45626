"""The pictures of the report: what was chosen and what people dismissed, as the devices uploaded it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curate.catalog.models import FeedbackRow, Sample, SelectedRow
from curate.contracts.feedback import Verdict
from curate.contracts.prediction import ClassificationPrediction
from curate.storage.ports import BlobStore
from flows._blobs import fetch_images_if_there
from flows.sandbox.world_schedule import Schedule, WorldConfig

SHOWN_PER_ROUND = 18
THUMBNAILS = "thumbnails"


class Captioner:
    """Says what a sample shows: what the device thought, what people answered, what it really was."""

    def __init__(self, world: WorldConfig, class_names: Sequence[str], labels: Mapping[str, str]) -> None:
        self._schedules = {camera.camera_id: Schedule(world, camera.camera_id) for camera in world.cameras}
        self._names = class_names
        self._labels = labels

    def describe(self, sample: Sample) -> dict[str, Any]:
        """JSON values for one picture; `truth` is None for a camera the world does not know."""
        prediction = sample.prediction
        answer = prediction if isinstance(prediction, ClassificationPrediction) else None
        schedule = self._schedules.get(sample.camera_id)
        return {
            "sample_id": sample.sample_id,
            "picture": f"{THUMBNAILS}/{sample.image_sha256}.jpg",
            "camera": sample.camera_id,
            "release": sample.release_id,
            "arms": list(sample.arms),
            "predicted": self._names[answer.class_index] if answer else None,
            "confidence": max(answer.probabilities) if answer else None,
            "label": self._labels.get(sample.sample_id),
            "truth": self._names[schedule.burst_at(sample.frame_index).label] if schedule else None,
        }


def describe_choices(
    rows: Sequence[SelectedRow], samples: Mapping[str, Sample], captions: Captioner
) -> list[dict[str, Any]]:
    """The first of a round's choices by rank, each with what it was chosen for."""
    shown = sorted(rows, key=lambda row: row.rank)[:SHOWN_PER_ROUND]
    return [
        {
            **captions.describe(samples[row.sample_id]),
            "rank": row.rank,
            "role": row.role.value,
            "reasons": list(row.reasons),
            "stands_for": row.stands_for,
        }
        for row in shown
        if row.sample_id in samples
    ]


def describe_dismissed(
    feedback: Sequence[FeedbackRow], samples: Mapping[str, Sample], captions: Captioner
) -> list[dict[str, Any]]:
    """Frames that people dismissed, the most confident mistakes first: what uncertainty alone would never find."""
    told = {row.sample_id: row for row in feedback if row.sample_id in samples and row.verdict != Verdict.CONFIRMED}
    shown = [
        {**captions.describe(samples[row.sample_id]), "verdict": row.verdict, "reason": row.reason, "said": row.label}
        for row in told.values()
        if row.sample_id is not None
    ]
    shown.sort(key=lambda entry: (entry["predicted"] == entry["truth"], -(entry["confidence"] or 0.0)))
    return shown[:SHOWN_PER_ROUND]


def persist_thumbnails(
    root: Path, store: BlobStore, samples: Mapping[str, Sample], entries: Sequence[Mapping[str, Any]]
) -> None:
    """Put the uploaded JPEGs of the entries under `root/thumbnails`; one that is gone from the bucket is left out."""
    (root / THUMBNAILS).mkdir(parents=True, exist_ok=True)
    wanted = {samples[entry["sample_id"]].image_key: root / entry["picture"] for entry in entries}
    for key, data in fetch_images_if_there(store, list(wanted)).items():
        wanted[key].write_bytes(data)
