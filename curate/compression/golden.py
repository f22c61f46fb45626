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

from curate.compression.inference import OnnxModel, Outputs
from curate.compression.kinds import CompressionKind, kind_of
from curate.errors import CompressionError

LEAST_TOLERANCE, LARGEST_TOLERANCE = 0.05, 0.15


def build_golden(int8_path: Path, images: NDArray[np.uint8], n: int = 16) -> bytes:
    """The self-check of a release, an .npz without pickled objects.

    Arrays: `images` uint8 [n, H, W, 3], every output of the model float32 [n, ...] under its name, and `tolerance`
    float32 []. A device passes when no frame's answer differs by more than `tolerance`, as the kind measures
    difference. The kind chooses the frames: mostly ones the model is sure of, and some where mistakes show first. Fewer
    than `n` images give fewer frames. The same inputs give the same bytes. Raises CompressionError without images, or
    when this very machine is too far from its own float reference to set an example.
    """
    if len(images) == 0 or n < 1:
        raise CompressionError("golden inputs need at least one image")
    model = OnnxModel(int8_path)
    kind = kind_of(model)
    frames = np.ascontiguousarray(images[kind.choose_golden(model.run(images), n)])
    # Batches change no result, but a device runs single frames: so does the reference.
    expected = model.run(frames, batch_size=1)
    tolerance = _tolerance(kind, expected, OnnxModel(int8_path, optimise=False).run(frames, batch_size=1))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, images=frames, tolerance=np.float32(tolerance), **expected)
    return buffer.getvalue()


def _tolerance(kind: CompressionKind, expected: Outputs, emulated: Outputs) -> float:
    difference = kind.difference(emulated, expected)
    if difference > LARGEST_TOLERANCE:
        raise CompressionError(
            f"integer and float arithmetic differ by {difference:.2f} on golden frames",
            hint="this processor probably overflows int8 products: keep every_device_has_vnni off",
        )
    return float(np.clip(3.0 * difference, LEAST_TOLERANCE, LARGEST_TOLERANCE))
