"""Does a model answer on this device as it answered where it was made?

Int8 kernels differ between processors (without VNNI some saturate), so only this device can tell.
"""

from __future__ import annotations

import errno
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from curate.answers.base import BadOutputError, Floats
from curate.contracts.release import ModelSpec
from curate.errors import SelfCheckError
from edge_agent.models.inference import LoadedModel, find_kind

_IMAGES: Final = "images"
_TOLERANCE: Final = "tolerance"


@dataclass(frozen=True)
class Golden:
    """Inputs and the answers the release was made with."""

    images: NDArray[np.uint8]
    """[N, H, W, 3]."""
    outputs: dict[str, Floats]
    """By output name, each with N rows."""
    tolerance: float
    """The largest difference, as the model's kind measures it, that passes."""

    def answer(self, index: int) -> dict[str, Floats]:
        """Return what the model is expected to answer to one of the images."""
        return {name: array[index] for name, array in self.outputs.items()}


def load_golden(path: Path, spec: ModelSpec) -> Golden:
    """Read a golden file: an .npz without pickles with `images`, `tolerance` and an array for each output.

    Raises:
        SelfCheckError: it cannot be read, is empty or does not fit the model's specification.
    """
    names = (_IMAGES, _TOLERANCE, *find_kind(spec).output_names)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays: dict[str, NDArray[Any]] = {name: archive[name] for name in names}
        tolerance = float(arrays.pop(_TOLERANCE).reshape(()))
    except OSError as exc:  # the disk's fault; EINVAL is what a wrong file leads numpy to
        passes = exc.errno not in (None, errno.EINVAL)
        raise SelfCheckError(f"the golden file cannot be read: {exc}", retryable=passes) from exc
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as exc:
        raise SelfCheckError(f"the golden file cannot be read: {exc}") from exc
    golden = Golden(arrays.pop(_IMAGES), arrays, tolerance)
    _verify_golden_fits(golden, spec)
    return golden


def verify_model(model: LoadedModel, golden: Golden, *, max_latency_s: float = 5.0) -> None:
    """Accept a model that answers every golden input as expected and in time.

    Raises:
        SelfCheckError: an answer is none, further off than the tolerance, or the median answer takes longer
            than `max_latency_s`.
    """
    latencies: list[float] = []
    for index, image in enumerate(golden.images):
        start = time.monotonic()
        answer = model.infer(image)
        latencies.append(time.monotonic() - start)
        difference = _measure(model, answer.outputs, golden, index)
        if not difference <= golden.tolerance:  # true for NaN, too
            raise SelfCheckError(
                f"golden input {index}: the answer is off by {difference:.4f}, more than {golden.tolerance:.4f}"
            )
    if (median := float(np.median(latencies))) > max_latency_s:
        raise SelfCheckError(f"an answer takes {median:.2f} s here, more than {max_latency_s:.2f} s")


def _verify_golden_fits(golden: Golden, spec: ModelSpec) -> None:
    count = len(golden.images) if golden.images.ndim else 0
    expected = (count, spec.height, spec.width, spec.channels)
    if not count or golden.images.shape != expected or golden.images.dtype != np.uint8:
        found = f"{golden.images.dtype} {golden.images.shape}"
        raise SelfCheckError(f"the golden file holds images {found}, the model needs uint8 {expected}")
    rows = {name: array.shape[:1] for name, array in golden.outputs.items()}
    if set(rows.values()) != {(count,)}:
        raise SelfCheckError(f"the golden file holds {count} images and answers of {rows} rows")
    if not 0.0 < golden.tolerance < 1.0:  # false for NaN, too
        raise SelfCheckError(f"the golden file's tolerance {golden.tolerance} tolerates everything or nothing")
    for index in range(count):
        try:
            find_kind(spec).verify_outputs(golden.answer(index), spec)
        except (BadOutputError, TypeError) as exc:  # TypeError: an array of text
            raise SelfCheckError(f"the golden file's answer {index} is none: {exc}") from exc


def _measure(model: LoadedModel, found: dict[str, Floats], golden: Golden, index: int) -> float:
    try:
        model.kind.verify_outputs(found, model.spec)
        return model.kind.golden_difference(found, golden.answer(index))
    except BadOutputError as exc:
        raise SelfCheckError(f"golden input {index}: {exc}") from exc
