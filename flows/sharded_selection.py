"""Selection on several machines: workers read their rows from the catalog, and meet in the bucket.

Every worker has the settings of this project in its own environment, so that no secret travels with a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from curate.catalog.columns import EVERYTHING, IdRange, SampleColumns
from curate.catalog.models import ModelRow, Sample, SampleStatus
from curate.errors import CatalogError, ConfigError, SelectionError
from curate.selection.base import (
    CandidatePool,
    LabelledSet,
    Progress,
    Selection,
    SelectionPolicy,
    annotation_cost,
    tell_nobody,
)
from curate.selection.exchange import concatenate
from curate.selection.shard_work import Workplace
from curate.selection.sharded import select_sharded
from flows._disagreement import DISAGREEMENT
from flows._trust import FleetTrust, Sent, read_trust
from flows._views import see_samples
from flows._wiring import Services, services
from flows.select_samples import capture_seconds, label_classes

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


class _OfTrust(TypedDict):
    feedback: NDArray[np.float64]
    sites: NDArray[np.int64] | None
    probation: NDArray[np.bool_] | None
    cost: NDArray[np.float64] | None


@dataclass(frozen=True)
class _Named:
    """A capture of which no more than this is at hand."""

    sample_id: str
    device_id: str


@dataclass(frozen=True)
class CatalogPool:
    """The unlabelled captures of the catalog, seen through one model; a part is a range of sample ids."""

    wired: Services
    incumbent: ModelRow
    trust: FleetTrust
    rows_per_part: int

    def parts(self) -> list[IdRange]:
        """Ranges of about `rows_per_part` samples each."""
        return self.wired.catalog.id_ranges(self.rows_per_part)

    def read(self, part: IdRange) -> CandidatePool:
        """Read the captures of one range."""
        return self._gather(within=part)

    def pick(self, ids: Sequence[str]) -> CandidatePool:
        """Read single captures."""
        return self._gather(ids=ids)

    def _gather(self, *, within: IdRange = EVERYTHING, ids: Sequence[str] | None = None) -> CandidatePool:
        """What devices said with this model is taken as it stands; only what they did not is computed here."""
        catalog, release = self.wired.catalog, self.incumbent.release_id or ""
        told = catalog.sample_columns(release, status=SampleStatus.POOL, within=within, ids=ids, score=DISAGREEMENT)
        others = catalog.unanswered(release, status=SampleStatus.POOL, within=within, ids=ids)
        found = [self._told(told)] if len(told) else []
        if others or not found:
            found.append(self._computed(catalog.samples(ids=others)))
        return concatenate(found)

    def _told(self, told: SampleColumns) -> CandidatePool:
        if told.probabilities is None:
            raise SelectionError("only classifiers' pools can be sharded so far", hint="unset scale.dask_scheduler")
        sent = [_Named(*each) for each in zip(told.ids, told.devices, strict=True)]
        return CandidatePool(
            ids=told.ids,
            embeddings=told.embeddings,
            probabilities=told.probabilities,
            devices=told.devices,
            cameras=told.cameras,
            groups=self._groups(told.devices, told.cameras, told.captured_s),
            random_probability=told.random_probability,
            captured_s=told.captured_s,
            disagreement=told.score if self._weighs_disagreement else None,
            **self._of_trust(sent),
        )

    def _computed(self, samples: Sequence[Sample]) -> CandidatePool:
        """What the random arm kept with another model cannot tell about this one."""
        views = see_samples(self.wired, self.incumbent, samples)
        if views.probabilities is None:
            raise SelectionError("only classifiers' pools can be sharded so far", hint="unset scale.dask_scheduler")
        devices, cameras = (tuple(getattr(each, name) for each in samples) for name in ("device_id", "camera_id"))
        captured_s = capture_seconds(samples)
        return CandidatePool(
            ids=tuple(each.sample_id for each in samples),
            embeddings=views.embeddings.astype(np.float16),
            probabilities=views.probabilities,
            devices=devices,
            cameras=cameras,
            groups=self._groups(devices, cameras, captured_s),
            random_probability=np.full(len(samples), np.nan),
            captured_s=captured_s,
            disagreement=np.full(len(samples), np.nan) if self._weighs_disagreement else None,
            **self._of_trust(samples),
        )

    @property
    def _weighs_disagreement(self) -> bool:
        return self.wired.settings.selection.disagreement_weight > 0

    def _of_trust(self, sent: Sequence[Sent]) -> _OfTrust:
        return {
            "feedback": self.trust.evidence(sent),
            "sites": self.trust.sites(sent),
            "probation": self.trust.probation(sent),
            "cost": annotation_cost(np.zeros(len(sent)), self.wired.settings.selection),
        }

    def _groups(
        self, devices: Sequence[str], cameras: Sequence[str], captured_s: NDArray[np.float64]
    ) -> tuple[str, ...]:
        return tuple(map(block_name, devices, cameras, (captured_s // self.wired.settings.split.block_s).tolist()))


def block_name(device: str, camera: str, block: float) -> str:
    """Name what `assign_groups` puts into one group: the frames of a camera in one block of time."""
    return f"{device}/{camera}/{block:.0f}"


def gather_labelled(wired: Services, incumbent: ModelRow) -> LabelledSet:
    """Return everything that was asked, seen through the incumbent; it fits into one process."""
    asked = wired.catalog.samples(status=(SampleStatus.LABELLED, SampleStatus.QUEUED))
    audits = wired.catalog.audited()
    captured_s = capture_seconds(asked)
    blocks = (captured_s // wired.settings.split.block_s).tolist()
    return LabelledSet(
        ids=tuple(each.sample_id for each in asked),
        embeddings=see_samples(wired, incumbent, asked).embeddings,
        groups=tuple(
            block_name(each.device_id, each.camera_id, block) for each, block in zip(asked, blocks, strict=True)
        ),
        held_out=np.array([each.sample_id in audits for each in asked], np.bool_),
        cameras=tuple(each.camera_id for each in asked),
        captured_s=captured_s,
        classes=label_classes(wired, asked),
    )
