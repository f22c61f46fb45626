"""Loading a model with suspicion, and answering with it."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from curate.contracts.release import ReleaseManifest
from curate.errors import SelfCheckError
from edge_agent.models.inference import LiveModel, fit_image, load_model
from edge_agent.models.onnx_scan import verify_self_contained
from tests.fakes.tiny_model import tiny_manifest, tiny_model, tiny_model_bytes


def save(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def grey(value: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def test_a_good_model_loads_and_answers(tmp_path: Path) -> None:
    """The answer has the manifest's shapes and follows the frame."""
    model = load_model(save(tmp_path, tiny_model()), tiny_manifest(release_id="r-7", number=7))
    assert (model.release_id, model.number) == ("r-7", 7)
    dark, bright = model.infer(grey(0)), model.infer(grey(255))
    assert {name: (array.shape, array.dtype) for name, array in dark.outputs.items()} == {
        "probabilities": ((3,), np.float32),
        "embedding": ((3,), np.float32),
    }
    assert [int(answer.outputs["probabilities"].argmax()) for answer in (dark, bright)] == [0, 2]


def test_a_frame_of_another_size_is_fitted(tmp_path: Path) -> None:
    """Frames larger or smaller than the model's input are resized; a fitting one is not copied."""
    model = load_model(save(tmp_path, tiny_model()), tiny_manifest())
    large, fitting = (model.infer(grey(255, size)).outputs["probabilities"] for size in (100, 32))
    assert large == pytest.approx(fitting, abs=1e-6)
    image = grey(1)
    assert fit_image(image, height=32, width=32) is image
    assert fit_image(image, height=10, width=20).shape == (10, 20, 3)


def test_a_replaced_model_does_not_disturb_the_one_in_use(tmp_path: Path) -> None:
    """Whoever holds the old model keeps a working model; the next frame gets the new one."""
    path = save(tmp_path, tiny_model())
    live = LiveModel()
    assert live.current() is None
    live.replace(load_model(path, tiny_manifest(release_id="old")))
    held = live.current()
    live.replace(load_model(path, tiny_manifest(release_id="new")))
    assert held is not None
    assert held.infer(grey(3)).outputs["probabilities"].sum() == pytest.approx(1.0)
    current = live.current()
    assert current is not None
    assert current.release_id == "new"


def mismatch(**changes: object) -> ReleaseManifest:
    manifest = tiny_manifest()
    return manifest.model_copy(update={"model": manifest.model.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (mismatch(height=16), r"takes .*manifest says"),
        (mismatch(class_names=["a", "b"]), "answers with shapes"),
        (mismatch(embedding_dim=8), "answers with shapes"),
        (mismatch(kind="detection"), "must give a float32 output 'boxes'"),
        (mismatch(kind="segmentation"), "kinds classification, detection, not segmentation"),
        (mismatch(channels=1), "3 channels"),
    ],
)
def test_a_model_that_does_not_fit_its_manifest_is_refused(
    tmp_path: Path, manifest: ReleaseManifest, reason: str
) -> None:
    """Wrong size, classes, embedding, kind or channels are SelfCheckErrors that say what differs."""
    with pytest.raises(SelfCheckError, match=reason):
        load_model(save(tmp_path, tiny_model()), manifest)


def test_wrong_names_and_types_are_refused(tmp_path: Path) -> None:
    """An input that is not uint8 `images` and outputs of other names are refused by name."""
    renamed = tiny_model()
    renamed.graph.output[1].name = "probabilities_too"
    renamed.graph.node.append(helper.make_node("Identity", ["embedding"], ["probabilities_too"]))
    with pytest.raises(SelfCheckError, match="'embedding'"):
        load_model(save(tmp_path, renamed), tiny_manifest())
    floats = tiny_model()
    floats.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(SelfCheckError, match="uint8"):
        load_model(save(tmp_path, floats), tiny_manifest())


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    """A missing, empty, random or truncated file is a SelfCheckError."""
    with pytest.raises(SelfCheckError, match="cannot read"):
        load_model(tmp_path / "absent.onnx", tiny_manifest())
    whole = tiny_model_bytes()
    for raw in (b"", b"not a model", whole[: len(whole) // 2], whole[:-1]):
        path = tmp_path / "bad.onnx"
        path.write_bytes(raw)
        with pytest.raises(SelfCheckError):
            load_model(path, tiny_manifest())


def external(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model


def in_a_branch(inner: onnx.NodeProto, initializer: onnx.TensorProto | None = None) -> onnx.ModelProto:
    """Hide a node, and perhaps a tensor, in a branch of an If."""
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    branch = helper.make_graph([inner], "branch", [], [out], [initializer] if initializer is not None else [])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, [])], [out])
    return helper.make_model(graph)


def test_external_data_is_refused_wherever_it_hides(tmp_path: Path) -> None:
    """Tensors kept in other files are refused at the top, in constants, in branches and without a location flag."""
    (tmp_path / "weights.bin").write_bytes(np.zeros(3, np.float32).tobytes())
    top = external(tiny_model(), "weights.bin")
    with pytest.raises(SelfCheckError, match="other files"):
        load_model(save(tmp_path, top), tiny_manifest())
    flagless = external(tiny_model(), "/etc/hostname")
    flagless.graph.initializer[0].data_location = TensorProto.DEFAULT
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), "w")
    tensor.external_data.add(key="location", value="x")
    constant = tiny_model()
    constant.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))
    branch = in_a_branch(helper.make_node("Identity", ["w"], ["y"]), tensor)
    for model in (flagless, constant, branch):
        with pytest.raises(SelfCheckError, match="other files"):
            verify_self_contained(model.SerializeToString())


def test_foreign_operators_are_refused_wherever_they_hide() -> None:
    """A node of an unknown domain is refused at the top, in a branch and in a function; EPContext by name."""
    foreign = helper.make_node("Run", [], ["y"], domain="com.example")
    function = helper.make_function("f", "F", [], ["y"], [foreign], [helper.make_opsetid("com.example", 1)])
    inside = helper.make_model(helper.make_graph([], "g", [], []), functions=[function])
    top = helper.make_model(helper.make_graph([foreign], "g", [], []))
    for model in (top, in_a_branch(foreign), inside):
        with pytest.raises(SelfCheckError, match=r"com\.example"):
            verify_self_contained(model.SerializeToString())
    context = helper.make_node("EPContext", [], ["y"], domain="com.microsoft")
    with pytest.raises(SelfCheckError, match="EPContext"):
        verify_self_contained(helper.make_model(helper.make_graph([context], "g", [], [])).SerializeToString())


def test_a_quantised_model_passes(tmp_path: Path) -> None:
    """What ONNX Runtime's own preparation and static QDQ quantiser write is accepted and runs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Frames(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"images": grey(v)[np.newaxis]} for v in range(0, 256, 32)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    source, prepared, quantised = (tmp_path / f"{name}.onnx" for name in ("source", "prepared", "quantised"))
    source.write_bytes(tiny_model_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quant_pre_process(str(source), str(prepared))
        quantize_static(str(prepared), str(quantised), Frames(), quant_format=QuantFormat.QDQ)
    model = load_model(quantised, tiny_manifest())
    assert model.infer(grey(255)).outputs["probabilities"].argmax() == 2


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_the_scan_never_fails_otherwise(raw: bytes) -> None:
    """Any bytes are accepted or refused with a reason; nothing else escapes and nothing hangs."""
    with contextlib.suppress(SelfCheckError):
        verify_self_contained(raw)


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_flipped_bytes_never_fail_otherwise(position: int, value: int) -> None:
    """A damaged model is accepted or refused with a reason by the scan; nothing else escapes."""
    raw = bytearray(tiny_model_bytes())
    raw[position % len(raw)] = value
    with contextlib.suppress(SelfCheckError):
        verify_self_contained(bytes(raw))
