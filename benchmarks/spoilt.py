"""What asking by disagreement with the float model finds that asking by margin does not.

    python benchmarks/spoilt.py [--seeds 8] [--first 0]

A classifier is taught and calibrated on bright digits; half of the pool is dusk, which int8 knows less well than float.
Of the 100 captures with the highest mixed uncertainty, how many does int8 get wrong, and how many of those did
quantisation spoil: int8 wrong, float right? It ranks single captures; coverage and quotas are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from curate.compression.export import export_onnx
from curate.compression.inference import OnnxModel
from curate.compression.quantize import quantize_int8
from curate.selection.uncertainty import margin_uncertainty, mix_disagreement
from curate.training.data import LabelledImages
from curate.training.recipe import TrainingRecipe
from curate.training.trainer import train_classifier

WEIGHTS = (0.0, 0.3, 0.5, 1.0)
ASKED = 100
TEACHING, VALIDATING, CALIBRATING = slice(0, 300), slice(300, 400), slice(400, 600)
POOLED = slice(600, None)
RECIPE = TrainingRecipe(epochs=5, threads=1)
NAMES = tuple(map(str, range(10)))


@dataclass(frozen=True)
class Found:
    """One seed: how many of the pool int8 gets wrong and how many were spoilt, and by weight how many were asked."""

    wrong: int
    spoilt: int
    asked: Mapping[float, tuple[int, int]]


def measure(seed: int) -> Found:
    """Teach, quantise, and rank the pool by each weight."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.images))
    looks = np.repeat(np.repeat(digits.images[order] / 16, 4, 1), 4, 2)
    labels = digits.target[order].astype(np.int64)
    count = len(labels[POOLED])
    dusk = rng.random(count) < 0.5
    gain = np.where(dusk, rng.uniform(0.08, 0.3, count), rng.uniform(0.8, 1, count))
    taught = LabelledImages(_light(looks[TEACHING], rng.uniform(0.6, 1, 300), rng), labels[TEACHING])
    stopping = LabelledImages(_light(looks[VALIDATING], np.ones(100), rng), labels[VALIDATING])
    model = train_classifier(taught, stopping, NAMES, RECIPE, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        float_path, int8_path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export_onnx(model, float_path)
        quantize_int8(float_path, _light(looks[CALIBRATING], np.ones(200), rng), int8_path, threads=1)
        pool = _light(looks[POOLED], gain, rng)
        original, said = (OnnxModel(path).run(pool)["probabilities"] for path in (float_path, int8_path))
    return _rank(original, said, labels[POOLED])


def _light(looks: NDArray[np.float64], gain: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return frames uint8 [N, 32, 32, 3] of the digits under that much light, with a camera's noise."""
    lit = (looks[..., None] * 0.8 + 0.1) * gain[:, None, None, None] * 255
    return (lit + rng.normal(0, 4, (*looks.shape, 3))).clip(0, 255).astype(np.uint8)


def _rank(original: NDArray[np.float32], said: NDArray[np.float32], truth: NDArray[np.int64]) -> Found:
    wrong = said.argmax(1) != truth
    spoilt = wrong & (original.argmax(1) == truth)
    apart = np.abs(original - said).max(axis=1).astype(np.float64)
    asked = {}
    for weight in WEIGHTS:
        mixed = mix_disagreement(margin_uncertainty(said), apart, weight)
        top = np.argsort(-mixed, kind="stable")[:ASKED]
        asked[weight] = (int(wrong[top].sum()), int(spoilt[top].sum()))
    return Found(int(wrong.sum()), int(spoilt.sum()), asked)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    found = []
    for seed in range(options.first, options.first + options.seeds):
        found.append(measure(seed))
        print(f"seed {seed}: {found[-1]}", flush=True)
    spoilt, wrong = sum(each.spoilt for each in found), sum(each.wrong for each in found)
    print(f"\n| weight | wrong ones of {ASKED} asked | share of all wrong | share of all spoilt |\n|---|---|---|---|")
    for weight in WEIGHTS:
        asked = [each.asked[weight] for each in found]
        mean, both = sum(w for w, _ in asked) / len(asked), (sum(w for w, _ in asked), sum(s for _, s in asked))
        print(f"| {weight} | {mean:.0f} | {both[0] / wrong:.0%} | {both[1] / spoilt:.0%} |")


if __name__ == "__main__":
    main()
