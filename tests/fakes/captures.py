"""Capture records and feedback for tests of the agent: small, valid, and told apart by a number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from curate.contracts.capture import Arm, ArmOutcome, CaptureRecord, ImageRef
from curate.contracts.feedback import Feedback, Verdict
from curate.contracts.prediction import ClassificationPrediction
from curate.contracts.telemetry import DeviceCounters

NOW = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)
DEVICE = "cam-1"


def make_jpeg(number: int, size_bytes: int = 300) -> bytes:
    """Bytes that stand for an image; different for each number."""
    return (f"image {number} ".encode() * (size_bytes // 8 + 1))[:size_bytes]


def make_capture(number: int, jpeg: bytes, arms: Sequence[Arm] = (Arm.UNCERTAIN,)) -> CaptureRecord:
    """A record of that image, kept by these arms."""
    return CaptureRecord(
        capture_id=f"capture-{number}",
        camera_id="lens",
        frame_index=number,
        captured_at=NOW,
        boot_id="boot",
        monotonic_s=float(number),
        image=ImageRef(sha256=hashlib.sha256(jpeg).hexdigest(), size_bytes=len(jpeg), width=28, height=28),
        prediction=ClassificationPrediction(
            prediction_id=f"prediction-{number}", release_id="r1", probabilities=[0.4, 0.6]
        ),
        arms=[ArmOutcome(arm=arm, probability=0.5, kept=arm in arms) for arm in Arm],
        inclusion_probability=0.5,
    )


def make_feedback(number: int) -> Feedback:
    """A dismissal of a prediction."""
    return Feedback(
        feedback_id=f"feedback-{number}",
        prediction_id=f"prediction-{number}",
        verdict=Verdict.DISMISSED,
        received_at=NOW,
        frame_available=True,
    )


def broken_laws(counters: DeviceCounters) -> list[str]:
    """Return the laws of the ledger that do not hold."""
    laws = {
        "seen": counters.frames_seen == counters.frames_inferred + sum(counters.frames_skipped.values()),
        "selected": counters.selected == counters.spooled + sum(counters.dropped.values()),
        "spooled": counters.spooled == counters.acknowledged + counters.pending + counters.evicted,
        "feedback": counters.feedback_spooled
        == counters.feedback_acknowledged + counters.feedback_pending + sum(counters.feedback_given_up.values()),
    }
    return [name for name, holds in laws.items() if not holds]
