"""Driving deployments from outside: trigger a run, wait for it, and see it through kills of the flow process."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from curate.errors import Error
from flows._wiring import DEPLOYMENT

log = logging.getLogger(__name__)

_POLL_S = 0.5
_LIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


class RunFailedError(Error):
    """A flow run of the demo failed for good."""


class FlowRuns:
    """The runs of one Prefect server, named explicitly: the environment may name another."""

    def __init__(self, api_url: str) -> None:
        self._api_url = api_url

    def run_to_end(
        self, flow_name: str, parameters: dict[str, Any] | None = None, *, timeout_s: float, attempts: int = 6
    ) -> None:
        """Run `flow_name`'s deployment until one run completes; a run that crashed is followed by another.

        Raises:
            RunFailedError: no attempt completed.
        """
        deadline = time.monotonic() + timeout_s
        last = "not started"
        for _ in range(attempts):
            with self._client() as client:
                run = _wait(client, _trigger(client, flow_name, parameters or {}), deadline)
            if run.state_type is StateType.COMPLETED:
                return
            last = f"{run.state_name}: {run.state.message if run.state else ''}"
            log.warning("%s ended as %s", flow_name, last)
            if time.monotonic() > deadline:
                break
        raise RunFailedError(f"{flow_name} did not complete: {last}", hint="see the run in the Prefect UI")

    def crash_orphans(self) -> None:
        """Mark the runs that a killed flow process left behind as crashed, so that nobody waits for them."""
        with self._client() as client:
            for run in client.read_flow_runs(flow_run_filter=_in_states(_LIVE)):
                client.set_flow_run_state(run.id, Crashed(message="the flow process was killed"), force=True)

    def wait_for_deployment(self, flow_name: str, timeout_s: float) -> None:
        """Wait until the flow process has registered the deployment.

        Raises:
            RunFailedError: it did not in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self._client() as client:
                try:
                    client.read_deployment_by_name(f"{flow_name}/{DEPLOYMENT}")
                    return
                except (httpx.HTTPError, ObjectNotFound) as exc:
                    log.debug("not registered yet: %s", exc)
            time.sleep(_POLL_S)
        raise RunFailedError(f"{flow_name} was not registered within {timeout_s:.0f} s", hint="see logs/worker.log")

    def count(self) -> Counter[str]:
        """Count all flow runs by the name of their state, in small letters."""
        counts: Counter[str] = Counter()
        with self._client() as client:
            while page := client.read_flow_runs(limit=200, offset=counts.total()):
                counts.update((run.state_name or "unknown").lower() for run in page)
        return counts

    def _client(self) -> SyncPrefectClient:
        return SyncPrefectClient(self._api_url)


def _trigger(client: SyncPrefectClient, flow_name: str, parameters: dict[str, Any]) -> FlowRun:
    deployment = client.read_deployment_by_name(f"{flow_name}/{DEPLOYMENT}")
    return client.create_flow_run_from_deployment(deployment.id, parameters=parameters)


def _wait(client: SyncPrefectClient, run: FlowRun, deadline: float) -> FlowRun:
    while time.monotonic() < deadline:
        run = client.read_flow_run(run.id)
        if run.state is not None and run.state.is_final():
            return run
        time.sleep(_POLL_S)
    return run


def _in_states(states: list[StateType]) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
