"""Bring in pictures that are labelled already: what the very first model is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, get_run_logger

from curate.catalog.images import encode_jpeg, load_image
from curate.catalog.models import AnnotationRow, RoundPhase, Sample, SampleStatus
from curate.catalog.rounds import has_reached
from curate.contracts.paths import capture_key
from curate.errors import CatalogError
from flows._stage import stage_task
from flows._wiring import Services, services

IMPORTED = "imported"
"""The device id of samples that no device captured."""
PICTURES = {".jpg", ".jpeg", ".png"}


@flow(name="import-labels")
def import_labels(folder: Path) -> int:
    """Import `folder/<class>/<picture>` as labelled samples of round 0; return how many there are.

    Importing again adds what is new. A picture that cannot be read is left out with a warning.
    """
    return import_folder(folder)


@stage_task("import folder")
def import_folder(folder: Path) -> int:
    """Upload the pictures, then write samples, labels and round 0; each step may be repeated."""
    wired = services()
    names = wired.settings.labels.class_names
    unknown = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in names)
    if unknown:
        raise CatalogError(f"folders that are no class: {unknown}", hint=f"the classes are {list(names)}")
    now = datetime.now(UTC)
    rows = [_import(wired, path, now) for path in _pictures(folder, names)]
    found = [row for row in rows if row is not None]
    if not found:
        raise CatalogError(f"no pictures under {folder}", hint="expected <class>/<picture>.jpg or .png")
    wired.catalog.add_samples([sample for sample, _ in found])
    wired.catalog.save_annotations([label for _, label in found])
    first = wired.catalog.open_round(0, budget=len(found), seed=wired.settings.round.seed, now=now)
    if not has_reached(first.phase, RoundPhase.TRAINED):  # later imports wait for the next round's dataset version
        facts = {"answered": len(found), "imported": len(found)}
        wired.catalog.advance_round(0, RoundPhase.ANNOTATED, facts, now=now)
    return len(found)


def _pictures(folder: Path, class_names: tuple[str, ...]) -> Iterator[Path]:
    for name in class_names:
        if (folder / name).is_dir():
            yield from sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in PICTURES)


def _import(wired: Services, path: Path, now: datetime) -> tuple[Sample, AnnotationRow] | None:
    try:
        image = load_image(path)
    except CatalogError as exc:
        get_run_logger().warning("left out %s: %s", path, exc)
        return None
    data = encode_jpeg(image)
    digest = hashlib.sha256(data).hexdigest()
    key = capture_key(IMPORTED, digest)
    if wired.store.size(key) != len(data):
        wired.store.put(key, data, content_type="image/jpeg")
    sample = _sample(path, key, digest, len(data), (image.shape[1], image.shape[0]), now)
    return sample, _label(sample, path.parent.name, now)


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


def _label(sample: Sample, name: str, now: datetime) -> AnnotationRow:
    return AnnotationRow(
        annotation_id=sample.sample_id,
        sample_id=sample.sample_id,
        annotator=IMPORTED,
        label={"class": name},
        was_cancelled=False,
        created_at=now,
        updated_at=now,
    )
