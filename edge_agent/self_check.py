"""Does a model answer on this device as it answered where it was made?

Int8 kernels differ between processors (without VNNI some saturate), so only this device can tell.
"""

from __future__ import annotations

import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from curate.contracts.release import ModelSpec
from curate.errors import SelfCheckError
from edge_agent.inference import Inference, LoadedModel

_ARRAYS: Final = ("images", "probabilities", "embedding", "tolerance")


@dataclass(frozen=True)
class Golden:
    """Inputs and the answers the release was made with."""

    images: NDArray[np.uint8]
    """[N, H, W, 3]."""
    probabilities: NDArray[np.float32]
    """[N, K]."""
    embedding: NDArray[np.float32]
    """[N, D]."""
    tolerance: float
    """Largest absolute difference of a probability or of an embedding's component."""


def load_golden(path: Path, spec: ModelSpec) -> Golden:
    """Read a golden file (.npz without pickles).

    Raises:
        SelfCheckError: it cannot be read, is empty or does not fit the model's specification.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays: dict[str, NDArray[Any]] = {name: archive[name] for name in _ARRAYS}
        tolerance = float(arrays["tolerance"].reshape(()))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as exc:
        raise SelfCheckError(f"the golden file cannot be read: {exc}") from exc
    golden = Golden(arrays["images"], arrays["probabilities"], arrays["embedding"], tolerance)
    _verify_golden_fits(golden, spec)
    return golden


def verify_model(model: LoadedModel, golden: Golden, *, max_latency_s: float = 5.0) -> None:
    """Accept a model that answers every golden input as expected and in time.

    Raises:
        SelfCheckError: an answer is not finite, of another shape, further off than the tolerance, or the
            median answer takes longer than `max_latency_s`.
    """
    latencies: list[float] = []
    for index, image in enumerate(golden.images):
        start = time.monotonic()
        answer = model.infer(image)
        latencies.append(time.monotonic() - start)
        _verify_answer(answer, golden, index)
    if (median := float(np.median(latencies))) > max_latency_s:
        raise SelfCheckError(f"an answer takes {median:.2f} s here, more than {max_latency_s:.2f} s")


def _verify_golden_fits(golden: Golden, spec: ModelSpec) -> None:
    count = len(golden.images) if golden.images.ndim else 0
    found = (golden.images.shape, golden.probabilities.shape, golden.embedding.shape)
    expected = (
        (count, spec.height, spec.width, spec.channels),
        (count, len(spec.class_names)),
        (count, spec.embedding_dim),
    )
    if not count or found != expected or golden.images.dtype != np.uint8:
        raise SelfCheckError(f"the golden file holds {golden.images.dtype} {found}, the model needs uint8 {expected}")
    if not 0.0 < golden.tolerance < 1.0:  # false for NaN, too
        raise SelfCheckError(f"the golden file's tolerance {golden.tolerance} tolerates everything or nothing")


def _verify_answer(answer: Inference, golden: Golden, index: int) -> None:
    probabilities, embedding = golden.probabilities[index], golden.embedding[index]
    if answer.probabilities.shape != probabilities.shape or answer.embedding.shape != embedding.shape:
        raise SelfCheckError(f"golden input {index}: the answer's shape differs")
    if not (np.isfinite(answer.probabilities).all() and np.isfinite(answer.embedding).all()):
        raise SelfCheckError(f"golden input {index}: the answer is not finite")
    for name, found, expected in (
        ("probability", answer.probabilities, probabilities),
        ("embedding component", answer.embedding, embedding),
    ):
        difference = float(np.abs(found - expected).max())
        if not difference <= golden.tolerance:  # true for NaN, too
            raise SelfCheckError(
                f"golden input {index}: one {name} is off by {difference:.4f}, more than {golden.tolerance:.4f}"
            )
