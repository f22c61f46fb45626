"""Telling a person what was chosen and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from curate.selection.audit import AuditDraw
from curate.selection.balance import ROUNDING, interleave
from curate.selection.base import LabelledSet, SampleRole, SelectedSample, SelectionPolicy
from curate.selection.diversity import find_nearest
from curate.selection.sights import Sights
from curate.selection.uncertainty import rate_uncertainty

PARTS: Final[Mapping[str, str]] = {
    "model": "how unsure the model is by itself, 0 to 1",
    "disagreement": "how far the model on the device is from the one it was made of, 0 to 1",
    "evidence": "how strongly people's feedback says that the answer is wrong, 0 to 1",
    "uncertainty": "all of these together: what coverage is weighed by",
    "weight": "what being seen so often counts for",
}
"""What the score of a chosen sample is made of, and what it means."""


@dataclass(frozen=True)
class ActivePick:
    """One active pick: its pool row, its utility, and what had to give for it."""

    row: int
    utility: float
    caveats: tuple[str, ...] = ()
    explored: bool = False
    """Drawn at random among the distinct sights, not by the policy's strategy."""


def audit_items(
    sights: Sights, draws: Sequence[AuditDraw], labelled: LabelledSet, policy: SelectionPolicy
) -> list[SelectedSample]:
    """Return the audit share with its inclusion probabilities, not yet ranked."""
    known = _describe(sights, [draw.row for draw in draws], labelled, policy)
    return [
        replace(
            item,
            role=SampleRole.AUDIT,
            reasons=(f"random audit: one of {draw.drawn} drawn from {draw.available} random-arm captures",),
            inclusion_probability=draw.inclusion_probability,
        )
        for draw, item in zip(draws, known, strict=True)
    ]


def active_items(
    sights: Sights, picks: Sequence[ActivePick], labelled: LabelledSet, policy: SelectionPolicy
) -> list[SelectedSample]:
    """Return the active share with the reasons of each pick, not yet ranked."""
    known = _describe(sights, [pick.row for pick in picks], labelled, policy)
    return [
        replace(
            item,
            utility=pick.utility,
            reasons=_explain(sights, pick, item.nearest_labelled, policy),
            stands_for=1 if pick.caveats else int(sights.size[item.cluster]),
            explored=pick.explored,
        )
        for pick, item in zip(picks, known, strict=True)
    ]


def _describe(
    sights: Sights, rows: Sequence[int], labelled: LabelledSet, policy: SelectionPolicy
) -> list[SelectedSample]:
    """Return what is known of the given rows, whatever they were chosen for."""
    nearest = _nearest(sights, rows, labelled)
    parts = _parts(sights, rows, policy)
    return [
        SelectedSample(
            sample_id=sights.pool.ids[row],
            rank=0,
            role=SampleRole.ACTIVE,
            device=sights.pool.devices[row],
            utility=0.0,
            reasons=(),
            cluster=int(sights.cluster[row]),
            stands_for=1,
            nearest_labelled=cosine,
            cost=float(sights.cost[row]),
            nearest_id=name,
            cell=int(sights.index.of[sights.cluster[row]]) if sights.index.count > 1 else None,
            parts=part,
        )
        for row, (name, cosine), part in zip(rows, nearest, parts, strict=True)
    ]


def _parts(sights: Sights, rows: Sequence[int], policy: SelectionPolicy) -> list[dict[str, float]]:
    """Return what each row's score is made of, by the names of `PARTS`; what does not count is left out."""
    index = np.asarray(rows, np.int64)
    pool, sizes = sights.pool, sights.size[sights.cluster[index]]
    unknown, counts = np.full(len(index), np.nan), policy.disagreement_weight > 0
    columns = {
        "model": rate_uncertainty(
            policy.uncertainty,
            None if pool.probabilities is None else pool.probabilities[index],
            None if pool.uncertainty is None else pool.uncertainty[index],
        ),
        "disagreement": pool.disagreement[index] if counts and pool.disagreement is not None else unknown,
        "evidence": sights.evidence[index],
        "uncertainty": sights.uncertainty[index],
        "weight": sizes.astype(np.float64) ** policy.multiplicity_power,
    }
    table = np.column_stack(list(columns.values())).reshape(len(index), len(columns))
    return [
        {name: value for name, value in zip(columns, row, strict=True) if np.isfinite(value)} for row in table.tolist()
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


def _nearest(
    sights: Sights, rows: Sequence[int], labelled: LabelledSet
) -> list[tuple[str, float]] | list[tuple[None, None]]:
    """Return each row's closest training label and its cosine, in whatever cell: few rows are explained."""
    if not len(sights.training):
        return [(None, None)] * len(rows)
    names = [name for name, test in zip(labelled.ids, labelled.testing.tolist(), strict=True) if not test]
    nearest, cosines = find_nearest(sights.unit[np.asarray(rows, np.int64)], sights.training)
    return [(names[row], cosine) for row, cosine in zip(nearest.tolist(), cosines.tolist(), strict=True)]


def ranked(audit: Sequence[SelectedSample], active: Sequence[SelectedSample]) -> tuple[SelectedSample, ...]:
    """Interleave both shares evenly, so that a batch cut short still audits and teaches in proportion."""
    return tuple(replace(item, rank=rank) for rank, item in enumerate(interleave(audit, active), start=1))


def selection_notes(
    active: Sequence[ActivePick],
    audited: int,
    audit_size: int,
    left: float,
    policy: SelectionPolicy,
    budget: int,
    *,
    on_probation: bool = False,
) -> tuple[str, ...]:
    """Say what had to give in the whole batch; `on_probation` where devices in the pool are."""
    notes = [
        f"{count} active picks {caveat}"
        for caveat, count in sorted(Counter(caveat for pick in active for caveat in pick.caveats).items())
    ]
    if audited < audit_size:
        notes.append(f"audit share of {audit_size} not reached: only {audited} random-arm captures were left")
    if left > ROUNDING:
        why = "shares a burst or a sight with a test label"
        why = f"{why}, or its device is on probation" if on_probation else why
        unit = "labels" if policy.budget_unit == "images" else policy.budget_unit
        why = why if policy.budget_unit == "images" else f"costs more, or {why}"
        notes.append(f"{left:.4g} of {budget} {unit} unused: every other capture {why}")
    return tuple(notes)
