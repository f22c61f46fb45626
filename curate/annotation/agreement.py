"""What several people's answers to one question amount to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol


class Answer(Protocol):
    """What is needed of an answer: the catalog's rows and the backend's annotations both fit."""

    @property
    def label(self) -> dict[str, Any] | None:
        """The answer, None when the task was skipped."""

    @property
    def updated_at(self) -> datetime:
        """When it was last changed."""


@dataclass(frozen=True)
class Consensus:
    """The label that holds, out of `n` answers, and the share of them that gave it."""

    label: dict[str, Any]
    n: int
    agreement: float


def consensus(answers: Sequence[Answer]) -> Consensus | None:
    """Return the majority's label; of equally frequent ones the most recently given. Skips do not count.

    None when nobody answered.
    """
    votes: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.label is not None:
            votes.setdefault(json.dumps(answer.label, sort_keys=True), []).append(answer)
    if not votes:
        return None
    text, winners = max(votes.items(), key=lambda vote: (len(vote[1]), max(a.updated_at for a in vote[1]), vote[0]))
    n = sum(map(len, votes.values()))
    return Consensus(json.loads(text), n, len(winners) / n)
