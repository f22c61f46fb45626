"""Bring the annotators' answers into the catalog, by polling from a watermark."""

from __future__ import annotations

from datetime import datetime

from prefect import flow

from curate.annotation.models import BackendAnnotation
from curate.catalog.models import AnnotationRow
from flows._stage import stage_task
from flows._wiring import services

WATERMARK = "annotations"


@flow(name="collect-annotations")
def collect_annotations() -> int:
    """Collect what was answered since the last time and return how many answers came."""
    return collect_answers()


@stage_task("collect answers")
def collect_answers() -> int:
    """Fetch, save, then move the watermark: a crash between only means collecting the same answers again."""
    wired = services()
    reached = wired.catalog.watermark(WATERMARK)
    collected = wired.annotation.collect(datetime.fromisoformat(reached) if reached else None)
    wired.catalog.save_annotations([_row(answer) for answer in collected.annotations])
    wired.catalog.set_watermark(WATERMARK, collected.watermark.isoformat())
    return len(collected.annotations)


def _row(answer: BackendAnnotation) -> AnnotationRow:
    return AnnotationRow(
        annotation_id=answer.annotation_id,
        sample_id=answer.sample_id,
        annotator=answer.annotator,
        label=answer.label,
        was_cancelled=answer.was_cancelled,
        created_at=answer.created_at,
        updated_at=answer.updated_at,
        lead_time_s=answer.lead_time_s,
    )
