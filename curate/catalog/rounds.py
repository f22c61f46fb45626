"""How a round moves: forwards only, one at a time (pure)."""

from __future__ import annotations

from collections.abc import Sequence

from curate.catalog.models import Round, RoundPhase

_ORDER = list(RoundPhase)


def has_reached(phase: RoundPhase, wanted: RoundPhase) -> bool:
    """Whether a round in `phase` has `wanted` behind it."""
    return _ORDER.index(phase) >= _ORDER.index(wanted)


def next_round_number(rounds: Sequence[Round]) -> int:
    """The open round's number, or one more than the newest when all are closed."""
    unfinished = [r.number for r in rounds if r.phase is not RoundPhase.CLOSED]
    return min(unfinished) if unfinished else max((r.number for r in rounds), default=-1) + 1
