"""What models reach on held-out frames, by camera and condition, and what of it a drift cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from curate.catalog.models import ModelRow, ModelStatus, Round


@dataclass(frozen=True)
class HeldOutScore:
    """The world's metric by camera and condition, on frames that no camera ever showed."""

    cells: Mapping[str, float]
    """`cam-3/dusk` to the metric there."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else the world measured, as JSON values."""

    @property
    def mean(self) -> float:
        """The world as it is when the run ends: each camera counts the same, the drifted one in its new light."""
        now: dict[str, float] = {}
        for cell, value in self.cells.items():
            camera, _, condition = cell.partition("/")
            if condition == "dusk" or camera not in now:
                now[camera] = value
        return fmean(now.values())


def drift_cost(model: HeldOutScore, camera: str) -> float:
    """What the model loses on this camera from day to dusk."""
    return model.cells[f"{camera}/day"] - model.cells[f"{camera}/dusk"]


def recovered_share(before: HeldOutScore, after: HeldOutScore, camera: str) -> float | None:
    """Of what dusk cost the model `before`, the share that `after` won back; None if it cost nothing."""
    cost = drift_cost(before, camera)
    return (after.cells[f"{camera}/dusk"] - before.cells[f"{camera}/dusk"]) / cost if cost > 0 else None


@dataclass(frozen=True)
class RoundFacts:
    """One finished round with its model, the one in the field after it, and both held-out scores."""

    round: Round
    candidate: ModelRow
    in_field: ModelRow
    heldout: HeldOutScore
    """Of `in_field`."""
    control: HeldOutScore | None
    """None where no random control was trained."""


def pair_rounds(
    rounds: Sequence[Round],
    models: Sequence[ModelRow],
    scores: Mapping[str, HeldOutScore],
    controls: Mapping[int, HeldOutScore],
) -> list[RoundFacts]:
    """Join each round that trained a model with the model that ran after it; a refused candidate changes nothing."""
    by_round = {model.round_number: model for model in models}
    found: list[RoundFacts] = []
    for each in sorted(rounds, key=lambda r: r.number):
        candidate = by_round.get(each.number)
        if candidate is None:
            continue
        released = candidate.status is ModelStatus.RELEASED or not found
        in_field = candidate if released else found[-1].in_field
        found.append(RoundFacts(each, candidate, in_field, scores[in_field.model_id], controls.get(each.number)))
    return found
