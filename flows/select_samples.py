"""Choose the samples of a round: the few that are worth a person's minute."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from prefect import flow, get_run_logger

from curate.catalog.models import ModelRow, Round, Sample, SampleStatus, SelectedRow, SelectionRole
from curate.catalog.splits import assign_groups
from curate.errors import BlobNotFoundError, CatalogError, SelectionError
from curate.selection.base import CandidatePool, LabelledSet, Selection, annotation_cost
from curate.selection.batch import select_batch
from curate.selection.cells import Cells
from curate.storage.ports import BlobStore
from flows._stage import stage_task
from flows._views import see_samples
from flows._wiring import Services, services

log = logging.getLogger(__name__)


@flow(name="select-samples")
def select_samples(round_number: int) -> int:
    """Choose the round's samples, queue them, and return how many there are."""
    return choose_samples(round_number)


@stage_task("choose samples")
def choose_samples(round_number: int) -> int:
    """Gather pool and labelled set, decide, persist. A round that has its selection keeps it."""
    wired = services()
    existing = wired.catalog.selection(round_number)
    if existing:
        return len(existing)
    current = require_round(wired, round_number)
    incumbent = wired.catalog.released_model()
    if incumbent is None:
        raise SelectionError("nothing is released yet", hint="start with `gleaner import` and a first round")
    pool, labelled = gather_candidates(wired, incumbent)
    selection = select_batch(
        pool,
        labelled,
        wired.settings.selection,
        current.budget,
        current.seed + round_number,
        cells=fetch_cells(wired.store, incumbent.model_id),
        progress=get_run_logger().debug,
    )
    put_cells(wired.store, incumbent.model_id, selection.cells)
    wired.catalog.save_selection(round_number, _rows(round_number, selection))
    for note in selection.notes:
        get_run_logger().info(note)
    return len(selection.items)


def require_round(wired: Services, number: int) -> Round:
    """Return a round.

    Raises:
        CatalogError: there is no such round.
    """
    found = wired.catalog.round(number)
    if found is None:
        raise CatalogError(f"there is no round {number}")
    return found


def gather_candidates(wired: Services, incumbent: ModelRow) -> tuple[CandidatePool, LabelledSet]:
    """Everything that may be asked and everything that was, seen through the incumbent."""
    samples = sorted(wired.catalog.samples(), key=lambda sample: sample.sample_id)
    asked = [sample for sample in samples if sample.status in (SampleStatus.LABELLED, SampleStatus.QUEUED)]
    free = [sample for sample in samples if sample.status is SampleStatus.POOL]
    views = see_samples(wired, incumbent, [*asked, *free])
    pooled = slice(len(asked), None)
    groups = assign_groups([*asked, *free], {}, wired.settings.split.block_s)
    rows = [row for each in wired.catalog.rounds() for row in wired.catalog.selection(each.number)]
    audits = {row.sample_id for row in rows if row.role is SelectionRole.AUDIT}
    labelled = LabelledSet(
        ids=tuple(sample.sample_id for sample in asked),
        embeddings=views.embeddings[: len(asked)],
        groups=tuple(groups[sample.sample_id] for sample in asked),
        held_out=np.array([sample.sample_id in audits for sample in asked], np.bool_),
        cameras=tuple(sample.camera_id for sample in asked),
        captured_s=_seconds(asked),
    )
    evidence = {verdict.sample_id for verdict in wired.catalog.feedback() if verdict.says_wrong}
    pool = CandidatePool(
        ids=tuple(sample.sample_id for sample in free),
        embeddings=views.embeddings[pooled],
        probabilities=None if views.probabilities is None else views.probabilities[pooled],
        uncertainty=None if views.uncertainty is None else views.uncertainty[pooled],
        cost=annotation_cost(views.boxes[pooled], wired.settings.selection),
        devices=tuple(sample.device_id for sample in free),
        cameras=tuple(sample.camera_id for sample in free),
        groups=tuple(groups[sample.sample_id] for sample in free),
        random_probability=np.array([_auditable(sample, incumbent) for sample in free], np.float64),
        feedback=np.array([DISMISSAL_EVIDENCE * (sample.sample_id in evidence) for sample in free], np.float64),
        captured_s=_seconds(free),
    )
    return pool, labelled


def fetch_cells(store: BlobStore, model_id: str) -> Cells | None:
    """Return the cells that an earlier selection cut a model's embeddings into; None if it needed none.

    They can be found again, so a damaged file is not worth a stop.
    """
    try:
        return Cells.from_bytes(store.get(_cells_key(model_id)))
    except BlobNotFoundError:
        return None
    except SelectionError as exc:
        log.warning("cells are found anew: %s", exc)
        return None


def put_cells(store: BlobStore, model_id: str, cells: Cells | None) -> None:
    """Keep the cells for the next round under this model, if there are any."""
    if cells is not None:
        store.put(_cells_key(model_id), cells.to_bytes())


def _cells_key(model_id: str) -> str:
    """Embeddings of two models do not compare, so each has cells of its own."""
    return f"models/{model_id}.cells.npz"


def _seconds(samples: Sequence[Sample]) -> NDArray[np.float64]:
    return np.array([sample.captured_at.timestamp() for sample in samples], np.float64)


DISMISSAL_EVIDENCE = 0.5
"""About P(prediction wrong | dismissed) for imperfect users; learned per device in a later version."""


def _auditable(sample: Sample, incumbent: ModelRow) -> float:
    """Random-arm probability of a capture that can tell about the incumbent, NaN for the others."""
    told = sample.release_id == incumbent.release_id and sample.random_probability is not None
    return float(sample.random_probability or np.nan) if told else float("nan")


def _rows(round_number: int, selection: Selection) -> list[SelectedRow]:
    return [
        SelectedRow(
            round_number=round_number,
            sample_id=item.sample_id,
            rank=item.rank,
            role=SelectionRole(item.role.value),
            utility=item.utility,
            inclusion_probability=item.inclusion_probability,
            reasons=item.reasons,
            cluster=item.cluster,
            stands_for=item.stands_for,
        )
        for item in selection.items
    ]
