"""The honest share: a probability sample of the random arm, so that what is measured on it holds for the field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.selection.balance import ROUNDING, allocate
from curate.selection.base import Float64Array


@dataclass(frozen=True)
class AuditDraw:
    """One audited row: `drawn` of `available` random-arm captures of its stratum were taken."""

    row: int
    inclusion_probability: float
    drawn: int
    available: int


def size_audit(share: float, budget: float, costs: Float64Array) -> int:
    """Return how many captures to audit so that they cost about that share of the budget, and never more than all.

    `costs` float64 [E] are those of the eligible captures. The number is fixed before the draw, from the mean cost and
    such that even the dearest would fit: drawing until a sum is spent would favour cheap frames and leave π unknown.
    """
    mean = float(costs.mean()) if len(costs) else 1.0
    size = int(share * budget / mean + 0.5)
    fitting = int(np.searchsorted(np.cumsum(np.sort(costs)[::-1]), budget + ROUNDING, side="right"))
    return size if fitting == len(costs) else min(size, fitting)


def draw_audit(
    random_probability: Float64Array, devices: Sequence[str], size: int, rng: np.random.Generator
) -> list[AuditDraw]:
    """Draw min(size, eligible) rows at random without replacement, stratified by device, in random order.

    Eligible are rows with a recorded random-arm probability p (not NaN). Stratum h gets n_h draws in proportion to the
    frames it stands for, Σ 1/p, and each of its N_h rows has inclusion probability π = p · n_h / N_h. Captures are
    drawn, not clusters: collapsing near-duplicates first would make π unknown. With fewer draws than devices all
    captures form one stratum, since a stratum without draws could not be estimated.
    """
    eligible = np.flatnonzero(np.isfinite(random_probability))
    size = min(size, len(eligible))
    distinct = {devices[row] for row in eligible.tolist()}
    strata: dict[str, list[int]] = {}
    for row in eligible.tolist():
        strata.setdefault(devices[row] if size >= len(distinct) else "all devices", []).append(row)
    frames = {name: float((1.0 / random_probability[rows]).sum()) for name, rows in strata.items()}
    sizes = allocate(size, frames, {name: len(rows) for name, rows in strata.items()})
    draws = [
        AuditDraw(row, float(random_probability[row]) * sizes[name] / len(rows), sizes[name], len(rows))
        for name, rows in sorted(strata.items())
        for row in rng.permutation(rows)[: sizes[name]].tolist()
    ]
    return [draws[i] for i in rng.permutation(len(draws))]
