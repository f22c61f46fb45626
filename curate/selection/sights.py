"""Reading a pool once: which rows are sound, which show the same sight, how unsure each is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.selection.base import (
    BoolArray,
    CandidatePool,
    Float32Array,
    Float64Array,
    IntArray,
    LabelledSet,
    Progress,
    SelectionPolicy,
)
from curate.selection.cells import CellIndex, Cells, find_cells, nearest_by_cell, wanted_cells
from curate.selection.diversity import Moments
from curate.selection.duplicates import border_leaders, burst_leaders, cell_leaders, number_sights
from curate.selection.rows import FingerprintArray, RowScan, UnitRows, exact_copies, number_names, unit_rows
from curate.selection.uncertainty import mix_disagreement, raise_by_evidence, rate_uncertainty


@dataclass(frozen=True, eq=False)
class Sights:
    """The pool, read once: S distinct sights among N sound rows, which are in the order of their ids."""

    pool: CandidatePool  # without embeddings
    unit: UnitRows  # [N, D]
    cluster: IntArray  # [N] -> sight
    size: IntArray  # [S] rows a sight stands for
    first_row: IntArray  # [S]
    devices: IntArray  # [N], numbered by name
    uncertainty: Float64Array  # [N], raised by feedback
    evidence: Float64Array  # [N]
    cost: Float64Array  # [N], in the policy's unit; 1 when that is images
    training: Float32Array  # [M', D] unit embeddings of the training labels
    nearest_training: Float64Array  # [N] cosine, -1 when there are none near
    cells: Cells
    index: CellIndex  # of the S sights

    def nearest_to(self, references: Float32Array) -> Float64Array:
        """Return each row's highest cosine to unit references in its own and near cells, float64 [N]; else -1."""
        return _nearest(self.unit, self.cells, self.index, self.cluster, references)


def find_faults(pool: CandidatePool, scan: RowScan, labelled_ids: frozenset[str]) -> dict[int, str]:
    """Return why each unusable row is unusable, by row."""
    arm = pool.random_probability
    labelled = np.fromiter(map(labelled_ids.__contains__, pool.ids), np.bool_, len(pool))
    checks: list[tuple[str, BoolArray]] = [
        ("is labelled or queued already", labelled),
        ("embedding is not finite", ~scan.finite),
        ("embedding has no direction", ~scan.directed),
        ("random-arm probability is outside (0, 1]", ~(np.isnan(arm) | ((arm > 0) & (arm <= 1)))),
        *_optional_checks(pool),
    ]
    faults: dict[int, str] = {}
    for reason, mask in checks:
        for row in np.flatnonzero(mask).tolist():
            faults.setdefault(row, reason)
    return faults


def _optional_checks(pool: CandidatePool) -> list[tuple[str, BoolArray]]:
    checks: list[tuple[str, BoolArray]] = []
    if (p := pool.probabilities) is not None:
        checks.append(("probabilities are not finite", _any(~np.isfinite(p))))
        checks.append(("probabilities are not a distribution", ~(np.abs(p.sum(axis=1) - 1) <= 0.01)))
        checks.append(("a probability is negative", _any(p < 0)))
    if (m := pool.members) is not None:
        proper = (np.abs(m.sum(axis=2) - 1) <= 0.01) & (m >= 0).all(axis=2)
        checks.append(("a member's answer is not a distribution", _any(~proper)))
    for name, column in (("feedback evidence", pool.feedback), ("uncertainty", pool.uncertainty)):
        if column is not None:
            checks.append((f"{name} is outside [0, 1]", ~((column >= 0) & (column <= 1))))
    if (d := pool.disagreement) is not None:
        checks.append(("disagreement is outside [0, 1]", ~(np.isnan(d) | ((d >= 0) & (d <= 1)))))
    if pool.cost is not None:
        checks.append(("cost is not a positive number", ~(np.isfinite(pool.cost) & (pool.cost > 0))))
    return checks


def read_sights(
    pool: CandidatePool,
    rows: IntArray,
    fingerprint: FingerprintArray,
    labelled: LabelledSet,
    policy: SelectionPolicy,
    kept: Cells | None,
    rng: np.random.Generator,
    progress: Progress,
) -> Sights:
    """Collapse near-duplicates among the given sound rows of a pool, and rate what is left.

    `rows` int64 [N] are in the order of their ids, `fingerprint` uint64 [N] is theirs. `kept` are the cells of an
    earlier round: they are used as long as they fit.
    """
    described = pool.describe(rows)
    unit = UnitRows(pool.embeddings, rows)
    progress("collapse bursts")
    groups = number_names(described.groups)
    leader_of = _collapse_bursts(pool, rows, fingerprint, groups, policy)
    leader_of = _join_borders(described, unit, groups, leader_of, policy)
    cluster, cells, index = _collapse_cells(unit, leader_of, fingerprint, policy, kept, rng, progress)
    progress("compare with labels")
    training = unit_rows(labelled.embeddings[~labelled.testing])
    feedback = np.zeros(len(rows)) if described.feedback is None else described.feedback.astype(np.float64)
    evidence = policy.dismissed_weight * feedback
    return Sights(
        pool=described,
        unit=unit,
        cluster=cluster,
        size=np.bincount(cluster),
        first_row=np.unique(cluster, return_index=True)[1],
        devices=number_names(described.devices),
        uncertainty=raise_by_evidence(_unsure(described, policy), evidence),
        evidence=evidence,
        cost=np.ones(len(rows)) if described.cost is None or policy.budget_unit == "images" else described.cost,
        training=training,
        nearest_training=_nearest(unit, cells, index, cluster, training),
        cells=cells,
        index=index,
    )


def _collapse_bursts(
    pool: CandidatePool, rows: IntArray, fingerprint: FingerprintArray, groups: IntArray, policy: SelectionPolicy
) -> IntArray:
    """Return the row that leads each row within its burst, int64 [N]; exact copies are not compared at all."""
    first = exact_copies(pool.embeddings, rows, fingerprint, groups)
    originals, place = np.unique(first, return_inverse=True)
    leading = burst_leaders(
        UnitRows(pool.embeddings, rows[originals]), groups[originals], policy.burst_duplicate_cosine
    )
    return np.asarray(originals[leading][place], np.int64)


def _join_borders(
    pool: CandidatePool, unit: UnitRows, groups: IntArray, leader_of: IntArray, policy: SelectionPolicy
) -> IntArray:
    """Return the row that leads each row, int64 [N], bursts across the border of two groups being one."""
    if pool.captured_s is None:
        return leader_of
    tops, place = np.unique(leader_of, return_inverse=True)
    seen = Moments(unit.take(tops), tuple(map(pool.cameras.__getitem__, tops.tolist())), pool.captured_s[tops])
    leading = border_leaders(seen, groups[tops], gap_s=policy.scene_gap_s, threshold=policy.burst_duplicate_cosine)
    return np.asarray(tops[leading][place], np.int64)


def _collapse_cells(
    unit: UnitRows,
    leader_of: IntArray,
    fingerprint: FingerprintArray,
    policy: SelectionPolicy,
    kept: Cells | None,
    rng: np.random.Generator,
    progress: Progress,
) -> tuple[IntArray, Cells, CellIndex]:
    """Collapse the leaders of bursts within cells: each row's sight int64 [N], the cells, the index of the sights."""
    tops = np.unique(leader_of)
    leading_rows = unit.take(tops)
    wanted = wanted_cells(len(tops), policy.max_candidates)
    progress("find cells")
    cells = kept if kept is not None and kept.fits(wanted, unit.width) else find_cells(leading_rows, wanted, rng)
    progress("assign to cells")
    of, cells = cells.assign(leading_rows, fingerprint[tops])
    progress("collapse near-duplicates")
    leading = cell_leaders(unit, tops, CellIndex.build(of, cells), policy.duplicate_cosine)
    cluster = number_sights(leader_of, tops, leading)
    cell_of_sight = np.zeros(cluster.max(initial=-1) + 1, np.int64)
    cell_of_sight[cluster[tops[leading]]] = of[leading]
    return cluster, cells, CellIndex.build(cell_of_sight, cells)


def _unsure(pool: CandidatePool, policy: SelectionPolicy) -> Float64Array:
    said = rate_uncertainty(policy.uncertainty, pool.probabilities, pool.uncertainty)
    if pool.disagreement is None:
        return said
    return mix_disagreement(said, pool.disagreement, policy.disagreement_weight)


def _nearest(
    unit: UnitRows, cells: Cells, index: CellIndex, cluster: IntArray, references: Float32Array
) -> Float64Array:
    """A row lies in the cell of its sight."""
    if not len(references):
        return np.full(len(unit), -1.0)
    of_rows = CellIndex.build(index.of[cluster], cells)
    return nearest_by_cell(unit, of_rows, references, cells)


def _any(mask: BoolArray) -> BoolArray:
    """Return whether any number of each row is marked, bool [N]."""
    return np.asarray(mask.any(axis=1))
