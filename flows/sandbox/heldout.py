"""Accuracy on held-out frames, by camera and condition, and what of it a drift cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class HeldOutAccuracy:
    """Accuracy by camera and condition, on frames of garments that no camera ever showed."""

    cells: Mapping[str, float]
    """`cam-3/dusk` to accuracy."""

    @property
    def mean(self) -> float:
        """The world as it is when the run ends: each camera counts the same, the drifted one in its new light."""
        now: dict[str, float] = {}
        for cell, accuracy in self.cells.items():
            camera, _, condition = cell.partition("/")
            if condition == "dusk" or camera not in now:
                now[camera] = accuracy
        return fmean(now.values())


def drift_cost(model: HeldOutAccuracy, camera: str) -> float:
    """Accuracy that the model loses on this camera from day to dusk."""
    return model.cells[f"{camera}/day"] - model.cells[f"{camera}/dusk"]


def recovered_share(before: HeldOutAccuracy, after: HeldOutAccuracy, camera: str) -> float | None:
    """Of the accuracy that dusk cost the model `before`, the share that `after` won back; None if it cost nothing."""
    cost = drift_cost(before, camera)
    return (after.cells[f"{camera}/dusk"] - before.cells[f"{camera}/dusk"]) / cost if cost > 0 else None
