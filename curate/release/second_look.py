"""Which of two models is better, told from captures that they answer differently; pure.

Where two models answer alike neither is better, whatever the truth is. Of a probability sample of the field only the
captures that they answer differently need a person, so the same labels tell several times as much (active testing,
Kossen et al. 2021, arXiv:2103.05331, with the simplest of proposals: 0 where the difference is known, equal elsewhere).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from curate.metrics.correctness import mean_difference
from curate.metrics.evidence import Difference, Float64Array


class ComparedCapture(BaseModel):
    """One random-arm capture, answered by both models. `weight` is 1 over its probability to be kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_id: str
    weight: float
    burst: str
    differs: bool
    audited: bool = False
    """People were asked for its label already, without regard to the models."""
    asked: bool = False

    @property
    def in_doubt(self) -> bool:
        """Whether a label that nobody was asked for yet decides which model is better on it."""
        return self.differs and not self.audited


class SecondLookDraw(BaseModel):
    """What was compared, and of what is in doubt the part that people are asked about. Written once, before asking."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    captures: tuple[ComparedCapture, ...]

    @property
    def asked(self) -> tuple[str, ...]:
        """The captures to be asked about, in random order."""
        return tuple(capture.sample_id for capture in self.captures if capture.asked)

    @property
    def differing(self) -> tuple[str, ...]:
        """The captures whose labels decide."""
        return tuple(capture.sample_id for capture in self.captures if capture.differs)


@dataclass(frozen=True, eq=False)
class SecondLook:
    """Candidate minus incumbent on each of n captures, float64 [n] in [-1, 1], with 1/π [n] and what they share [n].

    Of the captures in doubt `labels` were answered by people, those that audits had asked about included.
    """

    differences: Float64Array
    weights: Float64Array
    bursts: Sequence[str]
    labels: int

    def __len__(self) -> int:
        return len(self.differences)

    def difference(self) -> Difference:
        """Return the paired difference over the field."""
        return mean_difference(self.differences, self.weights, self.bursts)

    def in_words(self) -> str:
        """Return what it was seen on, for a person."""
        return f"{len(self)} random-arm captures, a second look: {self.labels} labels where the two models differ"


def draw_questions(captures: Sequence[ComparedCapture], limit: int, rng: np.random.Generator) -> SecondLookDraw:
    """Choose at most `limit` of the captures in doubt to ask about, all alike; audits have been asked already."""
    doubtful = [row for row, capture in enumerate(captures) if capture.in_doubt]
    asked = set(rng.permutation(doubtful)[:limit].tolist()) if doubtful else set()
    order = rng.permutation(len(captures)).tolist()
    return SecondLookDraw(captures=tuple(captures[row].model_copy(update={"asked": row in asked}) for row in order))


def weigh_answers(draw: SecondLookDraw, differences: Mapping[str, float]) -> SecondLook | None:
    """Return what the answers say; None where captures are in doubt and nobody answered any of those asked about.

    `differences` holds candidate minus incumbent of every differing capture with a label. Captures on which the models
    agree count 0. Those asked about and answered stand for all in doubt by their weight; an audited one for itself.
    """
    doubtful = {c.sample_id: c.weight for c in draw.captures if c.in_doubt}
    answered = {name: doubtful[name] for name in draw.asked if name in differences}
    if doubtful and not answered:
        return None
    spread = sum(doubtful.values()) / sum(answered.values()) if answered else 1.0
    told = [
        (differences.get(c.sample_id, 0.0), c.weight * (spread if c.sample_id in answered else 1.0), c.burst)
        for c in draw.captures
        if not c.differs or c.sample_id in answered or (c.audited and c.sample_id in differences)
    ]
    values, weights, bursts = zip(*told, strict=True) if told else ((), (), ())
    labels = sum(capture.differs and capture.sample_id in differences for capture in draw.captures)
    return SecondLook(np.array(values, np.float64), np.array(weights, np.float64), bursts, labels)
