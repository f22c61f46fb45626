"""Several cameras of one device share ring, log, keeper, ledger and model; privacy stands before all of them."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.device_settings import SceneGateSpec
from curate.contracts.feedback import Verdict
from edge_agent.cameras.base import Pixels, Skipped, SkipReason, decode_image
from edge_agent.capture.explain import explain_prediction
from edge_agent.capture.feedback_intake import FeedbackRequest
from edge_agent.errors import RedactionError
from edge_agent.ledger import Ledger, Totals
from edge_agent.models.inference import LoadedModel, load_model
from tests.fakes.agent_bench import KEEP_ALL, KEEP_NONE, NOW, Bench, ScriptedCamera
from tests.fakes.tiny_model import tiny_manifest, tiny_model_bytes


def load(folder: Path, release_id: str = "r-1", number: int = 1) -> LoadedModel:
    path = folder / f"{release_id}.onnx"
    path.write_bytes(tiny_model_bytes(bias=float(number)))
    return load_model(path, tiny_manifest(release_id=release_id, number=number))


def bench_of(folder: Path, spec: CapturePolicySpec = KEEP_NONE, **settings: object) -> Bench:
    bench = Bench(folder, spec, **settings)  # type: ignore[arg-type]
    bench.live.replace(load(folder))
    return bench


def drain(*loops: object) -> None:
    """Let all cameras run at once, each on a thread of its own."""

    def run(loop: object) -> None:
        while loop.turn():  # type: ignore[attr-defined]
            pass

    threads = [threading.Thread(target=run, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


def test_ids_and_cursors_are_unique_among_cameras(tmp_path: Path) -> None:
    """Three cameras at once: every frame is counted once, no id appears twice, and the log's cursors have no gap."""
    bench = bench_of(tmp_path)
    cameras = [bench.camera, ScriptedCamera("yard"), ScriptedCamera("door")]
    loops = [bench.loop, *(bench.join(camera, KEEP_NONE) for camera in cameras[1:])]
    for camera in cameras:
        camera.add_frames(40)
    drain(*loops)
    told = bench.predictions.after(0, 999)
    assert len({prediction.prediction_id for prediction in told}) == 120
    assert [prediction.cursor for prediction in told] == list(range(1, 121))
    for camera in cameras:
        mine = [p.frame_index for p in told if p.camera_id == camera.camera_id]
        assert mine == list(range(40))
    assert bench.ledger.snapshot().frames_inferred == 120


def test_each_camera_has_budgets_of_its_own(tmp_path: Path) -> None:
    """A policy for one camera changes nothing for the other, and captures name their camera."""
    bench = bench_of(tmp_path, KEEP_ALL, max_queued=50)
    quiet = ScriptedCamera("yard")
    loop = bench.join(quiet, KEEP_NONE)
    bench.camera.add_frames(5)
    quiet.add_frames(5)
    drain(bench.loop, loop)
    bench.store(5)
    assert {record.camera_id for record, _ in bench.spool.captures} == {"front"}
    assert len({record.capture_id for record, _ in bench.spool.captures}) == 5


def test_every_camera_tells_its_own_swap(tmp_path: Path) -> None:
    """Two cameras that feel the same swap tell one event each, with the camera's name and its own gap and losses."""
    bench = bench_of(tmp_path)
    other = ScriptedCamera("yard")
    loop = bench.join(other, KEEP_NONE)
    for release_id, number in (("r-1", 1), ("r-2", 2), ("r-1", 1)):
        bench.live.replace(load(tmp_path, release_id, number))
        bench.camera.add_frames(2)
        other.events.append(Skipped(SkipReason.BACKPRESSURE, 3 * number))
        other.add_frames(2)
        drain(bench.loop, loop)
    state = bench.report.state(device_id="c", boot_id="b", now=NOW, counters=bench.ledger.snapshot(), quarantined=0)
    told = sorted((event.camera_id, event.release_id, event.frames_lost) for event in state.updates)
    assert told == [("front", "r-1", 0), ("front", "r-2", 0), ("yard", "r-1", 3), ("yard", "r-2", 6)]


def test_events_of_the_loop_reach_the_disk_beside_it(tmp_path: Path) -> None:
    """A swap is noted without touching the disk; the keeper's thread saves it."""
    bench = bench_of(tmp_path)
    bench.camera.add_frames(1)
    bench.run()
    bench.live.replace(load(tmp_path, "r-2", 2))
    bench.camera.add_frames(1)
    bench.run()
    assert not (tmp_path / "updates.json").exists()
    stop = threading.Event()
    stop.set()
    bench.report.persist_noted()
    assert b"swapped" in (tmp_path / "updates.json").read_bytes()


# -- privacy ------------------------------------------------------------------------------------------------------


class Guard:
    """Allows nothing before `from_`, blacks out the left half, and fails when told to."""

    def __init__(self) -> None:
        self.now = self.from_ = NOW
        self.broken = False
        self.asked: list[str] = []

    def may_keep(self) -> bool:
        return self.now >= self.from_

    def redact(self, camera_id: str, pixels: Pixels) -> Pixels:
        self.asked.append(camera_id)
        if self.broken:
            raise RedactionError("no redactor")
        redacted = pixels.copy()
        redacted[:, : pixels.shape[1] // 2] = 0
        return redacted


def test_what_is_kept_is_redacted_first(tmp_path: Path) -> None:
    """The picture that reaches the spool is black where nobody may look, by an arm's choice and by a person's."""
    guard = Guard()
    bench = bench_of(tmp_path, KEEP_ALL, privacy=guard)
    bench.camera.add_frames(1)
    bench.run()
    bench.store(1)
    bench.loop.replace_policy(KEEP_NONE)
    bench.camera.add_frames(1)
    bench.run()
    bench.intake.receive("boot-2", FeedbackRequest(verdict=Verdict.DISMISSED))
    for _, jpeg in bench.spool.captures:
        pixels = decode_image(jpeg, max_pixels=5000)
        assert pixels[:, :14].max() < 12
        assert pixels[:, 18:].min() > 70
    assert guard.asked == ["front", "front"]


@pytest.mark.parametrize("spec", [KEEP_ALL, KEEP_NONE])
def test_what_may_not_be_kept_is_counted_and_stays_unkept(tmp_path: Path, spec: CapturePolicySpec) -> None:
    """A frame of a forbidden moment is answered and dropped as `privacy`, also when a person asks after it is allowed
    again; its verdict travels alone."""
    guard = Guard()
    guard.from_ = NOW + timedelta(hours=1)
    bench = bench_of(tmp_path, spec, privacy=guard)
    bench.camera.add_frames(1)
    bench.run()
    guard.from_ = NOW
    receipt = bench.intake.receive("boot-1", FeedbackRequest(verdict=Verdict.DISMISSED))
    assert not receipt.frame_available
    counters = bench.ledger.snapshot()
    assert (counters.frames_inferred, counters.dropped) == (1, {"privacy": 1})
    assert counters.selected == counters.spooled + sum(counters.dropped.values())
    assert not bench.spool.captures


def test_a_queued_frame_is_dropped_when_the_switch_goes_off(tmp_path: Path) -> None:
    """Between the choice and the disk privacy is asked once more; a redactor that fails drops the frame, too."""
    guard = Guard()
    bench = bench_of(tmp_path, KEEP_ALL, privacy=guard)
    bench.camera.add_frames(1)
    bench.run()
    guard.broken = True
    bench.store(1)
    bench.camera.add_frames(1)
    bench.run()
    guard.from_ = NOW + timedelta(hours=1)
    bench.store(1)
    assert bench.ledger.snapshot().dropped == {"privacy": 2}
    assert not bench.spool.captures


# -- explanations and counters ------------------------------------------------------------------------------------


def test_every_frame_is_explained_arm_by_arm(tmp_path: Path) -> None:
    """Kept or not, the explanation names each arm with its numbers and a reason, and is JSON."""
    spec = CapturePolicySpec(
        random_probability=0.1,
        uncertain_budget_fraction=0.1,
        novel_budget_fraction=0.1,
        temporal_budget_fraction=0.1,
        cooldown_frames=3,
    )
    bench = bench_of(tmp_path, spec, gate=SceneGateSpec(), max_queued=99)
    rng = np.random.default_rng(0)
    for _ in range(80):
        bench.camera.add_image(np.repeat(rng.integers(0, 255, (4, 4, 3)), 8, axis=0).repeat(8, axis=1).astype(np.uint8))
    bench.run()
    words: set[str] = set()
    for prediction in bench.predictions.after(0, 99):
        told = json.loads(json.dumps(explain_prediction(prediction), allow_nan=False))
        assert [arm["arm"] for arm in told["arms"]] == ["random", "uncertain", "temporal", "novel", "dismissed"]
        assert told["kept"] == any(arm["kept"] for arm in told["arms"])
        words |= {arm["why"] for arm in told["arms"]}
        for arm in told["arms"][1:4]:
            assert 0.0 <= arm["score"] <= 1.0
            assert arm["budget_fraction"] == 0.1
    assert {"it has seen too few frames to judge", "it is among the top of recent frames"} <= words
    assert any("rests" in word for word in words)


def test_the_ledger_adds_up_whoever_counts(tmp_path: Path) -> None:
    """Plain counts of frames and documents of other events make one sum, from several threads at once."""
    ledger = Ledger()

    def count() -> None:
        for number in range(300):
            ledger.frame_inferred(10)
            ledger.frame_skipped("unchanged", 2)
            if number % 50 == 0:
                ledger.add(Totals(selected=1, dropped={"privacy": 1}, frames_skipped={"no_model": 1}))
                ledger.snapshot()

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    counters = ledger.snapshot()
    assert (counters.frames_inferred, counters.bytes_seen, counters.selected) == (900, 9000, 18)
    assert counters.frames_skipped == {"unchanged": 1800, "no_model": 18}
    assert counters.frames_seen == 900 + 1818


def test_skips_of_the_camera_are_counted_with_their_reason(tmp_path: Path) -> None:
    """What a camera passes over is counted under its own reason, a gate or not."""
    bench = bench_of(tmp_path, gate=SceneGateSpec(enabled=True))
    bench.camera.events.append(Skipped(SkipReason.BACKPRESSURE, 7))
    bench.run()
    assert bench.ledger.snapshot().frames_skipped == {"backpressure": 7}
