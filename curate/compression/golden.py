"""Golden inputs: what a device runs before it trusts a model on its own processor.

How large may the difference be? The integer sums of an int8 graph are exact on every processor (see `quantize` on why
they cannot overflow), so a sound device differs only where a float multiplication rounds the other way and an
activation lands on the neighbouring one of its 256 levels. A broken one (overflowing products, a damaged file, a wrong
kernel) is far off, on many frames at once. The runtime can show the size of such rounding: run with every optimisation
off, it computes the same graph in float arithmetic, which is further from the optimised integer kernels than two
processors are from each other. The tolerance is three times that difference, within 0.05 to 0.15. At 0.15, a frame
whose winner leads by more than 0.3 keeps its winner; for frames without such a lead only the probabilities are held,
because there an equal top-1 would be luck.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate.compression.inference import OnnxClassifier, Predictions
from curate.errors import CompressionError

LEAST_TOLERANCE, LARGEST_TOLERANCE = 0.05, 0.15


def build_golden(int8_path: Path, images: NDArray[np.uint8], n: int = 16) -> bytes:
    """The self-check of a release, an .npz without pickled objects.

    Arrays: `images` uint8 [n, H, W, 3], `probabilities` float32 [n, K], `embedding` float32 [n, D] and
    `tolerance` float32 []. A device passes when no probability and no embedding component differs by more than
    `tolerance`. Three quarters of the frames are ones the model is sure of, spread over the classes it predicts; the
    rest it is least sure of, where mistakes show first. Fewer than `n` images give fewer frames. The same inputs give
    the same bytes. Raises CompressionError without images, or when this very machine is too far from its own float
    reference to set an example.
    """
    if len(images) == 0 or n < 1:
        raise CompressionError("golden inputs need at least one image")
    everything = OnnxClassifier(int8_path).predict(images)
    chosen = choose_golden(everything.probabilities, n)
    frames = np.ascontiguousarray(images[chosen])
    # Batches change no result, but a device runs single frames: so does the reference.
    expected = OnnxClassifier(int8_path).predict(frames, batch_size=1)
    tolerance = _tolerance(expected, OnnxClassifier(int8_path, optimise=False).predict(frames, batch_size=1))
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        images=frames,
        probabilities=expected.probabilities,
        embedding=expected.embeddings,
        tolerance=np.float32(tolerance),
    )
    return buffer.getvalue()


def choose_golden(probabilities: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Indices of at most `n` rows: three quarters the surest, class by class in turn, then the least sure.

    Sure and unsure are measured by the margin between the two largest of `probabilities` [N, K].
    """
    ordered = np.sort(probabilities, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    predicted = probabilities.argmax(axis=1)
    by_margin = np.argsort(-margin, kind="stable")
    rank_in_class = np.empty(len(margin), dtype=np.int64)
    for name in np.unique(predicted):
        members = by_margin[predicted[by_margin] == name]
        rank_in_class[members] = np.arange(len(members))
    surest_first = np.lexsort((-margin, rank_in_class))
    sure = surest_first[: n - n // 4]
    unsure = [index for index in by_margin[::-1] if index not in set(sure.tolist())][: n - len(sure)]
    return np.concatenate([sure, np.asarray(unsure, dtype=np.int64)])


def _tolerance(expected: Predictions, emulated: Predictions) -> float:
    difference = max(
        float(np.abs(expected.probabilities - emulated.probabilities).max()),
        float(np.abs(expected.embeddings - emulated.embeddings).max()),
    )
    if difference > LARGEST_TOLERANCE:
        raise CompressionError(
            f"integer and float arithmetic differ by {difference:.2f} on golden frames",
            hint="this processor probably overflows int8 products: keep every_device_has_vnni off",
        )
    return float(np.clip(3.0 * difference, LEAST_TOLERANCE, LARGEST_TOLERANCE))
