"""Export, quantisation, inference and golden inputs with the real exporter and the real runtime."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import Tensor, nn

from curate.compression.export import export_onnx
from curate.compression.golden import LARGEST_TOLERANCE, LEAST_TOLERANCE, build_golden
from curate.compression.inference import OnnxModel, measure_latency
from curate.compression.parity import compare_distributions
from curate.compression.quantize import QuantizationResult, QuantizationScheme, quantize_int8
from curate.errors import CompressionError
from curate.training.classifier import TrainedClassifier
from curate.training.data import LabelledImages
from curate.training.recipe import TrainingRecipe
from curate.training.trainer import train_classifier

NAMES = ("rows", "columns", "blank")
RECIPE = TrainingRecipe(epochs=2, steps_per_epoch=15, batch_size=32, threads=1)


def world(count: int, seed: int) -> LabelledImages:
    """Noisy frames 32x32 with bars of random phase and contrast: horizontal, vertical, or none."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 3
    wave = np.sin(np.arange(32)[None] * 0.8 + rng.uniform(0, 6, (count, 1))) * rng.uniform(5, 90, (count, 1)) + 120
    images = np.where(
        (labels == 0)[:, None, None], wave[:, :, None], np.where(labels[:, None, None] == 1, wave[:, None], 120)
    )
    noisy = images[..., None] + rng.normal(0, 15, (count, 32, 32, 3))
    return LabelledImages(noisy.clip(0, 255).astype(np.uint8), labels)


@pytest.fixture(scope="module")
def model() -> TrainedClassifier:
    """The product's network, briefly trained."""
    return train_classifier(world(150, 0), world(60, 1), NAMES, RECIPE, seed=0)


@pytest.fixture(scope="module")
def float_path(model: TrainedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported float model."""
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    export_onnx(model, path)
    return path


@pytest.fixture(scope="module")
def int8(float_path: Path) -> tuple[Path, QuantizationResult]:
    """The quantised model beside its float original."""
    path = float_path.with_name("model.int8.onnx")
    return path, quantize_int8(float_path, world(96, 2).images, path, world(150, 3).images, threads=1)


def test_the_file_says_what_torch_says(model: TrainedClassifier, float_path: Path) -> None:
    """The exported file gives torch's probabilities and unit embeddings, for any batch size and for none."""
    frames = world(7, 4).images
    expected, features = model.predict(frames)
    actual = OnnxModel(float_path).run(frames, batch_size=3)
    assert np.allclose(actual["probabilities"], expected, atol=1e-4)
    assert np.allclose(actual["embedding"], features, atol=1e-4)
    assert OnnxModel(float_path).run(frames[:0])["probabilities"].shape == (0, 3)


def test_the_file_is_self_contained(float_path: Path, int8: tuple[Path, QuantizationResult]) -> None:
    """Both files take raw uint8 frames, use standard operators only, and hold no external data and no build path."""
    for path in (float_path, int8[0]):
        proto = onnx.load(path, load_external_data=False)
        assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
        assert not any(tensor.external_data for tensor in proto.graph.initializer)
        assert b"site-packages" not in path.read_bytes()
        assert b"/curate/" not in path.read_bytes()


def test_the_file_describes_itself(float_path: Path, int8: tuple[Path, QuantizationResult]) -> None:
    """Kind, class names and frame size travel in the metadata of the float and of the int8 file."""
    for path in (float_path, int8[0]):
        properties = {item.key: item.value for item in onnx.load(path).metadata_props}
        assert properties["kind"] == "classification"
        assert tuple(json.loads(properties["class_names"])) == NAMES
        assert OnnxModel(path).frame_shape == (32, 32, 3)


def test_export_is_reproducible(model: TrainedClassifier, float_path: Path, tmp_path: Path) -> None:
    """The same model exports to the same bytes, so that a digest names a model."""
    export_onnx(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == float_path.read_bytes()


def test_int8_is_small_and_faithful(float_path: Path, int8: tuple[Path, QuantizationResult]) -> None:
    """The int8 file is at most 0.35 of the float file and keeps 98 % of its winners on frames nobody judged it on."""
    path, result = int8
    frames = world(300, 5).images
    answers = [OnnxModel(each).run(frames)["probabilities"] for each in (float_path, path)]
    parity = compare_distributions(*answers)
    assert result.ratio <= 0.35
    assert result.int8_bytes == path.stat().st_size
    assert parity.agreement >= 0.98


@pytest.mark.parametrize(("asked", "kept"), [(0, 0), (1, 1), (2, 2), (5, 2)])
def test_a_light_stem_may_stay_in_float(float_path: Path, tmp_path: Path, asked: int, kept: int) -> None:
    """All convolutions are quantised but as many of the first as the scheme says; a heavy one is whatever it says."""
    images, path = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8), tmp_path / "int8.onnx"
    quantize_int8(float_path, images, path, schemes=[QuantizationScheme("minmax", True, float_stem=asked)])
    graph = onnx.load(path).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    from_int8 = [makers.get(node.input[0]) == "DequantizeLinear" for node in graph.node if node.op_type == "Conv"]
    assert from_int8 == [False] * kept + [True] * (len(from_int8) - kept)


def test_the_best_scheme_is_kept_and_none_overflows(int8: tuple[Path, QuantizationResult]) -> None:
    """The kept scheme diverges least of all tried, and its weights cannot overflow without VNNI."""
    _, result = int8
    assert len(result.tried) == 6
    assert result.parity.divergence == min(parity.divergence for _, parity in result.tried)
    assert result.saturation_share == 0.0


def test_quantisation_is_reproducible_without_validation_images(float_path: Path, tmp_path: Path) -> None:
    """With images held back by itself, quantising twice gives the same bytes and leaves no other file."""
    for name in ("a.onnx", "b.onnx"):
        quantize_int8(float_path, world(48, 2).images, tmp_path / name, threads=1)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_too_few_calibration_images_are_refused(float_path: Path, tmp_path: Path) -> None:
    """A handful of frames cannot give activation ranges: an error, not a bad model."""
    with pytest.raises(CompressionError, match="too few"):
        quantize_int8(float_path, world(6, 2).images, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_golden_inputs_pass_on_their_own_model_only(
    float_path: Path, int8: tuple[Path, QuantizationResult], tmp_path: Path
) -> None:
    """A fresh session is within tolerance frame by frame; one whose weights were damaged is not."""
    path, _ = int8
    with np.load(io.BytesIO(build_golden(path, world(90, 6).images)), allow_pickle=False) as golden:
        content = {name: golden[name] for name in golden.files}
    assert set(content) == {"images", "probabilities", "embedding", "tolerance"}
    assert content["images"].shape == (16, 32, 32, 3)
    assert LEAST_TOLERANCE <= content["tolerance"] <= LARGEST_TOLERANCE
    fresh = OnnxModel(path).run(content["images"], batch_size=1)
    assert np.abs(fresh["probabilities"] - content["probabilities"]).max() <= content["tolerance"]
    assert np.abs(fresh["embedding"] - content["embedding"]).max() <= content["tolerance"]

    damaged = onnx.load(path)
    largest = max(damaged.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = bytes(reversed(largest.raw_data))
    onnx.save(damaged, tmp_path / "damaged.onnx")
    wrong = OnnxModel(tmp_path / "damaged.onnx").run(content["images"], batch_size=1)
    assert np.abs(wrong["embedding"] - content["embedding"]).max() > content["tolerance"]


def test_golden_inputs_are_reproducible(int8: tuple[Path, QuantizationResult]) -> None:
    """The same model and frames give the same bytes, without pickled objects."""
    frames = world(20, 6).images
    assert build_golden(int8[0], frames, n=4) == build_golden(int8[0], frames, n=4)


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_an_unusable_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """A missing, empty or foreign file raises CompressionError, not an error of the runtime."""
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CompressionError):
        OnnxModel(path)


def test_frames_of_another_size_are_refused(float_path: Path) -> None:
    """Frames that do not fit are named in the error instead of failing inside the runtime."""
    with pytest.raises(CompressionError, match="16"):
        OnnxModel(float_path).run(np.zeros((1, 16, 16, 3), np.uint8))


def test_latency_is_measured(int8: tuple[Path, QuantizationResult]) -> None:
    """One small frame takes more than nothing and less than a second."""
    assert 0 < measure_latency(int8[0], world(1, 0).images[0], repeats=5) < 1000


class _Lying(nn.Module):
    """Gives other answers to two frames than to one: no export can be faithful to it."""

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """The mean over the whole batch instead of each frame's own."""
        batch_mean = images.float().mean() if len(images) < 4 else images.float().mean() + 1.0
        return (batch_mean.reshape(1, 1).expand(len(images), 1),)


class _LyingModel:
    """An exportable of another kind whose graph depends on the batch size it was traced with."""

    kind = "test"
    class_names = ("a", "b")
    frame_shape = (8, 8, 3)
    output_names = ("score",)

    def serving_module(self) -> nn.Module:
        """The module that lies."""
        return _Lying().eval()


def test_an_unfaithful_export_is_refused(tmp_path: Path) -> None:
    """A model whose file would answer differently from torch is not written."""
    with pytest.raises(CompressionError):
        export_onnx(_LyingModel(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
