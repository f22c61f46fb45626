"""Which captures are worth holding against the float model, and what was found of them, kept from round to round.

Pure. The distance itself is the kind's (`AnswerKind.disagreement`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Self

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from curate.errors import SelectionError
from curate.selection.base import Float64Array, IntArray

_FORM = TypeAdapter(dict[str, Annotated[float, Field(ge=0.0, le=1.0)]])


def rows_to_compare(uncertainty: Float64Array, told: Float64Array, limit: int) -> IntArray:
    """Return the rows of the `limit` least sure captures that nobody has compared yet, least sure first.

    `uncertainty` and `told` are float64 [N]; `told` is NaN where no device measured the disagreement. The work goes
    where a choice is likely; what int8 is sure of and float is not is found only within the limit.
    """
    open_rows = np.flatnonzero(np.isnan(told))
    return np.asarray(open_rows[np.argsort(-uncertainty[open_rows], kind="stable")][: max(limit, 0)], np.int64)


@dataclass(frozen=True)
class Compared:
    """How far int8 is from float on each capture that one model was asked about, by sample id, in [0, 1]."""

    by_id: Mapping[str, float] = field(default_factory=dict)

    def joined(self, found: Mapping[str, float], pool: Collection[str]) -> Self:
        """Return what is known with what was found now; what has left the pool is forgotten."""
        both = {**self.by_id, **found}
        return type(self)({sample_id: both[sample_id] for sample_id in pool if sample_id in both})

    def to_bytes(self) -> bytes:
        """Return the values as JSON."""
        return _FORM.dump_json(dict(self.by_id))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            SelectionError: it is something else.
        """
        try:
            return cls(_FORM.validate_json(raw))
        except ValidationError as exc:
            raise SelectionError(f"the stored disagreements cannot be read: {exc.error_count()} errors") from exc
