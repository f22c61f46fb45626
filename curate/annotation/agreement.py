"""What several people's answers to one question amount to. One rule a prediction kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from curate.annotation.box_agreement import box_agreement, merge_boxes
from curate.catalog.boxes import boxes_label, parse_boxes
from curate.catalog.labels import LabelSpec
from curate.errors import AnnotationError


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
    """The label that holds, out of `n` answers, and how far they agree: 1 when all say the same.

    For a class it is the share of the answers that gave it, for boxes the mean F1 score between two people.
    """

    label: dict[str, Any]
    n: int
    agreement: float


Rule = Callable[[Sequence[Answer]], Consensus | None]
"""Answers in any order to what they amount to, None when nobody answered. Skips do not count."""


def consensus_of(labels: LabelSpec) -> Rule:
    """Return the rule of the labels' kind.

    Raises:
        AnnotationError: there is none.
    """
    if labels.kind not in CONSENSUS:
        raise AnnotationError(f"{labels.kind} has no rule of consensus yet", hint=f"kinds: {', '.join(CONSENSUS)}")
    return CONSENSUS[labels.kind]


def majority(answers: Sequence[Answer]) -> Consensus | None:
    """Return the majority's label; of equally frequent ones the most recently given. Skips do not count.

    None when nobody answered.
    """
    votes: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.label is not None:
            votes.setdefault(_text(answer.label), []).append(answer)
    if not votes:
        return None
    text, winners = max(votes.items(), key=lambda vote: (len(vote[1]), max(a.updated_at for a in vote[1]), vote[0]))
    n = sum(map(len, votes.values()))
    return Consensus(json.loads(text), n, len(winners) / n)


def shared_boxes(answers: Sequence[Answer]) -> Consensus | None:
    """Return the boxes that at least half of the people drew (`merge_boxes`); a single answer holds as it is.

    None when nobody answered.

    Raises:
        CatalogError: a label is not one of boxes.
    """
    given = sorted(
        ((a.updated_at, _text(a.label), a.label) for a in answers if a.label is not None), key=lambda a: a[:2]
    )
    if not given:
        return None
    if len(given) == 1:
        return Consensus(given[0][2], 1, 1.0)
    drawn = [parse_boxes(label) for _, _, label in given]
    return Consensus(boxes_label(merge_boxes(drawn)), len(drawn), box_agreement(drawn))


CONSENSUS: Mapping[str, Rule] = {"classification": majority, "detection": shared_boxes}
"""The rule of every kind that can be annotated."""


def _text(label: Mapping[str, Any]) -> str:
    return json.dumps(label, sort_keys=True)
