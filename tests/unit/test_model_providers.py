"""What runs a model and with how many threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.models.inference import _open_session, available_providers, load_model
from edge_agent.models.providers import CPU, RUNTIME_NAMES, choose_providers, short_names
from edge_agent.models.tuning import TUNING_S, decide_threads, thread_counts, tune_threads
from tests.fakes.tiny_model import tiny_manifest, tiny_model


@given(
    wanted=st.lists(st.sampled_from(sorted(RUNTIME_NAMES))),
    available=st.sets(st.sampled_from([*RUNTIME_NAMES.values()])),
)
def test_the_cpu_is_always_last_and_nothing_is_asked_for_twice(wanted: list[str], available: set[str]) -> None:
    """Whatever is wanted and available: each present provider once in the wanted order, then the CPU; the rest is
    named as missing."""
    choice = choose_providers(wanted, available)  # type: ignore[arg-type]
    assert choice.runtime_names[-1] == CPU
    assert len(set(choice.runtime_names)) == len(choice.runtime_names)
    assert set(choice.runtime_names[:-1]) <= available
    found = {*short_names(choice.runtime_names), *choice.missing}
    assert found == {*wanted, "cpu"}


def test_our_names_mean_something_to_the_runtime() -> None:
    """The runtime's own list of everything it may be built with has every provider that a configuration may name."""
    assert set(RUNTIME_NAMES.values()) <= set(ort.get_all_providers())


def test_a_provider_that_is_not_there_is_passed_over_and_told(tmp_path: Path) -> None:
    """A model that should run on an accelerator this build does not have runs on the CPU and says so."""
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model().SerializeToString())
    model = load_model(path, tiny_manifest(), providers=("qnn", "cpu"))
    assert model.providers == ("cpu",)
    assert model.notes == ("qnn is not in this build of ONNX Runtime",)
    assert CPU in available_providers()


def test_a_provider_that_fails_is_replaced_by_the_cpu() -> None:
    """When the runtime refuses a provider at load, the CPU runs the model and the reason is kept."""
    raw = tiny_model().SerializeToString()
    session, notes = _open_session(raw, ["TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", CPU], 1)
    assert session.get_providers() == [CPU]
    assert len(notes) == 1
    assert "tensorrt" in notes[0]
    assert session.run(None, {"images": np.zeros((1, 32, 32, 3), np.uint8)})


@given(st.integers(1, 512))
def test_the_counts_worth_trying_are_few(cpus: int) -> None:
    """One is always among them, none exceeds the processors or 16, and they are at most six."""
    counts = thread_counts(cpus)
    assert counts[0] == 1
    assert counts[-1] == min(cpus, 16)
    assert len(counts) <= 6


@pytest.mark.parametrize(
    ("median_s", "threads"),
    [
        ({1: 0.100, 2: 0.055, 4: 0.030, 8: 0.029}, 4),
        ({1: 0.100, 2: 0.095}, 1),
        ({1: 0.0004, 2: 0.0002}, 1),
        ({1: 0.010, 2: 0.020, 4: 0.040}, 1),
    ],
    ids=["the last doubling brings nothing", "a twentieth", "nobody notices", "more is slower"],
)
def test_the_smallest_count_that_is_about_as_fast_wins(median_s: dict[int, float], threads: int) -> None:
    """Threads are spent only on time that somebody notices."""
    assert decide_threads(median_s) == threads


def test_tuning_ends_in_time() -> None:
    """Tuning stays near two seconds, loading included, however slow the model, and still gives an answer."""
    now_s = 0.0

    def clock() -> float:
        return now_s

    def load(threads: int) -> Callable[[], object]:
        def answer() -> None:
            nonlocal now_s
            now_s += 0.1 / threads

        return answer

    threads, median_s = tune_threads(load, cpus=4, clock=clock)
    assert threads == 4
    assert median_s == pytest.approx(0.025)
    assert now_s < TUNING_S + 0.5
