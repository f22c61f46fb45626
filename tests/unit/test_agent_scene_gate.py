"""The scene gate: still scenes are skipped, changes are not, and it knows how often it errs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.capture import Arm
from curate.contracts.device_settings import SceneGateSpec
from edge_agent.cameras.base import Skipped, SkipReason
from edge_agent.capture.explain import explain_prediction
from edge_agent.capture.feedback_intake import FeedbackRequest
from edge_agent.capture.loop import total_gate
from edge_agent.capture.scene_gate import GateCounts, GateLook, SceneGate, take_samples, target_error, tile_differences
from edge_agent.models.inference import LoadedModel, load_model
from tests.fakes.agent_bench import KEEP_NONE, Bench
from tests.fakes.tiny_detector import detector_manifest, quarters, tiny_detector_bytes
from tests.fakes.tiny_model import tiny_manifest, tiny_model_bytes

ON = SceneGateSpec(enabled=True)
NEVER_FORCED = SceneGateSpec(enabled=True, force_every=10**9, max_reuse_s=3600.0)


SCENE = np.random.default_rng(7).integers(40, 200, (120, 160, 3)).astype(np.float32)


@lru_cache
def grain() -> np.ndarray:
    return np.random.default_rng(0).normal(0.0, 1.0, (41, *SCENE.shape)).astype(np.float32)


def noisy(scene: np.ndarray, deviation: float, count: int) -> Iterator[np.ndarray]:
    """Yield the scene with noise; the same grain comes back after 41 frames."""
    for number in range(count):
        yield np.clip(scene + deviation * grain()[number % 41], 0, 255).astype(np.uint8)


def watch(gate: SceneGate, frames: Iterator[np.ndarray], spec: SceneGateSpec, fps: float = 25.0) -> list[bool]:
    """Let the gate see the frames, all with one answer; return which it skipped."""
    skipped = []
    for number, frame in enumerate(frames):
        look = gate.look(frame, number / fps, spec)
        skipped.append(look.skips)
        if look.skips:
            gate.note_skipped()
        else:
            gate.note_answer(look, None if number == 0 else True)
    return skipped


# -- the gate by itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [0.0, 2.0, 5.0])
def test_a_still_scene_is_skipped(deviation: float) -> None:
    """Whatever the sensor's noise, at least 95 % of a still scene need no model once the noise is known."""
    gate = SceneGate(np.random.default_rng(1))
    skipped = watch(gate, noisy(SCENE, deviation, 700), ON)
    assert np.mean(skipped[100:]) >= 0.95


@settings(max_examples=15, deadline=None)
@given(
    x=st.integers(0, 159 - 12),
    y=st.integers(0, 119 - 12),
    sign=st.sampled_from([-1, 1]),
    deviation=st.sampled_from([0, 3]),
)
def test_something_small_that_appears_is_not_skipped(x: int, y: int, sign: int, deviation: int) -> None:
    """An object of 12 pixels in 160, 60 grey levels off, is seen wherever it stands, also in noise."""
    gate = SceneGate(np.random.default_rng(1))
    watch(gate, noisy(SCENE, deviation, 40), NEVER_FORCED)
    changed = SCENE.copy()
    changed[y : y + 12, x : x + 12] += 60 * sign
    (frame,) = noisy(changed, deviation, 1)
    assert not gate.look(frame, 3.0, NEVER_FORCED).unchanged


def test_slow_change_adds_up() -> None:
    """Frames are compared with the frame of the last answer, so dusk is noticed however slowly it comes."""
    gate = SceneGate(np.random.default_rng(1))
    skipped = watch(gate, (np.full((64, 64, 3), 200 - n // 4, np.uint8) for n in range(400)), NEVER_FORCED)
    assert 3 <= skipped[1:].count(False) <= 60


def test_an_old_answer_stands_for_nothing() -> None:
    """After `max_reuse_s` a frame is answered although nothing changed."""
    gate = SceneGate(np.random.default_rng(1))
    spec = SceneGateSpec(enabled=True, max_reuse_s=1.0, force_every=10**9)
    skipped = watch(gate, (np.zeros((64, 64, 3), np.uint8) for _ in range(60)), spec, fps=10.0)
    assert [n for n, is_skipped in enumerate(skipped) if not is_skipped] == [0, 11, 22, 33, 44, 55]


def test_a_frame_of_another_size_or_none_to_compare_with_is_answered() -> None:
    """The first frame, one of another size, one too small for a tile and the one after `forget` are all answered."""
    gate = SceneGate(np.random.default_rng(1))
    for shape in ((64, 64, 3), (64, 32, 3), (2, 2, 3), (2, 2, 3), (64, 64, 3)):
        look = gate.look(np.zeros(shape, np.uint8), 0.0, ON)
        assert not look.unchanged
        assert math.isinf(look.change)
        gate.note_answer(look, None)
    assert gate.look(np.zeros((64, 64, 3), np.uint8), 0.0, NEVER_FORCED).unchanged
    gate.forget()
    assert not gate.look(np.zeros((64, 64, 3), np.uint8), 0.0, NEVER_FORCED).unchanged


def test_the_error_estimate_is_honest() -> None:
    """On a scene whose answer changes unseen in 5 % of the frames, wrong / checked comes to what is true of the skipped
    ones, and the threshold goes down to its floor."""
    rng = np.random.default_rng(3)
    gate = SceneGate(np.random.default_rng(4))
    spec = SceneGateSpec(enabled=True, force_every=5, max_reuse_s=3600.0)
    frame = np.zeros((4, 4, 3), np.uint8)
    gate.note_answer(gate.look(frame, 0.0, spec), None)
    first = gate.look(frame, 0.0, spec).threshold
    wrong_skipped = 0
    for _ in range(5_000):
        differs = bool(rng.random() < 0.05)
        look = gate.look(frame, 0.0, spec)
        if look.skips:
            wrong_skipped += differs
            gate.note_skipped()
        else:
            gate.note_answer(look, not differs)
    counts = gate.counts
    assert counts.checked == pytest.approx(1000, rel=0.15)
    assert counts.wrong / counts.checked == pytest.approx(wrong_skipped / counts.skipped, abs=0.025)
    assert look.threshold < first
    assert counts.frames == counts.skipped + counts.checked + 1


@pytest.mark.parametrize("sensitivity", [0.0, 0.5, 1.0])
def test_the_threshold_adapts_until_the_error_is_what_was_asked_for(sensitivity: float) -> None:
    """Where the answer changes with probability change / 40, the error of the checked frames settles at the target."""
    rng = np.random.default_rng(3)
    gate = SceneGate(np.random.default_rng(4))
    spec = SceneGateSpec(enabled=True, force_every=3, sensitivity=sensitivity)
    frame = np.zeros((4, 4, 3), np.uint8)
    before = GateCounts()
    for number in range(4_000):
        threshold = gate.look(frame, 0.0, spec).threshold
        change = float(rng.exponential(4.0))
        unchanged, forced = change < threshold, bool(rng.random() * 3 < 1)
        if unchanged and not forced:
            gate.note_skipped()
        else:
            gate.note_answer(GateLook(unchanged, forced, change, threshold), bool(rng.random() > change / 40.0))
        if number == 1000:
            before = gate.counts
    checked, wrong = gate.counts.checked - before.checked, gate.counts.wrong - before.wrong
    # The slack is for the steps of the threshold, and for the frames let through in vain, which loosen it, too.
    assert wrong / checked <= 2.0 * target_error(sensitivity) + 0.02


def test_another_specification_starts_the_threshold_anew() -> None:
    """A higher sensitivity takes effect at the next frame."""
    gate = SceneGate(np.random.default_rng(1))
    frame = np.zeros((32, 32, 3), np.uint8)
    loose = gate.look(frame, 0.0, SceneGateSpec(enabled=True, sensitivity=0.0)).threshold
    strict = gate.look(frame, 0.0, SceneGateSpec(enabled=True, sensitivity=1.0)).threshold
    assert (loose, strict) == (8.0, 2.0)


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_tiles_are_what_their_formula_says(height: int, width: int, seed: int) -> None:
    """A tile's difference is the mean absolute difference of its sixteen samples."""
    left, right = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3)).astype(np.uint8)
    a, b = take_samples(left), take_samples(right)
    assert a.shape == (height // 4 * 4, width // 4 * 4)
    expected = np.abs(a - b).reshape(height // 4, 4, width // 4, 4).mean(axis=(1, 3))
    assert tile_differences(a, b) == pytest.approx(expected)


# -- the gate in the loop -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    path.write_bytes(tiny_detector_bytes())
    return load_model(path, detector_manifest())


def bench_of(
    folder: Path, model: LoadedModel, spec: CapturePolicySpec = KEEP_NONE, gate: SceneGateSpec = NEVER_FORCED
) -> Bench:
    bench = Bench(folder, spec, gate=gate, max_queued=10_000)
    bench.live.replace(model)
    return bench


def test_an_unchanged_frame_reuses_the_answer_and_is_counted_apart(tmp_path: Path, detector: LoadedModel) -> None:
    """Pollers see an answer for every frame, the reused ones say whose; the ledger's law holds."""
    bench = bench_of(tmp_path, detector)
    for _ in range(4):
        bench.camera.add_image(quarters(0.9, 0.0, 0.0, 0.0))
    bench.camera.add_image(quarters(0.0, 0.9, 0.0, 0.0))
    bench.run()
    counters = bench.ledger.snapshot()
    assert (counters.frames_seen, counters.frames_inferred, counters.frames_skipped) == (5, 2, {"unchanged": 3})
    told = bench.predictions.after(0, 9)
    assert [p.reused_from for p in told] == [None, "boot-1", "boot-1", "boot-1", None]
    assert len({p.prediction_id for p in told}) == 5
    assert told[1].to_prediction().prediction_id == "boot-2"
    assert told[1].describe() == told[0].describe() != told[4].describe()
    gate = total_gate([bench.loop.gate_counts])
    assert (gate.frames, gate.skipped, gate.checked, gate.wrong) == (5, 3, 0, 0)


def test_a_reused_answer_can_be_dismissed(tmp_path: Path, detector: LoadedModel) -> None:
    """A verdict on an unchanged frame captures that frame, and the capture says whose answer it shows."""
    bench = bench_of(tmp_path, detector)
    for _ in range(2):
        bench.camera.add_image(quarters(0.9, 0.0, 0.0, 0.0))
    bench.run()
    request = FeedbackRequest.model_validate({"verdict": "dismissed", "reason": "not_there", "box_id": "b1"})
    assert bench.intake.receive("boot-2", request).frame_available
    ((record, _),) = bench.spool.captures
    assert (record.frame_index, record.reused_from, record.prediction.prediction_id) == (1, "boot-1", "boot-2")
    assert [outcome.arm for outcome in record.arms] == [Arm.RANDOM, Arm.DISMISSED]


def test_the_random_arm_stays_fair_with_the_gate_on(tmp_path: Path, detector: LoadedModel) -> None:
    """Its share of unchanged frames is its probability, each with a fresh answer and that probability stated."""
    spec = CapturePolicySpec(random_probability=0.2, uncertain_budget_fraction=0.5)
    bench = bench_of(tmp_path, detector, spec)
    for _ in range(300):
        bench.camera.add_image(quarters(0.9, 0.0, 0.0, 0.0))
    bench.run()
    told = bench.predictions.after(0, 2000)
    drawn = [p for p in told[1:] if "random" in p.decision.arms]
    assert len(drawn) == pytest.approx(60, abs=35)
    assert all(p.reused_from is None for p in drawn)
    assert {p.decision.inclusion_probability for p in told[1:]} == {0.2}
    assert bench.ledger.snapshot().frames_inferred == 1 + len(drawn)
    assert bench.loop.gate_counts.checked == len(drawn)


def test_a_frozen_answer_never_outlives_its_model(tmp_path: Path, detector: LoadedModel) -> None:
    """The first frame after a swap is answered by the new model, although nothing has changed in it."""
    bench = bench_of(tmp_path, detector)
    bench.camera.add_frames(3)
    bench.run()
    path = tmp_path / "c.onnx"
    path.write_bytes(tiny_model_bytes())
    bench.live.replace(load_model(path, tiny_manifest(release_id="c-1", number=2)))
    bench.camera.add_frames(2)
    bench.run()
    told = bench.predictions.after(0, 9)
    assert [(p.release_id, p.reused_from) for p in told] == [
        ("d-1", None),
        ("d-1", "boot-1"),
        ("d-1", "boot-1"),
        ("c-1", None),
        ("c-1", "boot-4"),
    ]
    state = bench.report.state(
        device_id="c", boot_id="b", now=told[0].captured_at, counters=bench.ledger.snapshot(), quarantined=0
    )
    assert [(event.outcome, event.frames_lost) for event in state.updates] == [("swapped", 0)]


def test_tracks_outlive_skipped_frames(tmp_path: Path, detector: LoadedModel) -> None:
    """After many unchanged frames the reader still knows its tracks: an object that is gone then counts as lost."""
    bench = bench_of(tmp_path, detector)
    for number in range(4):
        bench.camera.add_image(quarters(0.9, 0.0, 0.0, 0.05 * number))
    for _ in range(20):
        bench.camera.add_image(quarters(0.9, 0.0, 0.0, 0.15))
    bench.camera.add_image(quarters(0.0, 0.0, 0.0, 0.15))
    bench.run()
    assert bench.ledger.snapshot().frames_skipped == {"unchanged": 20}
    assert bench.predictions.after(0, 99)[-1].answer.scores["lost_track"] > 0.2


def test_the_gate_is_switched_while_it_runs(tmp_path: Path, detector: LoadedModel) -> None:
    """Off, every frame is answered; on again, the next frame is, and then nothing needs to be."""
    bench = bench_of(tmp_path, detector)
    inferred = []
    for spec in (NEVER_FORCED, SceneGateSpec(), NEVER_FORCED):
        bench.gate_spec = spec
        before = bench.ledger.snapshot().frames_inferred
        bench.camera.add_frames(4)
        bench.run()
        inferred.append(bench.ledger.snapshot().frames_inferred - before)
    assert inferred == [1, 4, 1]


def test_every_frame_tells_what_the_gate_saw(tmp_path: Path, detector: LoadedModel) -> None:
    """An explanation names the gate's reason for a first, a skipped, a forced and a changed frame, as JSON numbers."""
    bench = bench_of(tmp_path, detector)
    bench.camera.add_frames(2)
    bench.run()
    bench.gate_spec = SceneGateSpec(enabled=True, force_every=1)
    bench.camera.add_frames(1)
    bench.camera.events.append(Skipped(SkipReason.BACKPRESSURE, 1))
    bench.camera.add_frames(1, value=250)
    bench.run()
    told = [explain_prediction(p) for p in bench.predictions.after(0, 9)]
    words = [item["scene_gate"]["why"] for item in told]
    assert ["no answer to compare" in words[0], "stands for it" in words[1], "measure the gate" in words[2]] == [
        True
    ] * 3
    assert words[3] == "it had changed"
    assert told[0]["scene_gate"]["change"] is None
    assert told[1]["reused_from"] == "boot-1"
    assert [arm["arm"] for arm in told[1]["arms"]] == ["random", "dismissed"]
