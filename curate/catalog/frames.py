"""Samples as tables for reports. The only home of pandas."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pandas as pd
from pandas.tseries.frequencies import to_offset

from curate.catalog.models import Sample

_COLUMNS = (
    "sample_id",
    "device_id",
    "camera_id",
    "captured_at",
    "ingested_at",
    "release_id",
    "status",
    "image_bytes",
    "random_probability",
    "inclusion_probability",
)


def samples_frame(samples: Sequence[Sample]) -> pd.DataFrame:
    """One row a sample, indexed 0..N-1, without pictures, predictions and embeddings; `arms` is `a+b`."""
    frame = pd.DataFrame([{name: getattr(sample, name) for name in _COLUMNS} for sample in samples], columns=_COLUMNS)
    frame["status"] = frame["status"].astype(str)
    for name in ("captured_at", "ingested_at"):
        frame[name] = pd.to_datetime(frame[name], utc=True)
    frame["arms"] = ["+".join(sample.arms) for sample in samples]
    return frame


def captures_by_arm(samples: Sequence[Sample]) -> pd.DataFrame:
    """Captures counted by device (rows) and arm (columns); one kept by two arms counts under both."""
    pairs = [(sample.device_id, arm) for sample in samples for arm in sample.arms]
    frame = pd.DataFrame(pairs, columns=["device_id", "arm"])
    return pd.crosstab(frame["device_id"], frame["arm"])


def captures_over_time(samples: Sequence[Sample], bin_width: timedelta) -> pd.DataFrame:
    """Captures counted by time bin (rows, the bin's start) and device (columns); empty bins between are 0."""
    frame = samples_frame(samples)
    bins = frame["captured_at"].dt.floor(pd.Timedelta(bin_width))
    counts = pd.crosstab(bins, frame["device_id"])
    return counts if counts.empty else counts.asfreq(to_offset(bin_width), fill_value=0)
