"""From the catalog to the field estimate and to the drift watch, with a real catalog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from curate.catalog.models import (
    AnnotationRow,
    DatasetVersion,
    ModelRow,
    ModelStatus,
    RoundPhase,
    Sample,
    SelectedRow,
    SelectionRole,
)
from curate.contracts.capture import Arm, ArmOutcome, CaptureRecord
from curate.contracts.embedding import Embedding
from curate.contracts.prediction import ClassificationPrediction
from curate.contracts.telemetry import DeviceCounters
from curate.selection.drift.watch import DriftPolicy
from curate.selection.views import FrameViews, view_frames
from flows._field_report import TOO_FEW, describe_field
from flows._wiring import Services
from flows.estimate_field import estimate_round
from flows.watch_drift import drift_rows
from tests.catalog_builders import NOW, batch, capture, plan
from tests.fakes.wiring import local_services

CLASSES = 10
CAPTURES, AUDITS = 120, 60


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """A real catalog; nobody talks to Label Studio or a bucket."""
    policy = DriftPolicy(spacing_s=60, min_reference=40, false_alarms_per_month=1)
    with local_services(tmp_path, drift=policy) as services:
        yield services


def kept(number: int, name: str, values: NDArray[np.float64] | None = None, sure: float | None = None) -> CaptureRecord:
    """A random-arm capture, one a minute, predicted as class 0; by default the confidence grows with its number."""
    confidence = 0.4 + 0.5 * number / CAPTURES if sure is None else sure
    said = [confidence] + [(1 - confidence) / (CLASSES - 1)] * (CLASSES - 1)
    drawn = np.random.default_rng([number, len(name)]).standard_normal(8) if values is None else values
    return capture(
        number,
        name,
        captured_at=NOW - timedelta(minutes=CAPTURES - number),
        arms=[ArmOutcome(arm=Arm.RANDOM, probability=0.05, kept=True)],
        inclusion_probability=0.05,
        prediction=ClassificationPrediction(
            prediction_id=f"p-{name}-{number}",
            release_id="r1",
            probabilities=said,
            scores={"margin": 0.5},
            embedding=Embedding.from_raw(drawn.astype("<f2").tobytes()),
        ),
    )


def admit(wired: Services, device: str, captures: list[CaptureRecord], frames: int) -> None:
    """Take a device's captures between two reports of how many frames it saw."""
    for sequence, told, at, held in ((1, 0, -CAPTURES, []), (2, frames, 0, captures)):
        counters = DeviceCounters(frames_seen=told, frames_inferred=told, bytes_seen=1000 * told, bytes_uploaded=told)
        created = NOW + timedelta(minutes=at)
        record = batch(sequence, held, device=device, counters=counters, created_at=created)
        wired.catalog.admit_batch(plan(record))


def ask(wired: Services, sample_ids: Sequence[str], role: SelectionRole, right: set[str], first_rank: int = 1) -> None:
    """Have samples selected in round 1 and answered."""
    probability = 0.05 * AUDITS / (2 * CAPTURES) if role is SelectionRole.AUDIT else None
    rows = [
        SelectedRow(1, sample_id, first_rank + i, role, 0.0, probability, ()) for i, sample_id in enumerate(sample_ids)
    ]
    wired.catalog.save_selection(1, rows)
    names = wired.settings.labels.class_names
    wired.catalog.save_annotations(
        [
            AnnotationRow(f"a-{each}", each, "ann", {"class": names[0 if each in right else 1]}, False, NOW, NOW)
            for each in sample_ids
        ]
    )


@pytest.fixture
def audited(wired: Services) -> Services:
    """Two devices: one always right and seen three times as many frames, one always wrong."""
    wired.catalog.open_round(1, budget=80, seed=0, now=NOW)
    for device, name, frames in (("cam-1", "good", 3000), ("cam-2", "bad", 1000)):
        admit(wired, device, [kept(number, name) for number in range(CAPTURES)], frames)
    wired.catalog.advance_round(1, RoundPhase.SELECTED, {"selected_at": NOW.isoformat()}, now=NOW)
    right = {f"good-{number}" for number in range(CAPTURES)}
    chosen = [f"{name}-{number}" for number in range(0, CAPTURES, 4) for name in ("good", "bad")]
    ask(wired, chosen[:AUDITS], SelectionRole.AUDIT, right)
    return wired


def test_the_estimate_weighs_devices_by_their_frames(audited: Services) -> None:
    """As many audits on both devices, but the good one saw three quarters of the frames."""
    estimate = estimate_round(audited, 1)
    assert estimate is not None
    assert estimate["plain"]["estimate"] == pytest.approx(0.75, abs=0.01)
    assert estimate["ci95"][0] <= 0.75 <= estimate["ci95"][1]
    assert (estimate["n"], estimate["release"], estimate["unseen_share"]) == (AUDITS, "r1", 0.0)
    by_device = {each["name"]: each["estimate"]["estimate"] for each in estimate["slices"] if each["by"] == "device"}
    assert by_device["cam-1"] > 0.9
    assert by_device["cam-2"] < 0.1


def test_without_audits_there_is_no_estimate(wired: Services) -> None:
    """A round without answered audits has nothing to tell."""
    wired.catalog.open_round(1, budget=80, seed=0, now=NOW)
    assert estimate_round(wired, 1) is None


def test_the_report_says_what_is_too_few_to_tell(audited: Services) -> None:
    """Slices come with their intervals, small ones without a number, and bytes stand beside them."""
    estimate = estimate_round(audited, 1)
    assert estimate is not None
    estimate["slices"].append({"by": "device", "name": "cam-9", "captures": 3, "estimate": None, "told": False})
    told = describe_field(1, estimate, audited.catalog.device_counters().values())
    assert f"| device | cam-9 | 3 | 0 | {TOO_FEW} | 0.00 to 1.00 |" in told
    assert "Bytes saved: 99.9%. Uploaded so far: 0.0 of 4.0 MB" in told
    assert "Labels saved: not measured yet; `gleaner savings 1`" in told
    assert "Nothing was audited" in describe_field(2, None, [])


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.6, "Labels saved against random: 40% (95 %: 25% to 52%)"),
        (1.1, "Labels saved against random: -10% (95 %: 25% to 52%)"),
        (None, "Labels saved: too few to tell. Our largest model is still worse than the control."),
    ],
)
def test_the_report_says_what_choosing_saved(share: float | None, words: str) -> None:
    """A measured saving stands there with its interval, a loss as one, and no number where none can be told."""
    interval = None if share is None else [0.48, 0.75]
    why = "our largest model is still worse than the control"
    found = {"share": share, "ci95": interval, "control_labels": 120, "why": why, "frames": 85}
    assert words in describe_field(3, None, [], found)


def see_as_devices_did(_wired: Services, _model: ModelRow, samples: Sequence[Sample]) -> FrameViews:
    """What the devices themselves answered."""
    predictions = [sample.prediction for sample in samples if sample.prediction is not None]
    embeddings = np.array([sample.embedding for sample in samples], np.float32)
    return view_frames("classification", predictions, embeddings, [(sample.height, sample.width) for sample in samples])


def release(wired: Services, minutes_ago: int) -> None:
    """Release a model that was made so long ago."""
    wired.catalog.open_round(1, budget=80, seed=0, now=NOW)
    item = replace(_MODEL, created_at=NOW - timedelta(minutes=minutes_ago))
    wired.catalog.save_dataset_version(_DATASET)
    wired.catalog.save_model(item)


def test_a_changed_camera_is_told_from_a_still_one(wired: Services) -> None:
    """The camera whose embeddings moved after the release is named first, with the time; the other is not."""
    release(wired, minutes_ago=70)
    rng = np.random.default_rng(0)
    elsewhere = np.array([6.0, -6.0] * 4)
    still = [kept(number, "still", rng.normal(size=8) + 3, 0.5) for number in range(CAPTURES)]
    moved = [kept(n, "moved", rng.normal(size=8) + 3 + elsewhere * (n > 60), 0.5) for n in range(CAPTURES)]
    admit(wired, "cam-1", still, 1000)
    admit(wired, "cam-2", moved, 1000)
    first, second = drift_rows(wired, see_as_devices_did)
    assert first["camera"] == "cam-2/front"
    assert first["changed since"] is not None
    assert second["changed since"] is None


def test_taught_captures_do_not_count(wired: Services) -> None:
    """What a model was taught with looks more familiar and is left out of the comparison."""
    release(wired, minutes_ago=70)
    admit(wired, "cam-1", [kept(number, "one") for number in range(CAPTURES)], 1000)
    before = drift_rows(wired, see_as_devices_did)[0]
    ask(wired, [f"one-{number}" for number in range(100, 110)], SelectionRole.ACTIVE, set())
    assert drift_rows(wired, see_as_devices_did)[0]["watched"] == before["watched"] - 10


def test_before_the_first_release_there_is_nothing_to_watch(wired: Services) -> None:
    """Without a released model no camera is compared."""
    assert drift_rows(wired, see_as_devices_did) == []


_DATASET = DatasetVersion("v1", 1, NOW, ())
_MODEL = ModelRow("m1", 1, "v1", NOW, ModelStatus.RELEASED, {}, {}, release_id="r1", release_number=1)
