"""The pure parts of compression: parity, choice of golden frames, risk of overflow."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from curate.compression.kinds import choose_by_margin
from curate.compression.parity import compare_distributions
from curate.compression.quantize import saturation_share
from curate.errors import CompressionError


def random_probabilities(count: int, classes: int, seed: int) -> np.ndarray:
    """Rows that sum to one, some sharp and some flat."""
    rng = np.random.default_rng(seed)
    weights = rng.gamma(0.5, size=(count, classes)) + 1e-3
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def linear_model(weights: np.ndarray, *, transposed: bool) -> onnx.ModelProto:
    """One Gemm on dequantised int8 `weights`."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["w_float"]),
        helper.make_node("Gemm", ["x", "w_float"], ["y"], transB=int(transposed)),
    ]
    initializers = [
        numpy_helper.from_array(weights.astype(np.int8), "w"),
        numpy_helper.from_array(np.float32(0.01), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    return helper.make_model(helper.make_graph(nodes, "linear", values[:1], values[1:], initializers))


@given(count=st.integers(1, 30), classes=st.integers(2, 8), seed=st.integers(0, 999))
def test_a_model_agrees_with_itself(count: int, classes: int, seed: int) -> None:
    """Parity of equal probabilities is perfect, whatever they are."""
    probabilities = random_probabilities(count, classes, seed)
    parity = compare_distributions(probabilities, probabilities)
    assert (parity.agreement, parity.divergence, parity.max_abs_difference, parity.n) == (1.0, 0.0, 0.0, count)


def test_parity_by_hand() -> None:
    """One of two winners changes; KL and the largest difference follow their formulas."""
    reference = np.array([[0.6, 0.4], [0.9, 0.1]], np.float32)
    candidate = np.array([[0.4, 0.6], [0.9, 0.1]], np.float32)
    parity = compare_distributions(reference, candidate)
    assert parity.agreement == 0.5
    assert parity.divergence == pytest.approx((0.6 * np.log(1.5) + 0.4 * np.log(2 / 3)) / 2, rel=1e-4)
    assert parity.max_abs_difference == pytest.approx(0.2, abs=1e-6)


@given(seed=st.integers(0, 999))
def test_parity_survives_certainty(seed: int) -> None:
    """A probability of exactly zero gives a large but finite, non-negative divergence."""
    sharp = np.eye(4, dtype=np.float32)
    parity = compare_distributions(sharp, random_probabilities(4, 4, seed))
    assert 0 <= parity.divergence < 100
    assert np.isfinite(compare_distributions(random_probabilities(4, 4, seed), sharp).divergence)


def test_parity_of_different_shapes_is_refused() -> None:
    """Rows that do not correspond are never compared."""
    with pytest.raises(CompressionError):
        compare_distributions(random_probabilities(3, 4, 0), random_probabilities(4, 4, 0))


def test_parity_of_nothing_is_unknown() -> None:
    """No frames give NaN, which no gate can mistake for agreement."""
    assert np.isnan(compare_distributions(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).agreement)


@given(count=st.integers(1, 60), n=st.integers(1, 20), seed=st.integers(0, 999))
def test_golden_frames_are_distinct_and_as_many_as_possible(count: int, n: int, seed: int) -> None:
    """The choice has min(n, count) different rows and is the same each time."""
    probabilities = random_probabilities(count, 5, seed)
    chosen = choose_by_margin(probabilities, n)
    assert len(chosen) == min(n, count)
    assert len(set(chosen.tolist())) == len(chosen)
    assert np.array_equal(chosen, choose_by_margin(probabilities, n))


@given(seed=st.integers(0, 999))
def test_golden_frames_hold_every_class_and_the_least_sure(seed: int) -> None:
    """Every predicted class appears among the sure frames, and the least sure frame of all is in."""
    probabilities = random_probabilities(80, 4, seed)
    chosen = choose_by_margin(probabilities, 16)
    ordered = np.sort(probabilities, axis=1)
    assert set(probabilities[chosen[:12]].argmax(axis=1)) == set(probabilities.argmax(axis=1))
    assert int((ordered[:, -1] - ordered[:, -2]).argmin()) in chosen.tolist()


@pytest.mark.parametrize("transposed", [True, False])
def test_overflow_is_counted_along_the_reduction_axis(transposed: bool) -> None:
    """Of two outputs, one has neighbours 100 + 100 > 128 and one 64 + 64 = 128: one risky pair in two."""
    weights = np.array([[100, -100], [64, -64]])
    assert saturation_share(linear_model(weights if transposed else weights.T, transposed=transposed)) == 0.5


def test_a_float_model_cannot_overflow() -> None:
    """Without int8 weights the share is 0."""
    model = linear_model(np.zeros((2, 2)), transposed=True)
    del model.graph.initializer[0]
    assert saturation_share(model) == 0.0
