"""The flow process: registers every flow as a deployment with its schedule, and runs what is due."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from prefect import Flow, serve
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType

from curate.settings import ScheduleSettings, load_settings
from flows._wiring import DEPLOYMENT
from flows.collect_annotations import collect_annotations
from flows.curation_round import curation_round
from flows.import_labels import import_labels
from flows.ingest_captures import ingest_captures
from flows.measure_savings import measure_savings
from flows.supervise_rollout import supervise_rollout
from flows.watch_drift import watch_drift

PARALLEL_RUNS = 4


def serve_deployments() -> None:
    """Register the deployments and serve them until stopped."""
    serve(*plan_deployments(load_settings().schedule), limit=PARALLEL_RUNS, print_starting_message=False)


def plan_deployments(schedule: ScheduleSettings) -> list[RunnerDeployment]:
    """Return every flow's deployment, with its schedule if it has one."""
    every: tuple[tuple[Flow[Any, Any], float | None], ...] = (
        (ingest_captures, schedule.ingest_s),
        (collect_annotations, schedule.collect_s),
        (supervise_rollout, schedule.supervise_s),
        (watch_drift, schedule.drift_s),
        (measure_savings, schedule.savings_s),
        (curation_round, schedule.round_s),
        (import_labels, None),
    )
    return [_deployment(flow, every_s) for flow, every_s in every]


def _deployment(flow: Flow[Any, Any], every_s: float | None) -> RunnerDeployment:
    deployment = flow.to_deployment(
        DEPLOYMENT,
        interval=timedelta(seconds=every_s) if every_s else None,
        description=flow.description,
        tags=["gleaner"],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast(RunnerDeployment, deployment)  # only inside an event loop is it a coroutine


if __name__ == "__main__":
    serve_deployments()
