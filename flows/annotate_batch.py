"""Put a round's samples into the annotators' queue, each exactly once whatever crashes."""

from __future__ import annotations

from prefect import flow

from curate.annotation.dispatch import plan_dispatch
from curate.annotation.models import AnnotationTask
from curate.catalog.models import Sample, SelectedRow, SelectionRole, TaskStatus
from flows._stage import stage_task
from flows._wiring import Services, services

WAVE = 50
"""Tasks sent in one request: small enough that a lost answer leaves little in doubt."""


@flow(name="annotate-batch")
def annotate_batch(round_number: int) -> int:
    """Send the round's tasks and return how many the queue now holds of it."""
    return send_tasks(round_number)


@stage_task("send tasks")
def send_tasks(round_number: int) -> int:
    """Reconcile the ledger with the backend, then send what it does not hold yet, in waves and in rank order.

    The ledger row exists before anything is sent. After a crash or a lost answer the backend is asked what it
    holds of the planned samples, so nothing is sent twice.
    """
    wired = services()
    wired.annotation.ensure_project()
    planned = [task.sample_id for task in wired.catalog.tasks(round_number=round_number, status=TaskStatus.PLANNED)]
    plan = plan_dispatch(planned, wired.annotation.find_tasks(planned) if planned else [])
    wired.annotation.delete_tasks(plan.delete_duplicates)
    wired.catalog.mark_sent(plan.adopt)
    questions = _questions(wired, round_number, set(plan.send))
    for start in range(0, len(questions), WAVE):
        sent = wired.annotation.send_tasks(questions[start : start + WAVE])
        wired.catalog.mark_sent({task.sample_id: task.backend_task_id for task in sent})
    _remove_late_twins(wired, round_number)
    return len(wired.catalog.tasks(round_number=round_number))


def _remove_late_twins(wired: Services, round_number: int) -> None:
    """Look once more: a request that we gave up on may have been carried out after all."""
    ledger = {task.sample_id: task.backend_task_id for task in wired.catalog.tasks(round_number=round_number)}
    found = wired.annotation.find_tasks(list(ledger))
    twins = [task for task in found if task.backend_task_id != ledger[task.sample_id] and not task.is_answered]
    wired.annotation.delete_tasks([task.backend_task_id for task in twins])


def _questions(wired: Services, round_number: int, sample_ids: set[str]) -> list[AnnotationTask]:
    chosen = [row for row in wired.catalog.selection(round_number) if row.sample_id in sample_ids]
    samples = {sample.sample_id: sample for sample in wired.catalog.samples(ids=[row.sample_id for row in chosen])}
    bucket = wired.settings.bucket.bucket
    return [_question(samples[row.sample_id], row, bucket) for row in sorted(chosen, key=lambda row: row.rank)]


def _question(sample: Sample, row: SelectedRow, bucket: str) -> AnnotationTask:
    return AnnotationTask(
        sample_id=sample.sample_id,
        image_url=f"s3://{bucket}/{sample.image_key}",
        rank=row.rank,
        width=sample.width,
        height=sample.height,
        pre_annotation=sample.prediction,
        blind=row.role is not SelectionRole.ACTIVE,
        context={
            "device": sample.device_id,
            "camera": sample.camera_id,
            "frame": str(sample.frame_index),
            "captured_at": sample.captured_at.isoformat(timespec="seconds"),
            "reasons": "; ".join(row.reasons),
        },
    )
