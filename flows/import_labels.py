"""Bring in pictures that are labelled already: what the very first model is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger

from curate.catalog.images import encode_jpeg, load_image
from curate.catalog.models import IMPORTED, AnnotationRow, RoundPhase, Sample, SampleStatus
from curate.catalog.rounds import has_reached
from curate.contracts.paths import capture_key
from curate.errors import CatalogError
from curate.interchange.sources import LabelledPicture, read_source
from flows._stage import stage_task
from flows._wiring import Services, services


@flow(name="import-labels")
def import_labels(folder: Path) -> int:
    """Import labelled pictures as samples of round 0; return how many there are.

    What the folder looks like depends on the kind of label: see `gleaner import --help`. Importing again adds what is
    new. What cannot be used is left out with a warning.
    """
    return import_folder(folder)


@stage_task("import folder")
def import_folder(folder: Path) -> int:
    """Upload the pictures, then write samples, labels and round 0; each step may be repeated."""
    wired = services()
    labels = wired.settings.labels
    source = read_source(labels.kind, folder, labels.class_names)
    for problem in source.problems:
        get_run_logger().warning("left out %s", problem)
    now = datetime.now(UTC)
    found = _distinct([row for row in (_import(wired, each, now) for each in source.pictures) if row is not None])
    if not found:
        raise CatalogError(
            f"no labelled pictures under {folder}", hint="`gleaner import --help` shows what is expected"
        )
    wired.catalog.add_samples([sample for sample, _ in found])
    wired.catalog.save_annotations([label for _, label in found])
    first = wired.catalog.open_round(0, budget=len(found), seed=wired.settings.round.seed, now=now)
    if not has_reached(first.phase, RoundPhase.TRAINED):  # later imports wait for the next round's dataset version
        facts = {"answered": len(found), "imported": len(found)}
        wired.catalog.advance_round(0, RoundPhase.ANNOTATED, facts, now=now)
    return len(found)


def _distinct(rows: Sequence[tuple[Sample, AnnotationRow]]) -> list[tuple[Sample, AnnotationRow]]:
    """One sample for the same picture under two names; of two labels the first, with a warning."""
    kept: dict[str, tuple[Sample, AnnotationRow]] = {}
    for sample, row in rows:
        known = kept.setdefault(sample.sample_id, (sample, row))
        if known[1].label != row.label:
            get_run_logger().warning("%s comes twice with different labels; the first holds", sample.sample_id)
    return list(kept.values())


def _import(wired: Services, picture: LabelledPicture, now: datetime) -> tuple[Sample, AnnotationRow] | None:
    try:
        image = load_image(picture.path)
    except CatalogError as exc:
        get_run_logger().warning("left out %s: %s", picture.path, exc)
        return None
    data = encode_jpeg(image)
    digest = hashlib.sha256(data).hexdigest()
    key = capture_key(IMPORTED, digest)
    if wired.store.size(key) != len(data):
        wired.store.put(key, data, content_type="image/jpeg")
    sample = _sample(picture.path, key, digest, len(data), (image.shape[1], image.shape[0]), now)
    return sample, _label(sample, picture.label, now)


def _sample(path: Path, key: str, digest: str, size_bytes: int, size: tuple[int, int], now: datetime) -> Sample:
    sample_id = f"{IMPORTED}-{digest[:32]}"
    return Sample(
        sample_id=sample_id,
        device_id=IMPORTED,
        camera_id=sample_id,  # no camera is known, so each picture is a group of its own
        frame_index=0,
        captured_at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        boot_id=IMPORTED,
        batch_sequence=0,
        image_key=key,
        image_sha256=digest,
        image_bytes=size_bytes,
        width=size[0],
        height=size[1],
        release_id=None,
        prediction=None,
        embedding=None,
        arms=(),
        random_probability=None,
        inclusion_probability=1.0,
        reasons=("imported with its label",),
        status=SampleStatus.LABELLED,
        ingested_at=now,
    )


def _label(sample: Sample, label: dict[str, Any], now: datetime) -> AnnotationRow:
    return AnnotationRow(
        annotation_id=sample.sample_id,
        sample_id=sample.sample_id,
        annotator=IMPORTED,
        label=label,
        was_cancelled=False,
        created_at=now,
        updated_at=now,
    )
