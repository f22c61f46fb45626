"""Selection on several machines: workers read their rows from the catalog, and meet in the bucket.

Every worker has the settings of this project in its own environment, so that no secret travels with a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeVar

from curate.catalog.models import ModelRow
from curate.errors import CatalogError, ConfigError, SelectionError
from curate.selection.base import Progress, Selection, SelectionPolicy, tell_nobody
from curate.selection.shard_work import Workplace
from curate.selection.sharded import select_sharded
from flows._candidates import CatalogPool, gather_labelled
from flows._trust import read_trust
from flows._wiring import Services, services

if TYPE_CHECKING:
    from distributed import Client

EXCHANGE = "models/sharded"
"""Prefix of what workers leave for each other in the bucket."""

NOT_COMPARED = "in shards only what devices report tells how far int8 is from float: nothing was compared here"

T = TypeVar("T")
R = TypeVar("R")


def select_across(
    wired: Services, incumbent: ModelRow, budget: int, seed: int, *, progress: Progress = tell_nobody
) -> Selection:
    """Choose with the workers of the settings' Dask cluster, by the settings' policy.

    Raises:
        SelectionError: nothing can be chosen from, or the fleet's models are no classifiers.
        ConfigError: Dask is not installed or does not answer, or the catalog is a file that no worker can see.
    """
    scale, name = wired.settings.scale, f"{EXCHANGE}/{incumbent.model_id}-{seed}"
    if wired.settings.catalog_url.startswith("sqlite"):
        raise ConfigError("workers cannot share an SQLite catalog", hint="move the catalog to PostgreSQL")
    with open_client(scale.dask_scheduler or "") as client:
        selection = select_sharded(
            partial(open_workplace, incumbent.model_id, scale.rows_per_part, name),
            gather_labelled(wired, incumbent),
            wired.settings.selection,
            budget,
            seed,
            run=partial(run_on, client),
            name=name,
            rows_per_shard=scale.rows_per_shard,
            progress=progress,
        )
    return say_what_counts(selection, wired.settings.selection)


def say_what_counts(selection: Selection, policy: SelectionPolicy) -> Selection:
    """Note what workers do not do: run the float model over a pool that is too large for one machine."""
    notes = (NOT_COMPARED,) if policy.disagreement_weight > 0 else ()
    return replace(selection, notes=(*selection.notes, *notes))


@contextmanager
def open_client(scheduler: str) -> Iterator[Client]:
    """Connect to a Dask scheduler, such as `tcp://scheduler:8786`.

    Raises:
        ConfigError: Dask is not installed, or nobody answers.
    """
    try:
        from distributed import Client  # noqa: PLC0415 (an extra)
    except ImportError as exc:
        raise ConfigError("Dask is not installed", hint="pip install edge-gleaner[scale]") from exc
    try:
        client = Client(scheduler, timeout="30s")
    except (OSError, ValueError) as exc:
        raise ConfigError(f"no Dask scheduler answers at {scheduler}") from exc
    with client:
        yield client


def run_on(client: Client, work: Callable[[T], R], tasks: Sequence[T]) -> Iterable[R]:
    """Do the tasks on the cluster, each anew whatever it did before; an error of a task is raised as it was there.

    Raises:
        SelectionError: the cluster failed (retryable).
    """
    from distributed.scheduler import KilledWorker  # noqa: PLC0415 (an extra)

    try:
        found: list[R] = client.gather(client.map(work, list(tasks), pure=False))
    except (OSError, KilledWorker) as exc:
        raise SelectionError(f"the Dask cluster failed: {exc}", retryable=True) from exc
    return found


@lru_cache(maxsize=1)
def open_workplace(model_id: str, rows_per_part: int, job: str) -> Workplace:  # noqa: ARG001 (each job trusts anew)
    """Open the catalog and the bucket as this process's environment says, once a job.

    Raises:
        ConfigError: the worker has other settings than it needs.
        CatalogError: the catalog does not know the model.
    """
    wired = services()
    incumbent = wired.catalog.model(model_id)
    if incumbent is None:
        raise CatalogError(f"this worker's catalog has no model {model_id}", hint="compare its GLEANER_CATALOG_URL")
    return Workplace(CatalogPool(wired, incumbent, read_trust(wired), rows_per_part), wired.store)
