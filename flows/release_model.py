"""Judge the candidate against the incumbent and, if it may, sign it and assign it to the fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger

from curate.catalog.models import DatasetItem, ModelRow, ModelStatus, Split
from curate.contracts.release import ModelSpec
from curate.metrics.evidence import Evidence
from curate.metrics.kinds import judge_predictions
from curate.release.assignments import assign
from curate.release.gate import GateDecision, judge_candidate
from curate.release.manifest import ReleaseDraft
from curate.release.publish import publish_release
from flows._fleet_sketch import sketch_for
from flows._stage import stage_task
from flows._views import load_model, predict_pictured
from flows._wiring import Services, services
from flows.train_candidate import require_dataset, require_model

CANDIDATE = "candidate"


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
    decision = asdict(_decide(wired, candidate, wired.catalog.released_model()))
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


def _decide(wired: Services, candidate: ModelRow, incumbent: ModelRow | None) -> GateDecision:
    dataset = require_dataset(wired, candidate.dataset_version)
    if incumbent is None:  # nothing is in the field yet that a random arm could have sampled
        items = [item for item in dataset.items if item.split is Split.VALIDATION]
    else:
        items = [item for item in dataset.items if item.split is Split.TEST and item.inclusion_probability]
    return judge_candidate(
        _evidence(wired, candidate, items),
        None if incumbent is None else _evidence(wired, incumbent, items),
        [1.0 / (item.inclusion_probability or 1.0) for item in items],
        [item.group for item in items],
        wired.settings.gate,
        int8_ratio=candidate.metrics["int8_bytes"] / candidate.metrics["float_bytes"],
        parity=_number(candidate.metrics["parity"]),
    )


def _number(stored: float | None) -> float:
    """JSON knows no NaN: the catalog returns None for it."""
    return float("nan") if stored is None else stored


def _evidence(wired: Services, model: ModelRow, items: Sequence[DatasetItem]) -> Evidence:
    """Hold what the model's int8 file answers to each item against what people settled on."""
    labels = wired.settings.labels
    views = predict_pictured(wired, load_model(wired, model), model.release_id or CANDIDATE, items)
    return judge_predictions(labels.kind, views.predictions, [item.label for item in items], labels.class_names)
