"""Judge the candidate against the incumbent and, if it may, sign it and assign it to the fleet."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger

from curate.catalog.models import ModelStatus
from curate.contracts.release import ModelSpec
from curate.release.assignments import assign
from curate.release.manifest import ReleaseDraft
from curate.release.publish import publish_release
from flows._fleet_sketch import sketch_for
from flows._gate import decide
from flows._stage import stage_task
from flows._wiring import services
from flows.train_candidate import require_model


@flow(name="release-model")
def release_model(model_id: str) -> bool:
    """Decide, and publish if promoted; return whether it was."""
    decision = judge(model_id)
    if not decision["promote"]:
        get_run_logger().warning("%s is refused: %s", model_id, "; ".join(decision["reasons"]))
        return False
    publish(model_id)
    assign_fleet()
    return True


@stage_task("gate")
def judge(model_id: str) -> dict[str, Any]:
    """Compare candidate and incumbent on labels the selection did not bias, and keep the decision."""
    wired = services()
    candidate = require_model(wired, model_id)
    if candidate.gate is not None:
        return candidate.gate
    decision = asdict(decide(wired, candidate))
    status = ModelStatus.CANDIDATE if decision["promote"] else ModelStatus.REFUSED
    wired.catalog.update_model(model_id, gate=decision, status=status)
    return decision


@stage_task("sign and publish")
def publish(model_id: str) -> str:
    """Put the signed release into the bucket; doing it again changes nothing."""
    wired = services()
    model = require_model(wired, model_id)
    spec = wired.settings.labels
    release_id = model.release_id or f"r{model.round_number:04d}-{model.dataset_version[:6]}"
    draft = ReleaseDraft(
        release_id=release_id,
        model=ModelSpec(
            kind=spec.kind,
            class_names=list(spec.class_names),
            height=spec.height,
            width=spec.width,
            embedding_dim=model.metrics["embedding_dim"],
        ),
        dataset_version=model.dataset_version,
        metrics={name: value for name, value in model.metrics.items() if name.startswith("parity_")},
    )
    files = {role: wired.store.get(model.artifacts[role]) for role in ("int8", "float", "golden")}
    manifest = publish_release(
        wired.store, wired.settings.key_dir, draft, files, datetime.now(UTC), expiry=wired.settings.expiry
    )
    wired.catalog.update_model(
        model_id, status=ModelStatus.RELEASED, release_id=manifest.release_id, release_number=manifest.number
    )
    return manifest.release_id


@stage_task("assign to the fleet")
def assign_fleet() -> int:
    """Write every device's signed assignment; unchanged ones are left alone. Return how many devices there are."""
    wired = services()
    incumbent = wired.catalog.released_model()
    release_id = incumbent.release_id if incumbent else None
    sketch = sketch_for(wired, release_id)
    devices = wired.catalog.devices()
    for device in devices:
        assign(
            wired.store,
            wired.settings.key_dir,
            device.device_id,
            release_id,
            wired.settings.capture_policy,
            settings=wired.settings.device_settings,
            fleet_sketch=sketch,
            now=datetime.now(UTC),
        )
    return len(devices)
