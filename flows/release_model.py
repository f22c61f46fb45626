"""Judge the candidate against the incumbent and, if it may, sign it and assign it to the fleet."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prefect import flow, get_run_logger

from curate.catalog.models import DatasetItem, ModelRow, ModelStatus, Split
from curate.contracts.release import ModelSpec
from curate.release.assignments import assign
from curate.release.gate import GateDecision, evaluate_first_release, evaluate_gate
from curate.release.manifest import ReleaseDraft
from curate.release.publish import publish_release
from flows._embedding import load_model
from flows._stage import stage_task
from flows._wiring import Services, services
from flows.train_candidate import load_items, require_dataset, require_model


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
        metrics={"parity_top1": model.metrics["parity_top1"]},
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
    devices = wired.catalog.devices()
    for device in devices:
        assign(
            wired.store,
            wired.settings.key_dir,
            device.device_id,
            incumbent.release_id if incumbent else None,
            wired.settings.capture_policy,
            now=datetime.now(UTC),
        )
    return len(devices)


def _decide(wired: Services, candidate: ModelRow, incumbent: ModelRow | None) -> GateDecision:
    dataset = require_dataset(wired, candidate.dataset_version)
    ratio = candidate.metrics["int8_bytes"] / candidate.metrics["float_bytes"]
    parity = candidate.metrics["parity_top1"]
    if incumbent is None:  # nothing is in the field yet that a random arm could have sampled
        items = [item for item in dataset.items if item.split is Split.VALIDATION]
    else:
        items = [item for item in dataset.items if item.split is Split.TEST and item.inclusion_probability]
    weights = np.array([1.0 / (item.inclusion_probability or 1.0) for item in items])
    bursts = [item.group for item in items]
    right = _correct(wired, candidate, items)
    if incumbent is None:
        return evaluate_first_release(right, weights, bursts, wired.settings.gate, int8_ratio=ratio, parity_top1=parity)
    return evaluate_gate(
        right,
        _correct(wired, incumbent, items),
        weights,
        bursts,
        wired.settings.gate,
        int8_ratio=ratio,
        parity_top1=parity,
    )


def _correct(wired: Services, model: ModelRow, items: list[DatasetItem]) -> NDArray[np.bool_]:
    """Whether the model's int8 file answers each item as the annotators did."""
    labelled = load_items(wired, items)
    answers = load_model(wired, model).predict(labelled.images).probabilities.argmax(axis=1)
    return np.asarray(answers == labelled.labels)
