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
    SelectionPolicy,
)
from curate.selection.diversity import near_duplicate_clusters, nearest_similarity, unit_rows
from curate.selection.uncertainty import raise_by_evidence, rate_uncertainty


@dataclass(frozen=True, eq=False)
class Sights:
    """The pool, read once: S distinct sights among N sound rows."""

    pool: CandidatePool
    unit: Float32Array  # [N, D]
    cluster: IntArray  # [N] -> sight
    size: IntArray  # [S] rows a sight stands for
    uncertainty: Float64Array  # [N], raised by feedback
    evidence: Float64Array  # [N]
    cost: Float64Array  # [N], in the policy's unit; 1 when that is images
    training: Float32Array  # [M', D] unit embeddings of the training labels
    nearest_training: Float64Array  # [N] cosine, -1 when there are none


def find_faults(pool: CandidatePool, labelled_ids: frozenset[str]) -> dict[int, str]:
    """Return why each unusable row is unusable, by row."""
    arm = pool.random_probability
    checks: list[tuple[str, BoolArray]] = [
        ("is labelled or queued already", np.array([i in labelled_ids for i in pool.ids], np.bool_)),
        ("embedding is not finite", _any(~np.isfinite(pool.embeddings))),
        ("embedding has no direction", ~_any(pool.embeddings != 0)),
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
    for name, column in (("feedback evidence", pool.feedback), ("uncertainty", pool.uncertainty)):
        if column is not None:
            checks.append((f"{name} is outside [0, 1]", ~((column >= 0) & (column <= 1))))
    if pool.cost is not None:
        checks.append(("cost is not a positive number", ~(np.isfinite(pool.cost) & (pool.cost > 0))))
    return checks


def read_sights(pool: CandidatePool, labelled: LabelledSet, policy: SelectionPolicy) -> Sights:
    """Collapse near-duplicates of a pool of sound rows, and rate what is left."""
    unit = unit_rows(pool.embeddings)
    cluster = near_duplicate_clusters(
        unit, pool.groups, policy.duplicate_cosine, group_threshold=policy.burst_duplicate_cosine
    )
    feedback = np.zeros(len(pool)) if pool.feedback is None else pool.feedback.astype(np.float64)
    evidence = policy.dismissed_weight * feedback
    training = unit_rows(labelled.embeddings[~labelled.testing])
    return Sights(
        pool=pool,
        unit=unit,
        cluster=cluster,
        size=np.bincount(cluster),
        uncertainty=raise_by_evidence(
            rate_uncertainty(policy.uncertainty, pool.probabilities, pool.uncertainty), evidence
        ),
        cost=np.ones(len(pool)) if pool.cost is None or policy.budget_unit == "images" else pool.cost,
        evidence=evidence,
        training=training,
        nearest_training=nearest_similarity(unit, training),
    )


def _any(mask: BoolArray) -> BoolArray:
    """Return whether any number of each row is marked, bool [N]."""
    return np.asarray(mask.any(axis=1))
