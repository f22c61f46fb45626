"""How far the int8 model on the devices is from the float one it was made of, capture by capture.

What a device measured counts. For the least sure of the other captures the incumbent's float file is run here, and its
answer is held against the int8 one: the device's own where it ran the incumbent, else the one computed here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curate.answers.base import BadOutputError
from curate.answers.registry import ANSWERS
from curate.catalog.models import ModelRow, Sample
from curate.compression.inference import OnnxModel
from curate.errors import BlobNotFoundError, CatalogError, SelectionError
from curate.selection.quantisation import Compared, rows_to_compare
from curate.storage.ports import BlobStore
from flows._views import COMPUTED, load_model, predict_pictured, view_samples
from flows._wiring import Services

log = logging.getLogger(__name__)

DISAGREEMENT = "disagreement"
"""The score under which a device says how far its int8 model was from the float one it was made of."""
PICTURES_AT_ONCE = 64
"""Decoded pictures of all that are compared would not fit into memory."""


def gather_disagreement(
    wired: Services,
    incumbent: ModelRow,
    pool: Sequence[str],
    told: NDArray[np.float64],
    uncertainty: NDArray[np.float64],
) -> NDArray[np.float64] | None:
    """Return how far int8 is from float on each of N captures, float64 [N]: NaN where nobody knows, None where nobody
    knows it of any. `told` float64 [N] is what devices measured, NaN where they did not, `uncertainty` float64 [N] how
    unsure the int8 model was.

    Nothing is computed while the policy gives it no weight.

    Raises:
        StorageUnavailableError: the bucket cannot be reached.
    """
    policy = wired.settings.selection
    if policy.disagreement_weight > 0:
        rows = rows_to_compare(uncertainty, told, policy.max_compared).tolist()
        known = _compare_new(wired, incumbent, [pool[row] for row in rows], pool)
        untold = np.array([known.by_id.get(sample_id, np.nan) for sample_id in pool], np.float64)
        told = np.where(np.isnan(told), untold, told)
    return None if np.isnan(told).all() else told


def reported(samples: Sequence[Sample], incumbent: ModelRow) -> NDArray[np.float64]:
    """Return what devices measured with the incumbent, float64 [N], NaN where they did not."""
    told = (
        sample.prediction.scores.get(DISAGREEMENT, np.nan)
        if sample.prediction is not None and sample.release_id == incumbent.release_id
        else np.nan
        for sample in samples
    )
    return np.fromiter(told, np.float64, len(samples))


def fetch_compared(store: BlobStore, model_id: str) -> Compared:
    """Return what earlier rounds under this model found. It can be found again, so a damaged file counts as none."""
    try:
        return Compared.from_bytes(store.get(_compared_key(model_id)))
    except BlobNotFoundError:
        return Compared()
    except SelectionError as exc:
        log.warning("captures are compared anew: %s", exc)
        return Compared()


def _compare_new(wired: Services, incumbent: ModelRow, wanted: Sequence[str], pool: Sequence[str]) -> Compared:
    """Return what is known of the pool after comparing those wanted captures that no earlier round compared."""
    known = fetch_compared(wired.store, incumbent.model_id)
    new = [sample_id for sample_id in wanted if sample_id not in known.by_id]
    if not new:
        return known
    if "float" not in incumbent.artifacts:
        log.warning("%s has no float file: only what devices report says how far int8 is from it", incumbent.model_id)
        return known
    log.info("holding %d captures against the float model", len(new))
    teacher = load_model(wired, incumbent, role="float")
    found: dict[str, float] = {}
    for start in range(0, len(new), PICTURES_AT_ONCE):
        found |= _compare(wired, incumbent, teacher, wired.catalog.samples(ids=new[start : start + PICTURES_AT_ONCE]))
    known = known.joined(found, pool)
    wired.store.put(_compared_key(incumbent.model_id), known.to_bytes())
    return known


def _compare(wired: Services, incumbent: ModelRow, teacher: OnnxModel, samples: Sequence[Sample]) -> dict[str, float]:
    """Return the disagreement by sample id. A capture that cannot be compared is left out: none is worth a stop."""
    kind = ANSWERS[teacher.kind]
    try:
        said = view_samples(wired, incumbent, samples).predictions
        original = predict_pictured(wired, teacher, COMPUTED, samples).predictions
        answers = zip(samples, said, original, strict=True)
        return {sample.sample_id: round(kind.disagreement(ours, float_), 6) for sample, ours, float_ in answers}
    except (BlobNotFoundError, CatalogError, BadOutputError) as exc:
        if len(samples) > 1:
            return {
                name: value for each in samples for name, value in _compare(wired, incumbent, teacher, [each]).items()
            }
        log.warning("%s is not compared with the float model: %s", samples[0].sample_id, exc)
        return {}


def _compared_key(model_id: str) -> str:
    """Beside the model's cells; both of its files are there for good, so what was found stays true."""
    return f"models/{model_id}.disagreement.json"
