"""Between the catalog's values and its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from sqlalchemy import Row

from curate.catalog.database import EncodedJson
from curate.catalog.models import (
    BatchRow,
    BatchStatus,
    FeedbackRow,
    QuarantineRow,
    Round,
    RoundPhase,
    Sample,
    SampleStatus,
)
from curate.contracts.prediction import Prediction
from curate.contracts.telemetry import DeviceCounters

_WIRE_FLOAT = np.dtype("<f2")
_PREDICTION: TypeAdapter[Prediction] = TypeAdapter(Prediction)
_DERIVED = ("prediction_id",)


def row_of_sample(sample: Sample) -> dict[str, Any]:
    """The embedding goes into a column of its own, as little-endian float16, and out of the prediction's JSON."""
    prediction = sample.prediction
    return {
        **vars(sample),
        "status": sample.status.value,
        "prediction_id": None if prediction is None else prediction.prediction_id,
        "prediction": None if prediction is None else EncodedJson(prediction.model_dump_json(exclude={"embedding"})),
        "embedding": None if sample.embedding is None else sample.embedding.astype(_WIRE_FLOAT).tobytes(),
        "reasons": list(sample.reasons),
    }


def sample_of_row(row: Row[Any]) -> Sample:
    """The reverse; `prediction.embedding` is None, `embedding` is float32 [D]."""
    values = dict(row._mapping)
    for name in _DERIVED:
        del values[name]
    prediction = values["prediction"]
    values["prediction"] = None if prediction is None else _PREDICTION.validate_python(prediction)
    values["embedding"] = _embedding(values["embedding"])
    values["reasons"] = tuple(values["reasons"])
    values["status"] = SampleStatus(values["status"])
    return Sample(**values)


def _embedding(raw: bytes | None) -> NDArray[np.float32] | None:
    return None if raw is None else np.frombuffer(raw, _WIRE_FLOAT).astype(np.float32)


def row_of_batch(batch: BatchRow) -> dict[str, Any]:
    """One row of `batches`."""
    counters = None if batch.counters is None else batch.counters.model_dump(mode="json")
    return {**vars(batch), "status": batch.status.value, "counters": counters}


def batch_of_row(row: Row[Any]) -> BatchRow:
    """The reverse of `row_of_batch`."""
    values = dict(row._mapping)
    values["status"] = BatchStatus(values["status"])
    if values["counters"] is not None:
        values["counters"] = DeviceCounters.model_validate(values["counters"])
    return BatchRow(**values)


def feedback_of_row(row: Row[Any]) -> FeedbackRow:
    """One verdict."""
    return FeedbackRow(**row._mapping)


def quarantine_of_row(row: Row[Any]) -> QuarantineRow:
    """One refusal."""
    return QuarantineRow(**row._mapping)


def round_of_row(row: Row[Any]) -> Round:
    """One round."""
    values = dict(row._mapping)
    values["phase"] = RoundPhase(values["phase"])
    return Round(**values)
