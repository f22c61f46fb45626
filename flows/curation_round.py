"""One turn of the loop: every stage in order, from wherever an earlier run stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger

from curate.catalog.models import Round, RoundPhase, SelectedRow, SelectionRole, TaskStatus
from curate.catalog.rounds import has_reached, next_round_number
from flows._report import publish_round_artifacts
from flows._stage import stage_task
from flows._wiring import services
from flows.annotate_batch import annotate_batch
from flows.collect_annotations import collect_annotations
from flows.compress_candidate import compress_candidate
from flows.estimate_field import estimate_field
from flows.explain import POLICY_FACT
from flows.ingest_captures import ingest_captures
from flows.release_model import release_model
from flows.second_look import second_look
from flows.select_samples import require_round, select_samples
from flows.train_candidate import train_candidate


@flow(name="curation-round")
def curation_round(round_number: int | None = None) -> str:
    """Turn the loop once. Without a number the open round goes on, or the next one begins.

    Returns the phase reached: `annotated` or earlier means that people are still answering, and the next run goes on.
    """
    # A second run beside this one would send and publish twice.
    with services().catalog.exclusive("curation-round"):
        return turn(round_number)


def turn(round_number: int | None) -> str:
    """Go through the stages that are not behind the round yet and return the phase reached."""
    number = open_round(round_number)
    for reached, stage in STAGES:
        if has_reached(_round(number).phase, reached):
            continue
        facts = stage(number)
        if facts is None:
            get_run_logger().info("round %d waits for annotators", number)
            break
        advance(number, reached, facts)
    return str(_round(number).phase)


@stage_task("open round")
def open_round(round_number: int | None) -> int:
    """Open the round, or find the one that is open."""
    wired = services()
    number = next_round_number(wired.catalog.rounds()) if round_number is None else round_number
    settings = wired.settings.round
    wired.catalog.open_round(number, budget=settings.budget, seed=settings.seed, now=datetime.now(UTC))
    return number


@stage_task("note progress")
def advance(number: int, phase: RoundPhase, facts: dict[str, Any]) -> None:
    """Write the phase and what its stage learned into the catalog."""
    services().catalog.advance_round(number, phase, facts, now=datetime.now(UTC))


def _round(number: int) -> Round:
    return require_round(services(), number)


def _select(number: int) -> dict[str, Any]:
    ingest_captures()
    policy = services().settings.selection.model_dump(mode="json")
    return {"selected": select_samples(number), "selected_at": datetime.now(UTC).isoformat(), POLICY_FACT: policy}


def _send(number: int) -> dict[str, Any]:
    return {"tasks": annotate_batch(number)}


def _await_answers(number: int) -> dict[str, Any] | None:
    answered = _answered(number, lambda row: row.role is not SelectionRole.CONTESTED)
    return None if answered is None else {"answered": answered, "field_accuracy": estimate_field(number)}


def _answered(number: int, counts: Callable[[SelectedRow], bool]) -> int | None:
    """Wait until enough of the tasks that count are answered; return how many are, None where time ran out."""
    settings = services().settings.round
    deadline = time.monotonic() + settings.wait_for_labels_s
    asked = {row.sample_id for row in services().catalog.selection(number) if counts(row)}
    while True:
        collect_annotations()
        tasks = [task for task in services().catalog.tasks(round_number=number) if task.sample_id in asked]
        answered = sum(task.status in (TaskStatus.COMPLETED, TaskStatus.SKIPPED) for task in tasks)
        if answered >= settings.label_quorum * len(tasks):
            return answered
        if time.monotonic() >= deadline:
            return None
        time.sleep(settings.poll_interval_s)


def _train(number: int) -> dict[str, Any]:
    return {"model_id": train_candidate(number)}


def _compress(number: int) -> dict[str, Any]:
    return {"compression": compress_candidate(_round(number).facts["model_id"])}


def _settle(number: int) -> dict[str, Any] | None:
    asked = second_look(_round(number).facts["model_id"])
    answered = _answered(number, lambda row: row.role is SelectionRole.CONTESTED) if asked else 0
    return None if answered is None else {"contested": answered}


def _release(number: int) -> dict[str, Any]:
    return {"promoted": release_model(_round(number).facts["model_id"])}


def _close(number: int) -> dict[str, Any]:
    publish_round_artifacts(number)
    return {}


STAGES: tuple[tuple[RoundPhase, Callable[[int], dict[str, Any] | None]], ...] = (
    (RoundPhase.SELECTED, _select),
    (RoundPhase.SENT, _send),
    (RoundPhase.ANNOTATED, _await_answers),
    (RoundPhase.TRAINED, _train),
    (RoundPhase.COMPRESSED, _compress),
    (RoundPhase.SETTLED, _settle),
    (RoundPhase.DECIDED, _release),
    (RoundPhase.CLOSED, _close),
)
