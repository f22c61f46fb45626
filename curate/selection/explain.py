"""Telling a person what was chosen and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from curate.selection.audit import AuditDraw
from curate.selection.balance import ROUNDING, interleave
from curate.selection.base import SampleRole, SelectedSample, SelectionPolicy
from curate.selection.diversity import nearest_similarity
from curate.selection.sights import Sights


@dataclass(frozen=True)
class ActivePick:
    """One active pick: its pool row, its utility, and what had to give for it."""

    row: int
    utility: float
    caveats: tuple[str, ...] = ()
    explored: bool = False
    """Drawn at random among the distinct sights, not by the policy's strategy."""


def audit_items(sights: Sights, draws: Sequence[AuditDraw]) -> list[SelectedSample]:
    """Return the audit share with its inclusion probabilities, not yet ranked."""
    nearest = _nearest(sights, [draw.row for draw in draws])
    return [
        SelectedSample(
            sample_id=sights.pool.ids[draw.row],
            rank=0,
            role=SampleRole.AUDIT,
            device=sights.pool.devices[draw.row],
            utility=0.0,
            reasons=(f"random audit: one of {draw.drawn} drawn from {draw.available} random-arm captures",),
            cluster=int(sights.cluster[draw.row]),
            stands_for=1,
            inclusion_probability=draw.inclusion_probability,
            nearest_labelled=near,
            cost=float(sights.cost[draw.row]),
        )
        for draw, near in zip(draws, nearest, strict=True)
    ]


def active_items(sights: Sights, picks: Sequence[ActivePick], policy: SelectionPolicy) -> list[SelectedSample]:
    """Return the active share with the reasons of each pick, not yet ranked."""
    nearest = _nearest(sights, [pick.row for pick in picks])
    return [
        SelectedSample(
            sample_id=sights.pool.ids[pick.row],
            rank=0,
            role=SampleRole.ACTIVE,
            device=sights.pool.devices[pick.row],
            utility=pick.utility,
            reasons=_explain(sights, pick, near, policy),
            cluster=int(sights.cluster[pick.row]),
            stands_for=1 if pick.caveats else int(sights.size[sights.cluster[pick.row]]),
            nearest_labelled=near,
            cost=float(sights.cost[pick.row]),
        )
        for pick, near in zip(picks, nearest, strict=True)
    ]


def _explain(sights: Sights, pick: ActivePick, nearest: float | None, policy: SelectionPolicy) -> tuple[str, ...]:
    """Say in words why a person's minute goes to this row."""
    row, size = pick.row, int(sights.size[sights.cluster[pick.row]])
    chosen_by = "explored at random" if pick.explored else policy.strategy
    kind = f"{policy.uncertainty.replace('_', ' ')} " if sights.pool.uncertainty is None else ""
    reasons = [f"{chosen_by}: {kind}uncertainty {sights.uncertainty[row]:.2f}"]
    if sights.evidence[row] > 0:
        reasons.append(f"a person's feedback says it is wrong (evidence {sights.evidence[row]:.2f})")
    if size > 1:
        reasons.append(f"one of {size} captures of the same sight")
    reasons.append("nothing is labelled yet" if nearest is None else f"closest training label at cosine {nearest:.2f}")
    return (*reasons, *pick.caveats)


def _nearest(sights: Sights, rows: Sequence[int]) -> list[float | None]:
    """Return each row's cosine to the closest of all training labels, in whatever cell: few rows are explained."""
    if not len(sights.training):
        return [None] * len(rows)
    return list(nearest_similarity(sights.unit[np.asarray(rows, np.int64)], sights.training).tolist())


def ranked(audit: Sequence[SelectedSample], active: Sequence[SelectedSample]) -> tuple[SelectedSample, ...]:
    """Interleave both shares evenly, so that a batch cut short still audits and teaches in proportion."""
    return tuple(replace(item, rank=rank) for rank, item in enumerate(interleave(audit, active), start=1))


def selection_notes(
    active: Sequence[ActivePick], audited: int, audit_size: int, left: float, policy: SelectionPolicy, budget: int
) -> tuple[str, ...]:
    """Say what had to give in the whole batch."""
    notes = [
        f"{count} active picks {caveat}"
        for caveat, count in sorted(Counter(caveat for pick in active for caveat in pick.caveats).items())
    ]
    if audited < audit_size:
        notes.append(f"audit share of {audit_size} not reached: only {audited} random-arm captures were left")
    if left > ROUNDING:
        why = "shares a burst or a sight with a test label"
        unit = "labels" if policy.budget_unit == "images" else policy.budget_unit
        why = why if policy.budget_unit == "images" else f"costs more, or {why}"
        notes.append(f"{left:.4g} of {budget} {unit} unused: every other capture {why}")
    return tuple(notes)
