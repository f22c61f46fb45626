"""What an estimate knows of captures, read from the catalog's samples: one line a kind; pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np

from curate.catalog.models import Sample
from curate.contracts.prediction import ClassificationPrediction, Prediction
from curate.errors import SelectionError
from curate.metrics.evidence import Float64Array
from curate.selection.base import BoolArray
from curate.selection.estimate.slices import time_of_day


@dataclass(frozen=True, eq=False)
class Captures:
    """N captures as one release answered them. `confidence` float64 [N] is the probability of the predicted class and
    `classes` [N] its name, None for kinds whose frames have none; `objected` bool [N] says that a person called the
    answer wrong.
    """

    devices: tuple[str, ...]
    cameras: tuple[str, ...]
    at: tuple[datetime, ...]
    bursts: tuple[str, ...]
    confidence: Float64Array | None
    classes: tuple[str, ...] | None
    objected: BoolArray

    def __len__(self) -> int:
        return len(self.devices)

    @property
    def eyes(self) -> tuple[str, ...]:
        """Which camera of which device each is from."""
        return tuple(f"{device}/{camera}" for device, camera in zip(self.devices, self.cameras, strict=True))

    def columns(self) -> dict[str, tuple[str, ...]]:
        """Return the ways to slice them; by camera only where a device has several."""
        columns = {"device": self.devices, "time of day": tuple(map(time_of_day, self.at))}
        if len(set(self.eyes)) > len(set(self.devices)):
            columns |= {"camera": self.eyes}
        return columns if self.classes is None else columns | {"predicted class": self.classes}


def read_captures(
    samples: Sequence[Sample],
    bursts: Mapping[str, str],
    objected: Collection[str],
    kind: str,
    class_names: tuple[str, ...],
) -> Captures:
    """Read N samples; `bursts` names the burst of each id, `objected` holds the ids that a person called wrong.

    Raises:
        SelectionError: a sample has no prediction, or one that does not fit the kind and the classes.
    """
    answer = ANSWERED.get(kind)
    answers = [answer(_prediction(sample), class_names) for sample in samples] if answer else None
    return Captures(
        devices=tuple(sample.device_id for sample in samples),
        cameras=tuple(sample.camera_id for sample in samples),
        at=tuple(sample.captured_at for sample in samples),
        bursts=tuple(bursts[sample.sample_id] for sample in samples),
        confidence=None if answers is None else np.array([confidence for _, confidence in answers], np.float64),
        classes=None if answers is None else tuple(name for name, _ in answers),
        objected=np.array([sample.sample_id in objected for sample in samples], np.bool_),
    )


def _prediction(sample: Sample) -> Prediction:
    if sample.prediction is None:
        raise SelectionError(f"{sample.sample_id} was never predicted")
    return sample.prediction


def _answer_class(prediction: Prediction, class_names: tuple[str, ...]) -> tuple[str, float]:
    if not isinstance(prediction, ClassificationPrediction):
        raise SelectionError(f"a {prediction.kind} prediction names no one class")
    if len(prediction.probabilities) != len(class_names):
        raise SelectionError(f"{len(prediction.probabilities)} probabilities for {len(class_names)} classes")
    return class_names[prediction.class_index], max(prediction.probabilities)


ANSWERED: Final[Mapping[str, Callable[[Prediction, tuple[str, ...]], tuple[str, float]]]] = {
    "classification": _answer_class
}
"""The one class that a frame was given, and how sure the model was; kinds that are not here have no such thing."""
