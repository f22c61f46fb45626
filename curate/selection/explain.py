"""Telling a person what was chosen and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from curate.selection.audit import AuditDraw
from curate.selection.balance import ROUNDING, interleave
from curate.selection.base import SampleRole, SelectedSample, SelectionPolicy
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
            nearest_labelled=_nearest(sights, draw.row),
            cost=float(sights.cost[draw.row]),
        )
        for draw in draws
    ]


def active_items(sights: Sights, picks: Sequence[ActivePick], policy: SelectionPolicy) -> list[SelectedSample]:
    """Return the active share with the reasons of each pick, not yet ranked."""
    return [
        SelectedSample(
            sample_id=sights.pool.ids[pick.row],
            rank=0,
            role=SampleRole.ACTIVE,
            device=sights.pool.devices[pick.row],
            utility=pick.utility,
            reasons=_explain(sights, pick, policy),
            cluster=int(sights.cluster[pick.row]),
            stands_for=1 if pick.caveats else int(sights.size[sights.cluster[pick.row]]),
            nearest_labelled=_nearest(sights, pick.row),
            cost=float(sights.cost[pick.row]),
        )
        for pick in picks
    ]


def _explain(sights: Sights, pick: ActivePick, policy: SelectionPolicy) -> tuple[str, ...]:
    """Say in words why a person's minute goes to this row."""
    row, size = pick.row, int(sights.size[sights.cluster[pick.row]])
    nearest = _nearest(sights, row)
    chosen_by = "explored at random" if pick.explored else policy.strategy
    kind = f"{policy.uncertainty.replace('_', ' ')} " if sights.pool.uncertainty is None else ""
    reasons = [f"{chosen_by}: {kind}uncertainty {sights.uncertainty[row]:.2f}"]
    if sights.evidence[row] > 0:
        reasons.append(f"a person's feedback says it is wrong (evidence {sights.evidence[row]:.2f})")
    if size > 1:
        reasons.append(f"one of {size} captures of the same sight")
    reasons.append("nothing is labelled yet" if nearest is None else f"closest training label at cosine {nearest:.2f}")
    return (*reasons, *pick.caveats)


def _nearest(sights: Sights, row: int) -> float | None:
    return float(sights.nearest_training[row]) if len(sights.training) else None


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
