"""What an examination finds: a line in words, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: Level
    text: str
    advice: str | None = None
    """The next step; every finding that is not ok has one."""

    def lines(self) -> str:
        """Return it for people."""
        head = f"{self.level.value:<5} {self.name}: {self.text}"
        return head if self.advice is None else f"{head}\n      -> {self.advice}"


def ok(name: str, text: str) -> Finding:
    """Return that it is fine."""
    return Finding(name, Level.OK, text)


def warn(name: str, text: str, advice: str) -> Finding:
    """Return that the agent works, but not as well as it could."""
    return Finding(name, Level.WARN, text, advice)


def fail(name: str, text: str, advice: str) -> Finding:
    """Return that something the agent is for does not work."""
    return Finding(name, Level.FAIL, text, advice)


def worst(findings: Iterable[Finding]) -> Level:
    """Return the worst level; ok for none."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)
