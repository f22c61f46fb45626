"""Static int8 quantisation: try a few ways, keep the artefact that follows the float model best.

Which way is best cannot be told in advance (per-channel can lose to per-tensor; percentile and entropy can clip what
matters), so every candidate is built, run in ONNX Runtime and compared with the float model on frames it was not
calibrated on.

Why weights keep 7 bits by default. x86 processors without VNNI multiply uint8 activations by int8 weights with an
instruction (vpmaddubsw) that adds two neighbouring products into 16 bits: 255 * (|w1| + |w2|) overflows 32767 as soon
as |w1| + |w2| > 128, silently. `reduce_range` holds |w| <= 64, where the sum cannot overflow, so the same file is exact
on every x86 and ARM processor. Unsigned 8-bit weights would be safe too, but give up symmetric weights, which need no
zero-point correction; signed activations have no fast kernel on x86. A fleet whose every processor has VNNI (or is ARM)
may ask for the eighth bit with `every_device_has_vnni`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from curate.compression.inference import OnnxModel
from curate.compression.kinds import kind_of
from curate.compression.parity import Parity
from curate.errors import CompressionError

_log = logging.getLogger(__name__)

_WEIGHTED_TYPES = ("Conv", "Gemm", "MatMul")
_QUANTISED_TYPES = (*_WEIGHTED_TYPES, "MaxPool", "AveragePool")
_LINEAR_TYPES = ("Gemm", "MatMul")
_LIGHT_SHARE = 0.05
_LARGEST_CHUNK = 32
_CHUNK_PIXELS = 2**18
_FEWEST_IMAGES = 8


@dataclass(frozen=True)
class QuantizationScheme:
    """One way to quantise: how activation ranges are found, and whether every channel has its own weight scale."""

    calibration: str
    per_channel: bool
    float_stem: int = 0
    """So many of the first convolutions stay in float, if they are light: that keeps what dark frames have to say."""

    def __str__(self) -> str:
        """For logs and reports, for example `minmax/per-channel`."""
        stem = "/float-stem" if self.float_stem else ""
        return f"{self.calibration}/{'per-channel' if self.per_channel else 'per-tensor'}{stem}"


DEFAULT_SCHEMES = tuple(
    QuantizationScheme(calibration, per_channel, float_stem=2)
    for calibration, per_channel in itertools.product(("minmax", "percentile", "entropy"), (True, False))
)
LARGE_FRAME_SCHEMES = tuple(QuantizationScheme("minmax", per_channel, float_stem=5) for per_channel in (True, False))
"""Histograms of every activation of large frames take minutes. Their first convolution is a small part of the work."""
_LARGE_FRAME_PIXELS = 128 * 128
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


@dataclass(frozen=True)
class QuantizationResult:
    """The artefact that was kept: its scheme, its parity with float, sizes in bytes, and what else was tried.

    `saturation_share` is the share of neighbouring weight pairs that would overflow on x86 without VNNI; 0 means the
    file is safe everywhere.
    """

    scheme: QuantizationScheme
    parity: Parity
    float_bytes: int
    int8_bytes: int
    saturation_share: float
    tried: tuple[tuple[QuantizationScheme, Parity], ...]

    @property
    def ratio(self) -> float:
        """Size of the int8 file as a share of the float file."""
        return self.int8_bytes / self.float_bytes


def quantize_int8(
    float_path: Path,
    calibration_images: NDArray[np.uint8],
    out_path: Path,
    validation_images: NDArray[np.uint8] | None = None,
    *,
    schemes: Sequence[QuantizationScheme] | None = None,
    every_device_has_vnni: bool = False,
    max_calibration_images: int = 256,
    threads: int = 2,
) -> QuantizationResult:
    """Quantise `float_path` to `out_path`, keeping the scheme with the smallest divergence, then the best agreement.

    `schemes` are by default all for small frames and the quick ones for large frames.

    Images are uint8 [N, H, W, 3], unlabelled, as the cameras send them. Candidates are judged on
    `validation_images`; without any, on a third of the calibration images held back. Deterministic. Raises
    CompressionError for fewer than 8 images to calibrate on, or when no scheme gives a model that runs.
    """
    calibration, held_back = _split(calibration_images, validation_images, max_calibration_images)
    original = OnnxModel(float_path, threads=threads)
    kind, reference = kind_of(original), original.run(held_back)
    tried: list[tuple[QuantizationScheme, Parity]] = []
    with tempfile.TemporaryDirectory(prefix="gleaner-int8-") as folder:
        prepared = _preprocess(float_path, Path(folder))
        for scheme in schemes or _schemes_for(calibration):
            candidate = _candidate_path(Path(folder), scheme)
            if _try_scheme(prepared, scheme, calibration, candidate, every_device_has_vnni):
                answers = OnnxModel(candidate, threads=threads).run(held_back)
                tried.append((scheme, kind.evaluate_parity(reference, answers)))
        if not tried:
            raise CompressionError("no quantisation scheme gave a model that runs")
        scheme, parity = min(tried, key=_rank)
        payload = _candidate_path(Path(folder), scheme).read_bytes()
    _write_atomically(payload, out_path)
    saturation = saturation_share(onnx.load_model_from_string(payload))
    _log.info("quantised", extra={"scheme": str(scheme), "agreement": parity.agreement})
    return QuantizationResult(scheme, parity, float_path.stat().st_size, len(payload), saturation, tuple(tried))


def _schemes_for(images: NDArray[np.uint8]) -> Sequence[QuantizationScheme]:
    large = images.shape[1] * images.shape[2] > _LARGE_FRAME_PIXELS
    return LARGE_FRAME_SCHEMES if large else DEFAULT_SCHEMES


def _rank(tried: tuple[QuantizationScheme, Parity]) -> tuple[float, float]:
    """Smallest divergence first, then the best agreement; what cannot be compared comes last.

    A few hundred frames hold a handful of changed winners: a count that small ranks schemes by chance.
    """
    agreement, divergence = tried[1].agreement, tried[1].divergence
    return (float("inf"), 0.0) if np.isnan(divergence) else (divergence, -agreement)


def saturation_share(model: onnx.ModelProto) -> float:
    """Share of neighbouring int8 weight pairs with |w1| + |w2| > 128, over all quantised layers; 0 without any.

    Neighbours are taken along the reduction axis, as the kernel multiplies them, within one output channel.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    risky = pairs = 0
    for name, transposed in _quantised_weights(model):
        weights = np.abs(onnx.numpy_helper.to_array(tensors[name]).astype(np.int64))
        rows = weights.reshape(weights.shape[0], -1)
        rows = rows.T if transposed else rows
        sums = rows[:, :-1] + rows[:, 1:]
        risky, pairs = risky + int((sums > 128).sum()), pairs + sums.size
    return risky / pairs if pairs else 0.0


class _ChunkedReader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds calibration images in batches within a range that ONNX Runtime moves along.

    Histogram calibrators keep every activation of a range in memory, so the range has to stay small.
    """

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images
        self._chunk = _chunk_of(images)
        self._cursor, self._end = 0, len(images)

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._cursor, self._end = start_index, end_index

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        if self._cursor >= self._end:
            return None
        batch = self._images[self._cursor : min(self._end, self._cursor + self._chunk)]
        self._cursor += len(batch)
        return {"images": batch}


def _chunk_of(images: NDArray[np.uint8]) -> int:
    """How many images to calibrate on at a time: large frames have large activations."""
    return min(_LARGEST_CHUNK, max(1, _CHUNK_PIXELS // (images.shape[1] * images.shape[2])))


def _split(
    images: NDArray[np.uint8], validation: NDArray[np.uint8] | None, limit: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images to calibrate on, in whole chunks, and images to judge on. Evenly spread, because frames come in bursts."""
    if validation is None or len(validation) == 0:
        judged = np.arange(len(images)) % 3 == 2
        images, validation = images[~judged], images[judged]
    if len(images) < _FEWEST_IMAGES or len(validation) == 0:
        raise CompressionError(
            f"{len(images)} calibration images are too few", hint=f"give at least {2 * _FEWEST_IMAGES} frames"
        )
    count = min(limit, len(images))
    if count > (chunk := _chunk_of(images)):
        count -= count % chunk
    return images[np.linspace(0, len(images) - 1, count).round().astype(np.int64)], validation


def _preprocess(float_path: Path, folder: Path) -> Path:
    prepared = folder / "prepared.onnx"
    try:
        # Symbolic shape inference is for transformers; fusion has happened at export.
        quant_pre_process(str(float_path), str(prepared), skip_symbolic_shape=True)
    except (RuntimeError, ValueError) as exc:
        raise CompressionError(f"{float_path.name} cannot be prepared for quantisation: {exc}") from exc
    return prepared


def _try_scheme(
    prepared: Path,
    scheme: QuantizationScheme,
    calibration: NDArray[np.uint8],
    out_path: Path,
    every_device_has_vnni: bool,
) -> bool:
    """Write one candidate; False when ONNX Runtime cannot build it: the other schemes still get their chance."""
    chunk = min(_chunk_of(calibration), len(calibration))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the calibrators print their progress
            quantize_static(
                str(prepared),
                str(out_path),
                _ChunkedReader(calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED_TYPES),
                nodes_to_exclude=_kept_in_float(onnx.load(prepared), scheme),
                per_channel=scheme.per_channel,
                reduce_range=not every_device_has_vnni,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=_METHODS[scheme.calibration],
                # Schemes that share a method share its ranges: they are measured once.
                calibration_cache_path=out_path.with_name(f"{scheme.calibration}.ranges.json"),
                extra_options={"CalibStridedMinMax": chunk, "CalibPercentile": 99.99},
            )
        onnx.checker.check_model(str(out_path))
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as exc:
        _log.warning("quantisation scheme failed", extra={"scheme": str(scheme), "reason": str(exc)})
        return False
    return True


def _kept_in_float(model: onnx.ModelProto, scheme: QuantizationScheme) -> list[str]:
    return [*_first_convolutions(model, scheme.float_stem), *_small_linear_layers(model)]


def _first_convolutions(model: onnx.ModelProto, most: int) -> list[str]:
    """The stem and what follows it closely, as long as it holds under 5 % of the weights.

    A dark frame uses few of the levels that bright ones have calibrated, and what is rounded away first is lost to all
    that follows. docs/adr/0007 has what it won: up to 7 points for detectors at dusk with five, half of the changed
    answers of the small classifier with two.
    """
    sizes = _weight_counts(model)
    # ONNX keeps nodes in topological order.
    first = [node for node in model.graph.node if node.op_type == "Conv"][:most]
    held = np.cumsum([sum(sizes.get(name, 0) for name in node.input) for node in first])
    light = _LIGHT_SHARE * sum(sizes.values())
    return [node.name for node, weights in zip(first, held, strict=True) if weights < light]


def _small_linear_layers(model: onnx.ModelProto) -> list[str]:
    """Linear layers with under 1 % of the weights: the class head. In float it costs few bytes and keeps confidences.

    What follows it (temperature, softmax, length of the embedding) is no convolution or product: it stays float anyway.
    """
    sizes = _weight_counts(model)
    total = sum(sizes.values())
    linear = [node for node in model.graph.node if node.op_type in _LINEAR_TYPES]
    return [node.name for node in linear if sum(sizes.get(name, 0) for name in node.input) < 0.01 * total]


def _weight_counts(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}


def _quantised_weights(model: onnx.ModelProto) -> list[tuple[str, bool]]:
    """Names of int8 weight tensors, with whether their output channels lie along the last axis instead of the first."""
    source = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    kept = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    found = []
    for node in model.graph.node:
        name = source.get(node.input[1], "") if node.op_type in _WEIGHTED_TYPES else ""
        if name in kept:
            swapped = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            found.append((name, node.op_type in _LINEAR_TYPES and not swapped))
    return found


def _candidate_path(folder: Path, scheme: QuantizationScheme) -> Path:
    return folder / f"{str(scheme).replace('/', '.')}.onnx"


def _write_atomically(payload: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(payload)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
