"""The kinds of models whose answers can be read. A third kind is one more line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from curate.answers.base import AnswerKind
from curate.answers.classification import CLASSIFICATION
from curate.answers.detection import DETECTION

ANSWERS: Final[Mapping[str, AnswerKind]] = {"classification": CLASSIFICATION, "detection": DETECTION}
"""By `ModelSpec.kind`."""

SCORE_NAMES: Final = frozenset(name for kind in ANSWERS.values() for name in kind.score_names)
"""Every score that some kind of model has."""
