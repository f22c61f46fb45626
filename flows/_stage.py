"""How a stage becomes Prefect's: one decorator each for the flow and for the task that does the outside work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from curate.errors import Error

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAYS_S = (1, 2, 4, 8, 15, 30)


def is_retryable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Let Prefect retry exactly what `curate` calls retryable."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, Error) and error.retryable


def stage_task(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that is retried with growing delays while its error says that trying again can help."""

    def decorate(body: Callable[P, R]) -> Task[P, R]:
        return Task(
            body,
            name=name,
            retries=len(RETRY_DELAYS_S),
            retry_delay_seconds=list(RETRY_DELAYS_S),
            retry_jitter_factor=0.5,
            retry_condition_fn=is_retryable,
            cache_policy=NO_CACHE,  # inputs are large arrays and live services: hashing them costs more than the work
        )

    return decorate
