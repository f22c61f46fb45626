"""Tell which cameras' worlds have changed since the model that runs there was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from curate.catalog.models import ModelRow, Sample, SelectionRole
from curate.selection.drift.watch import DriftFinding, Sights, pick_representatives, split_reference, watch_camera
from curate.selection.uncertainty import rate_uncertainty
from curate.selection.views import FrameViews
from flows._stage import stage_task
from flows._views import see_samples
from flows._wiring import Services, services


@flow(name="watch-drift")
def watch_drift() -> list[dict[str, Any]]:
    """Watch every camera, publish how each stands, warn of those that changed, and return one row a camera."""
    rows = compare_cameras()
    create_table_artifact(key="drift", table=rows, description="Cameras: has their world changed since the release?")
    for row in rows:
        if row["changed since"]:
            get_run_logger().warning("%s: its world has changed since %s", row["camera"], row["changed since"])
    return rows


@stage_task("compare cameras")
def compare_cameras() -> list[dict[str, Any]]:
    """Compare what each camera shows with what it showed before the release."""
    return drift_rows(services())


Eyes = Callable[[Services, ModelRow, Sequence[Sample]], FrameViews]


def drift_rows(wired: Services, see: Eyes = see_samples) -> list[dict[str, Any]]:
    """One row a camera, those that changed first; empty before the first release.

    All captures are seen through the released model: what an earlier one answered is answered anew.
    """
    incumbent = wired.catalog.released_model()
    if incumbent is None:
        return []
    found = [(name, _watch(wired, incumbent, samples, see)) for name, samples in _by_camera(wired, incumbent).items()]
    rows = [_row(name, finding) for name, finding in found]
    return sorted(rows, key=lambda row: (row["changed since"] is None, row["camera"]))


def _by_camera(wired: Services, incumbent: ModelRow) -> dict[str, list[Sample]]:
    """What the random arm kept of each camera, one capture a block of time; nothing that a model was taught with.

    A model is surer of what it has learned, which would look like a change.
    """
    policy = wired.settings.drift
    since = incumbent.created_at - timedelta(days=policy.reference_days)
    taught = {row.sample_id for row in wired.catalog.selections() if row.role is not SelectionRole.AUDIT}
    cameras: dict[str, list[Sample]] = {}
    for sample in wired.catalog.samples(since=since, random_arm_only=True):
        if sample.sample_id not in taught:
            cameras.setdefault(f"{sample.device_id}/{sample.camera_id}", []).append(sample)
    return {
        name: [samples[row] for row in pick_representatives([each.captured_at for each in samples], policy.spacing_s)]
        for name, samples in sorted(cameras.items())
    }


def _watch(wired: Services, incumbent: ModelRow, samples: Sequence[Sample], see: Eyes) -> DriftFinding:
    policy = wired.settings.drift
    at = tuple(sample.captured_at for sample in samples)
    reference = split_reference(at, incumbent.created_at, policy)
    views = see(wired, incumbent, samples)
    kind = wired.settings.selection.uncertainty
    scores = rate_uncertainty(kind, views.probabilities, views.uncertainty)
    seed = (incumbent.release_number or 0) + wired.settings.round.seed
    return watch_camera(Sights(views.embeddings, np.asarray(scores, np.float64), at), reference, policy, seed)


def _row(name: str, found: DriftFinding) -> dict[str, Any]:
    return {
        "camera": name,
        "changed since": None if found.since is None else found.since.isoformat(timespec="seconds"),
        "evidence": round(min(found.evidence, 1.0), 3),
        "watched": found.watched,
        "reference": found.reference,
        "note": None if found.told else "too few captures to say what is normal",
    }
