"""AP50 over what people saw. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curate.metrics.average_precision import IOU_THRESHOLDS, DetectionEvidence
from flows.sandbox.journal import Sighting


def average_precision(sightings: Sequence[Sighting]) -> float | None:
    """Return AP50 over the frames seen, each matched when it was seen; None where nobody was there."""
    if not sum(sighting.expected for sighting in sightings):
        return None
    rows = [(score, right, frame) for frame, each in enumerate(sightings) for score, right in each.answers]
    scores = np.array([score for score, _, _ in rows], np.float64)
    order = np.argsort(-scores, kind="stable")
    right = np.array([right for _, right, _ in rows], np.bool_)[order]
    evidence = DetectionEvidence(
        frame=np.array([frame for _, _, frame in rows], np.int64)[order],
        class_index=np.zeros(len(rows), np.int64),
        scores=scores[order],
        # People compare at IoU 0.5, the first of COCO's thresholds; AP50 looks at no other.
        matched=np.repeat(right[None, :], len(IOU_THRESHOLDS), axis=0),
        truths=np.array([[sighting.expected] for sighting in sightings], np.int64),
    )
    return evidence.value()
