"""Make the trained candidate fit for a device: one ONNX file, int8, with golden answers and its measured cost."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prefect import flow

from curate.catalog.models import ModelRow, Sample, SampleStatus, Split
from curate.compression.export import export_onnx
from curate.compression.golden import build_golden
from curate.compression.inference import OnnxModel, measure_latency
from curate.compression.kinds import kind_of
from curate.compression.quantize import quantize_int8
from flows._blobs import put_model_file
from flows._frames import fetch_frames
from flows._stage import stage_task
from flows._wiring import Services, services
from flows.train_candidate import fetch_trained, load_split, require_dataset, require_model

FEWEST_PARITY_IMAGES = 32
MAX_CALIBRATION_IMAGES, CALIBRATION_PIXELS = 256, 2**22
MAX_PARITY_IMAGES, PARITY_PIXELS = 1500, 2**23
"""As many images as tell enough, and for large frames as many as can be run in a minute."""


@flow(name="compress-candidate")
def compress_candidate(model_id: str) -> dict[str, Any]:
    """Export, quantise and measure the candidate; return its metrics."""
    return compress(model_id)


@stage_task("export, quantise, measure")
def compress(model_id: str) -> dict[str, Any]:
    """Write the int8 and float files and the golden answers beside the weights. A compressed model stays as it is."""
    wired = services()
    model = require_model(wired, model_id)
    if "int8" in model.artifacts:
        return model.metrics
    images = _field_images(wired, model)
    with tempfile.TemporaryDirectory() as folder:
        float_path, int8_path = Path(folder) / "model-float.onnx", Path(folder) / "model-int8.onnx"
        export_onnx(fetch_trained(wired, model), float_path)
        quantised = quantize_int8(float_path, images.calibration, int8_path, images.choice)
        metrics = _measure(float_path, int8_path, images.probe)
        files = {
            "float": ("model-float.onnx", float_path.read_bytes()),
            "int8": ("model-int8.onnx", int8_path.read_bytes()),
            "golden": ("golden.npz", build_golden(int8_path, images.probe)),
        }
    artifacts = {role: put_model_file(wired.store, name, data) for role, (name, data) in files.items()}
    return wired.catalog.update_model(
        model_id,
        artifacts=artifacts,
        metrics={**metrics, "scheme": str(quantised.scheme), "saturation_share": quantised.saturation_share},
    ).metrics


def _measure(float_path: Path, int8_path: Path, images: NDArray[np.uint8]) -> dict[str, Any]:
    original, int8 = OnnxModel(float_path, threads=2), OnnxModel(int8_path, threads=2)
    kind = kind_of(original)
    parity = kind.evaluate_parity(original.run(images), int8.run(images))
    return {
        "float_bytes": float_path.stat().st_size,
        "int8_bytes": int8_path.stat().st_size,
        "float_p50_ms": measure_latency(float_path, images[0]),
        "int8_p50_ms": measure_latency(int8_path, images[0]),
        "parity": parity.agreement,
        f"parity_{kind.agreement_name}": parity.agreement,
        "parity_divergence": parity.divergence,
        "parity_images": parity.n,
    }


@dataclass(frozen=True, eq=False)
class _FieldImages:
    """Disjoint images, uint8 [N, H, W, 3]: to calibrate on, to choose the scheme on, and to measure parity on.

    Choosing on the very images that are reported would flatter the choice.
    """

    calibration: NDArray[np.uint8]
    choice: NDArray[np.uint8]
    probe: NDArray[np.uint8]


def _field_images(wired: Services, model: ModelRow) -> _FieldImages:
    """What the field looks like now is best for all three, so the newest unlabelled captures come first.

    Parity is about the frames that the cameras see, so what the random arm kept measures it: the other captures are
    there because the model was unsure, where a hair decides. While there is little of either, the labelled training
    images fill up.
    """
    pixels = wired.settings.labels.height * wired.settings.labels.width
    calibrating = min(MAX_CALIBRATION_IMAGES, max(16, CALIBRATION_PIXELS // pixels))
    measuring = min(MAX_PARITY_IMAGES, max(32, PARITY_PIXELS // pixels))
    pool = sorted(wired.catalog.samples(status=SampleStatus.POOL), key=lambda s: s.captured_at, reverse=True)
    rng = np.random.default_rng(model.round_number)
    drawn = [sample for sample in pool if sample.random_probability is not None][:measuring]
    taken = {sample.sample_id for sample in drawn}
    recent = [sample for sample in pool if sample.sample_id not in taken][: 4 * calibrating]
    field = fetch_frames(wired, _shuffled(recent, rng)[: 2 * calibrating]).images
    probe = fetch_frames(wired, _shuffled(drawn, rng)).images
    calibration, choice = field[:calibrating], field[calibrating:]
    if len(calibration) == calibrating and len(probe) >= FEWEST_PARITY_IMAGES:
        if len(choice) < FEWEST_PARITY_IMAGES:
            choice, probe = probe[::2], probe[1::2]
        return _FieldImages(calibration, choice, probe)
    labelled = load_split(wired, require_dataset(wired, model.dataset_version), Split.TRAIN).images
    everything = np.concatenate([field, probe, labelled[rng.permutation(len(labelled))]])
    cut = min(calibrating, len(everything) // 2)
    rest = everything[cut : cut + 2 * measuring]
    return _FieldImages(everything[:cut], rest[::2], rest[1::2])


def _shuffled(samples: list[Sample], rng: np.random.Generator) -> list[Sample]:
    return [samples[i] for i in rng.permutation(len(samples))]
