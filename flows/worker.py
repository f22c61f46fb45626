"""The flow process: registers every flow as a deployment with its schedule, and runs what is due."""

from __future__ import annotations

from datetime import timedelta

from prefect import serve

from curate.settings import load_settings
from flows.collect_annotations import collect_annotations
from flows.curation_round import curation_round
from flows.import_labels import import_labels
from flows.ingest_captures import ingest_captures
from flows.supervise_rollout import supervise_rollout

DEPLOYMENT = "fleet"
"""Every flow has one deployment of this name: `curation-round/fleet`."""


def serve_deployments() -> None:
    """Register the deployments and serve them until stopped. One run of each flow at a time."""
    schedule = load_settings().schedule
    serve(
        ingest_captures.to_deployment(
            DEPLOYMENT, interval=timedelta(seconds=schedule.ingest_s), concurrency_limit=1, tags=["gleaner"]
        ),
        collect_annotations.to_deployment(
            DEPLOYMENT, interval=timedelta(seconds=schedule.collect_s), concurrency_limit=1, tags=["gleaner"]
        ),
        supervise_rollout.to_deployment(
            DEPLOYMENT, interval=timedelta(seconds=schedule.supervise_s), concurrency_limit=1, tags=["gleaner"]
        ),
        curation_round.to_deployment(
            DEPLOYMENT, interval=timedelta(seconds=schedule.round_s), concurrency_limit=1, tags=["gleaner"]
        ),
        import_labels.to_deployment(DEPLOYMENT, tags=["gleaner"]),
        limit=4,
        print_starting_message=False,
    )


if __name__ == "__main__":
    serve_deployments()
