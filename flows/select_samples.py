"""Choose the samples of a round: the few that are worth a person's minute."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from prefect import flow, get_run_logger

from curate.catalog.models import ModelRow, Round, SelectedRow, SelectionRole
from curate.errors import BlobNotFoundError, CatalogError, Error, SelectionError
from curate.selection.base import SampleRole, Selection
from curate.selection.batch import select_batch
from curate.selection.cells import Cells
from curate.storage.ports import BlobStore
from flows._candidates import gather_candidates
from flows._stage import stage_task
from flows._trust import FleetTrust, describe_standing, read_trust
from flows._wiring import Services, services
from flows.explain_sheet import build_sheet, sheet_key

log = logging.getLogger(__name__)


@flow(name="select-samples")
def select_samples(round_number: int) -> int:
    """Choose the round's samples, queue them, and return how many there are."""
    chosen = choose_samples(round_number)
    if chosen:
        put_sheet(round_number)
    return chosen


@stage_task("draw contact sheet")
def put_sheet(round_number: int) -> None:
    """Put the round's contact sheet into the bucket. No round stops for want of it."""
    wired = services()
    try:
        wired.store.put(sheet_key(round_number), build_sheet(wired, round_number).encode(), content_type="text/html")
    except Error as exc:
        get_run_logger().warning("there is no contact sheet of round %d: %s", round_number, exc)


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
    trust = read_trust(wired)
    selection = _select(wired, incumbent, trust, current)
    wired.catalog.save_selection(
        round_number, _rows(round_number, selection, _said_of_dismissals(wired, trust, selection))
    )
    for note in selection.notes:
        get_run_logger().info(note)
    for name, standing in trust.reliability.throttled.items():
        get_run_logger().warning("dismissals of %s count for nothing: %s", name, describe_standing(standing))
    return len(selection.items)


def _select(wired: Services, incumbent: ModelRow, trust: FleetTrust, current: Round) -> Selection:
    """Choose on this machine, or on many where the settings name them."""
    seed, progress = current.seed + current.number, get_run_logger().debug
    if wired.settings.scale.dask_scheduler is not None:
        from flows.sharded_selection import select_across  # noqa: PLC0415 (Dask is an extra)

        return select_across(wired, incumbent, current.budget, seed, progress=progress)
    pool, labelled = gather_candidates(wired, incumbent, trust)
    kept = fetch_cells(wired.store, incumbent.model_id)
    selection = select_batch(
        pool, labelled, wired.settings.selection, current.budget, seed, cells=kept, progress=progress
    )
    put_cells(wired.store, incumbent.model_id, selection.cells)
    return selection


def require_round(wired: Services, number: int) -> Round:
    """Return a round.

    Raises:
        CatalogError: there is no such round.
    """
    found = wired.catalog.round(number)
    if found is None:
        raise CatalogError(f"there is no round {number}")
    return found


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


def _said_of_dismissals(wired: Services, trust: FleetTrust, selection: Selection) -> dict[str, tuple[str, ...]]:
    """What the dismissals of the chosen samples are worth; audits are drawn without regard to them."""
    active = [item.sample_id for item in selection.items if item.role is SampleRole.ACTIVE]
    said = {sample.sample_id: trust.explain(sample) for sample in wired.catalog.samples(ids=active)}
    return {sample_id: (words,) for sample_id, words in said.items() if words is not None}


def _rows(round_number: int, selection: Selection, dismissals: Mapping[str, tuple[str, ...]]) -> list[SelectedRow]:
    return [
        SelectedRow(
            round_number=round_number,
            sample_id=item.sample_id,
            rank=item.rank,
            role=SelectionRole(item.role.value),
            utility=item.utility,
            inclusion_probability=item.inclusion_probability,
            reasons=(*item.reasons, *dismissals.get(item.sample_id, ())),
            cluster=item.cluster,
            stands_for=item.stands_for,
            explored=item.explored,
            nearest_id=item.nearest_id,
            nearest_cosine=item.nearest_labelled,
            cell=item.cell,
            parts=dict(item.parts),
            policy_digest=selection.policy_digest,
        )
        for item in selection.items
    ]
