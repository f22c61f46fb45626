"""Records, pictures and samples for tests of the catalog: small, valid, and each field can be replaced."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from curate.catalog.ingest import AdmissionPlan, ImageFacts, inspect_image, plan_admission, read_incoming
from curate.catalog.models import Sample
from curate.contracts.capture import Arm, ArmOutcome, BatchRecord, CaptureRecord, ImageRef
from curate.contracts.embedding import Embedding
from curate.contracts.feedback import Feedback, Verdict
from curate.contracts.paths import capture_key, inbox_key
from curate.contracts.prediction import ClassificationPrediction, DetectedBox, DetectionPrediction
from curate.contracts.telemetry import DeviceCounters

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WIDTH, HEIGHT = 24, 16


@cache
def jpeg(number: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A picture that differs with `number`."""
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def embedding(number: int, dim: int = 8) -> Embedding:
    """`dim` values that float16 holds."""
    values = np.random.default_rng(number).standard_normal(dim).astype("<f2")
    return Embedding.from_raw(values.tobytes())


def capture(number: int, name: str = "c", **changes: Any) -> CaptureRecord:
    """A classification capture kept by the random and the uncertain arm."""
    data = jpeg(number)
    fields: dict[str, Any] = {
        "capture_id": f"{name}-{number}",
        "camera_id": "front",
        "frame_index": number,
        "captured_at": NOW - timedelta(hours=2) + timedelta(seconds=number),
        "boot_id": "boot1",
        "monotonic_s": 1.5 * number,
        "image": ImageRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), width=WIDTH, height=HEIGHT),
        "prediction": ClassificationPrediction(
            prediction_id=f"p-{name}-{number}",
            release_id="r1",
            probabilities=[0.7, 0.2, 0.1],
            scores={"margin": 0.5},
            embedding=embedding(number),
        ),
        "arms": [
            ArmOutcome(arm=Arm.RANDOM, probability=0.02, kept=number % 2 == 0),
            ArmOutcome(arm=Arm.UNCERTAIN, probability=1.0, kept=True),
        ],
        "inclusion_probability": 1.0,
        "reasons": ["margin 0.50 above 0.40"],
    }
    return CaptureRecord(**{**fields, **changes})


def detection(number: int) -> DetectionPrediction:
    """Two boxes."""
    boxes = [
        DetectedBox(
            box_id=f"b{i}", x_min=1, y_min=2, x_max=9.5, y_max=8, probabilities=[0.9, 0.1], embedding=embedding(i)
        )
        for i in range(2)
    ]
    return DetectionPrediction(
        prediction_id=f"p-{number}", release_id="r2", boxes=boxes, embedding=embedding(number), scores={"entropy": 1.25}
    )


def feedback(number: int, prediction_id: str, **changes: Any) -> Feedback:
    """A dismissal."""
    fields: dict[str, Any] = {
        "feedback_id": f"f-{number}",
        "prediction_id": prediction_id,
        "verdict": Verdict.DISMISSED,
        "received_at": NOW - timedelta(hours=1) + timedelta(seconds=number),
        "frame_available": True,
    }
    return Feedback(**{**fields, **changes})


def batch(
    sequence: int = 1, captures: list[CaptureRecord] | None = None, *, device: str = "cam-1", **changes: Any
) -> BatchRecord:
    """A batch of `captures`."""
    fields: dict[str, Any] = {
        "device_id": device,
        "boot_id": "boot1",
        "sequence": sequence,
        "created_at": NOW - timedelta(minutes=30),
        "captures": captures or [],
        "counters": DeviceCounters(frames_seen=100 * sequence, frames_inferred=100 * sequence),
    }
    return BatchRecord(**{**fields, **changes})


def key_of(record: BatchRecord) -> str:
    """Where the record lies."""
    return inbox_key(record.device_id, record.boot_id, record.sequence)


def facts_of(record: BatchRecord) -> dict[str, ImageFacts]:
    """Facts of the pictures a device would have uploaded: `jpeg(frame_index)` of each capture."""
    images = (inspect_image(jpeg(c.frame_index)) for c in record.captures)
    return {capture_key(record.device_id, facts.sha256): facts for facts in images}


def plan(record: BatchRecord, *, now: datetime = NOW) -> AdmissionPlan:
    """The plan for a record whose pictures all lie there."""
    return plan_admission(read_incoming(key_of(record), record.to_bytes()), facts_of(record), now=now)


def samples(count: int, *, device: str = "cam-1", name: str = "c") -> list[Sample]:
    """Admitted samples that never saw a catalog."""
    return list(plan(batch(captures=[capture(number, name) for number in range(count)], device=device)).samples)


def imported(number: int) -> Sample:
    """A sample that no device sent."""
    return replace(
        samples(1)[0],
        sample_id=f"imported-{number}",
        device_id="import",
        release_id=None,
        prediction=None,
        embedding=None,
        random_probability=None,
        arms=(),
    )
