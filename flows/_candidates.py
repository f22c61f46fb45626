"""What a selection chooses from and what it knows already, seen through one model.

A frame that one distribution describes can be seen by itself, so a pool of such frames is read in columns, in parts if
need be. Frames of boxes are described together, and read as whole samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from curate.catalog.columns import EVERYTHING, IdRange, SampleColumns
from curate.catalog.models import ModelRow, Sample, SampleStatus
from curate.errors import SelectionError
from curate.selection.base import CandidatePool, LabelledSet, annotation_cost
from curate.selection.exchange import concatenate
from curate.selection.uncertainty import rate_uncertainty
from curate.selection.views import SEEN_ALONE
from flows._disagreement import DISAGREEMENT, gather_disagreement, reported
from flows._labels import agreed_labels
from flows._trust import FleetTrust, Sent
from flows._views import see_samples
from flows._wiring import Services

_ASKED = (SampleStatus.LABELLED, SampleStatus.QUEUED)


def gather_candidates(wired: Services, incumbent: ModelRow, trust: FleetTrust) -> tuple[CandidatePool, LabelledSet]:
    """Return everything that may be asked and everything that was, seen through the incumbent."""
    if wired.settings.labels.kind in SEEN_ALONE:
        pool, labelled = CatalogPool(wired, incumbent, trust).read(), gather_labelled(wired, incumbent)
    else:
        pool, labelled = _gather_together(wired, incumbent, trust)
    policy = wired.settings.selection
    told = np.full(len(pool.ids), np.nan) if pool.disagreement is None else pool.disagreement
    unsure = rate_uncertainty(policy.uncertainty, pool.probabilities, pool.uncertainty)
    return replace(pool, disagreement=gather_disagreement(wired, incumbent, pool.ids, told, unsure)), labelled


def gather_labelled(wired: Services, incumbent: ModelRow) -> LabelledSet:
    """Return everything that was asked, seen through the incumbent; it fits into one process."""
    asked = wired.catalog.samples(status=_ASKED)
    return _labelled(wired, asked, see_samples(wired, incumbent, asked).embeddings)


class _Origins(NamedTuple):
    """Where and when each of N captures was taken; `groups` names what `assign_groups` puts into one: the frames of a
    camera in one block of time."""

    devices: tuple[str, ...]
    cameras: tuple[str, ...]
    captured_s: NDArray[np.float64]
    groups: tuple[str, ...]


def _origins(
    wired: Services, devices: tuple[str, ...], cameras: tuple[str, ...], captured_s: NDArray[np.float64]
) -> _Origins:
    frames = zip(devices, cameras, (captured_s // wired.settings.split.block_s).tolist(), strict=True)
    groups = tuple(f"{device}/{camera}/{block:.0f}" for device, camera, block in frames)
    return _Origins(devices, cameras, captured_s, groups)


def _origins_of(wired: Services, samples: Sequence[Sample]) -> _Origins:
    captured_s = np.array([sample.captured_at.timestamp() for sample in samples], np.float64)
    devices = tuple(sample.device_id for sample in samples)
    return _origins(wired, devices, tuple(sample.camera_id for sample in samples), captured_s)


class _OfTrust(TypedDict):
    feedback: NDArray[np.float64]
    sites: NDArray[np.int64] | None
    probation: NDArray[np.bool_] | None


def _of_trust(trust: FleetTrust, sent: Sequence[Sent]) -> _OfTrust:
    return {"feedback": trust.evidence(sent), "sites": trust.sites(sent), "probation": trust.probation(sent)}


@dataclass(frozen=True)
class _Named:
    """A capture of which no more than this is at hand."""

    sample_id: str
    device_id: str


@dataclass(frozen=True)
class CatalogPool:
    """The unlabelled captures of the catalog, seen through one classifier; a part is a range of sample ids."""

    wired: Services
    incumbent: ModelRow
    trust: FleetTrust
    rows_per_part: int = 100_000

    def parts(self) -> list[IdRange]:
        """Ranges of about `rows_per_part` samples each."""
        return self.wired.catalog.id_ranges(self.rows_per_part)

    def read(self, part: IdRange = EVERYTHING) -> CandidatePool:
        """Read the captures of one range.

        Raises:
            SelectionError: the model is no classifier.
        """
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
        sent = [_Named(*each) for each in zip(told.ids, told.devices, strict=True)]
        return CandidatePool(
            ids=told.ids,
            embeddings=told.embeddings,
            probabilities=_distributions(told.probabilities),
            random_probability=told.random_probability,
            disagreement=told.score,
            cost=self._cost(len(sent)),
            **_origins(self.wired, told.devices, told.cameras, told.captured_s)._asdict(),
            **_of_trust(self.trust, sent),
        )

    def _computed(self, samples: Sequence[Sample]) -> CandidatePool:
        """What the random arm kept with another model cannot tell about this one."""
        views = see_samples(self.wired, self.incumbent, samples)
        unknown = np.full(len(samples), np.nan)
        return CandidatePool(
            ids=tuple(each.sample_id for each in samples),
            embeddings=views.embeddings.astype(np.float16),
            probabilities=_distributions(views.probabilities),
            random_probability=unknown,
            disagreement=unknown,
            cost=self._cost(len(samples)),
            **_origins_of(self.wired, samples)._asdict(),
            **_of_trust(self.trust, samples),
        )

    def _cost(self, rows: int) -> NDArray[np.float64] | None:
        return annotation_cost(np.zeros(rows), self.wired.settings.selection)


def label_classes(wired: Services, asked: Sequence[Sample]) -> NDArray[np.int64]:
    """Return the class that people settled on, by its index; -1 where they have not, or a label names no one class."""
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(wired.settings.labels.class_names)}
    labels = agreed_labels(wired, [sample.sample_id for sample in asked])
    named = [labels.get(sample.sample_id, {}).get("class") for sample in asked]
    return np.array([numbers.get(name, -1) for name in named], np.int64)


def _gather_together(wired: Services, incumbent: ModelRow, trust: FleetTrust) -> tuple[CandidatePool, LabelledSet]:
    """See all frames in one call: what boxes a frame is compared by depends on the others."""
    samples = wired.catalog.samples(status=(*_ASKED, SampleStatus.POOL))
    asked = [sample for sample in samples if sample.status in _ASKED]
    free = [sample for sample in samples if sample.status is SampleStatus.POOL]
    views, pooled = see_samples(wired, incumbent, [*asked, *free]), slice(len(asked), None)
    pool = CandidatePool(
        ids=tuple(sample.sample_id for sample in free),
        embeddings=views.embeddings[pooled],
        probabilities=None if views.probabilities is None else views.probabilities[pooled],
        uncertainty=None if views.uncertainty is None else views.uncertainty[pooled],
        cost=annotation_cost(views.boxes[pooled], wired.settings.selection),
        random_probability=np.array([_auditable(sample, incumbent) for sample in free], np.float64),
        disagreement=reported(free, incumbent),
        **_origins_of(wired, free)._asdict(),
        **_of_trust(trust, free),
    )
    return pool, _labelled(wired, asked, views.embeddings[: len(asked)])


def _labelled(wired: Services, asked: Sequence[Sample], embeddings: NDArray[np.float32]) -> LabelledSet:
    audits, origins = wired.catalog.audited(), _origins_of(wired, asked)
    return LabelledSet(
        ids=tuple(each.sample_id for each in asked),
        embeddings=embeddings,
        groups=origins.groups,
        held_out=np.array([each.sample_id in audits for each in asked], np.bool_),
        cameras=origins.cameras,
        captured_s=origins.captured_s,
        classes=label_classes(wired, asked),
    )


def _distributions(probabilities: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if probabilities is None:
        raise SelectionError("only classifiers' pools can be read in parts so far", hint="unset scale.dask_scheduler")
    return probabilities


def _auditable(sample: Sample, incumbent: ModelRow) -> float:
    """Random-arm probability of a capture that can tell about the incumbent, NaN for the others."""
    told = sample.release_id == incumbent.release_id and sample.random_probability is not None
    return float(sample.random_probability or np.nan) if told else float("nan")
