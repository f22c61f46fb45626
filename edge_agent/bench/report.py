"""What a benchmark found, against its bar: for people as Markdown, for programs as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import median
from typing import Any, Final

MAX_SPREAD: Final = 0.15
"""The bare loop's own medians may differ by this much between repeats; beyond it nothing can be compared."""


class Outcome(StrEnum):
    """Whether a figure keeps its bar."""

    KEPT = "kept"
    MISSED = "missed"
    NOISY = "too noisy to tell"
    NO_BAR = "no bar"


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure has to keep."""

    limit: float
    at_least: bool = False
    """False: at most."""

    def allows(self, value: float) -> bool:
        """Say whether the value keeps it."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        """Return it in words."""
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str
    bar: Bar | None = None
    detail: str = ""
    """What it was made from, in words."""
    spread: float = 0.0
    """How much the yardstick itself moved between repeats, as a share."""

    @property
    def outcome(self) -> Outcome:
        """Whether the bar is kept; a bar that is missed on a noisy machine is not known to be missed, nor kept."""
        if self.bar is None:
            return Outcome.NO_BAR
        if self.spread > MAX_SPREAD:
            return Outcome.NOISY
        return Outcome.KEPT if self.bar.allows(self.value) else Outcome.MISSED


@dataclass(frozen=True, slots=True)
class Section:
    """The figures of one measurement, or why there are none."""

    name: str
    figures: tuple[Figure, ...] = ()
    left_out: str | None = None


def spread_of(medians: Sequence[float]) -> float:
    """Return (largest - smallest) / median of one yardstick's repeats."""
    return (max(medians) - min(medians)) / median(medians) if medians and median(medians) > 0.0 else 0.0


def to_document(sections: Sequence[Section], facts: dict[str, str]) -> dict[str, Any]:
    """Return everything as JSON values."""
    figures = [
        {"section": section.name, **asdict(figure), "outcome": figure.outcome.value}
        for section in sections
        for figure in section.figures
    ]
    left_out = {section.name: section.left_out for section in sections if section.left_out}
    return {"machine": facts, "figures": figures, "left_out": left_out}


def to_markdown(sections: Sequence[Section], facts: dict[str, str]) -> str:
    """Return a table of the figures under the facts about the machine."""
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "| what | measured | bar | outcome | made from |", "|---|---|---|---|---|"]
    for section in sections:
        lines += [_row(figure) for figure in section.figures]
        if section.left_out:
            lines.append(f"| {section.name} | left out | | | {section.left_out} |")
    return "\n".join(lines) + "\n"


def _row(figure: Figure) -> str:
    value = f"{figure.value:.3g} {figure.unit}".strip()
    if abs(figure.value) >= 1000:
        value = f"{figure.value:.0f} {figure.unit}".strip()
    bar = "" if figure.bar is None else f"{figure.bar} {figure.unit}".strip()
    return f"| {figure.name} | {value} | {bar} | {figure.outcome.value} | {figure.detail} |"
