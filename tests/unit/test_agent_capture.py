"""The capture loop, the ring, the keeper and the intake of feedback, on real parts and a scripted camera."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.capture import Arm, CaptureRecord
from curate.contracts.feedback import FeedbackReason, Verdict
from curate.errors import AgentError
from edge_agent.cameras.base import Skipped, SkipReason, decode_image, encode_jpeg
from edge_agent.capture.feedback_intake import FeedbackIntake, FeedbackRequest
from edge_agent.capture.policy import PolicyRefusedError
from edge_agent.errors import SpoolUnavailableError
from edge_agent.ledger import Ledger
from edge_agent.models.inference import LoadedModel, load_model
from edge_agent.models.swap_meter import SwapMeter
from edge_agent.spool.files import Receipt
from edge_agent.spool.spool import Spool, SpoolLimits
from tests.fakes.agent_bench import KEEP_ALL, KEEP_NONE, NOW, Bench
from tests.fakes.power_cut import power_cut_before
from tests.fakes.tiny_model import tiny_manifest, tiny_model_bytes


@pytest.fixture
def bench(tmp_path: Path, classifier: LoadedModel) -> Bench:
    return Bench.answering(tmp_path, classifier)


def test_every_frame_is_counted_once(bench: Bench) -> None:
    """Inferred and skipped frames add up to what the camera gave, whatever happened to each."""
    bench.camera.add_frames(3)
    bench.camera.events.append(Skipped(SkipReason.BACKPRESSURE, 4))
    bench.camera.events.append(Skipped(SkipReason.UNDECODABLE, 1))
    bench.run()
    counters = bench.ledger.snapshot()
    assert counters.frames_seen == 8
    assert counters.frames_inferred == 3
    assert counters.frames_skipped == {"backpressure": 4, "undecodable": 1}
    size = len(encode_jpeg(np.full((32, 32, 3), 90, np.uint8), quality=90))
    assert counters.bytes_seen == 3 * size


def test_without_a_model_frames_are_skipped(tmp_path: Path) -> None:
    """Frames that come before the first release count as no_model and leave no prediction."""
    bench = Bench(tmp_path)
    bench.camera.add_frames(2)
    bench.run()
    assert bench.ledger.snapshot().frames_skipped == {"no_model": 2}
    assert bench.predictions.newest_cursor == 0


def test_an_answer_that_is_no_distribution_skips_the_frame(tmp_path: Path) -> None:
    """A model without softmax yields bad_output and a counted error, and the loop goes on."""
    session = ort.InferenceSession(tiny_model_bytes(probabilities="raw"), providers=["CPUExecutionProvider"])
    bench = Bench(tmp_path, KEEP_ALL)
    bench.live.replace(LoadedModel(session, tiny_manifest()))
    bench.camera.add_frames(2)
    bench.run()
    assert bench.ledger.snapshot().frames_skipped == {"bad_output": 2}
    assert not bench.spool.captures


def test_a_capture_says_everything(tmp_path: Path, classifier: LoadedModel) -> None:
    """The record names frame, prediction, all arms and probability; the image is what its reference says."""
    bench = Bench(tmp_path, KEEP_ALL)
    bench.live.replace(classifier)
    bench.camera.add_frames(1)
    bench.run()
    bench.store(1)
    record, jpeg = bench.spool.captures[0]
    assert record.capture_id == "cam-1-boot-1"
    assert record.prediction.prediction_id == "boot-1"
    assert (record.camera_id, record.frame_index, record.captured_at) == ("front", 0, NOW)
    assert {outcome.arm for outcome in record.arms} >= {Arm.RANDOM, Arm.UNCERTAIN, Arm.DISMISSED}
    assert record.inclusion_probability == 1.0
    assert record.reasons
    assert record.image.size_bytes == len(jpeg)
    assert decode_image(jpeg, max_pixels=2000).shape == (record.image.height, record.image.width, 3)
    assert record.prediction.embedding is not None
    assert record.prediction.embedding.dim == 3
    assert CaptureRecord.from_bytes(record.to_bytes()) == record


def test_a_full_queue_drops_and_counts(tmp_path: Path, classifier: LoadedModel) -> None:
    """When the disk does not keep up, the loop does not wait: the frame is inferred, selected and dropped."""
    bench = Bench(tmp_path, KEEP_ALL, max_queued=2)
    bench.live.replace(classifier)
    bench.camera.add_frames(5)
    bench.run()
    counters = bench.ledger.snapshot()
    assert counters.frames_inferred == 5
    assert (counters.selected, counters.dropped) == (3, {"backlog": 3})
    bench.store(2)
    counters = bench.ledger.snapshot()
    assert counters.selected == counters.spooled + sum(counters.dropped.values()) == 5


def test_a_failing_turn_does_not_stop_the_loop(bench: Bench) -> None:
    """An unforeseen error in one turn is counted, and the frames after it are answered."""
    bench.camera.add_frames(1)
    bench.camera.events.append(RuntimeError("surprise"))
    bench.camera.add_frames(1)
    stop = threading.Event()
    thread = threading.Thread(target=bench.loop.run, args=(stop,))
    thread.start()
    deadline = threading.Event()
    for _ in range(200):
        if bench.ledger.snapshot().frames_inferred == 2:
            break
        deadline.wait(0.01)
    stop.set()
    thread.join(5)
    assert bench.ledger.snapshot().frames_inferred == 2
    state = bench.report.state(
        device_id="cam-1", boot_id="boot", now=NOW, counters=bench.ledger.snapshot(), quarantined=0
    )
    assert state.errors == {"RuntimeError": 1}


def test_a_policy_is_swapped_between_frames_and_a_bad_one_is_refused(bench: Bench) -> None:
    """The next frame follows the new policy; one that cannot be followed raises and changes nothing."""
    bench.camera.add_frames(1)
    bench.run()
    bench.loop.replace_policy(KEEP_ALL)
    bench.camera.add_frames(1)
    bench.run()
    assert [p.decision.kept for p in bench.predictions.after(0, 10)] == [False, True]
    with pytest.raises(PolicyRefusedError):
        bench.loop.replace_policy(CapturePolicySpec(uncertainty_score="bald"))
    assert bench.loop.policy_spec == KEEP_ALL


def test_a_swap_is_measured_and_told_once(bench: Bench, tmp_path: Path) -> None:
    """The gap beyond the usual interval and the frames lost go into one update event."""
    for _ in range(5):
        bench.now_s += 0.1
        bench.camera.add_frames(1)
        bench.run()
    path = tmp_path / "new.onnx"
    path.write_bytes(tiny_model_bytes(bias=1.0))
    bench.live.replace(load_model(path, tiny_manifest(release_id="r-2", number=2)))
    bench.now_s += 0.13
    bench.camera.events.append(Skipped(SkipReason.BACKPRESSURE, 2))
    bench.camera.add_frames(2)
    bench.run()
    state = bench.report.state(
        device_id="cam-1", boot_id="boot", now=NOW, counters=bench.ledger.snapshot(), quarantined=0
    )
    (event,) = state.updates
    assert (event.outcome, event.release_id, event.frames_lost) == ("swapped", "r-2", 2)
    assert event.swap_gap_ms == pytest.approx(30.0)


def test_the_gap_is_never_negative() -> None:
    """An answer that comes early costs nothing, and the first model is no swap."""
    meter = SwapMeter()
    assert meter.note_answer("a", 0.0) is None
    assert meter.note_answer("a", 1.0) is None
    swap = meter.note_answer("b", 1.5)
    assert swap is not None
    assert (swap.gap_ms, swap.frames_lost) == (0.0, 0)


# -- feedback -------------------------------------------------------------------------------------------------


def dismiss(**changes: object) -> FeedbackRequest:
    return FeedbackRequest.model_validate({"verdict": "dismissed", "reason": "wrong_class"} | changes)


def test_a_late_dismissal_captures_its_frame(bench: Bench) -> None:
    """A frame no arm kept becomes a capture of the dismissed arm, with the random arm's draw as it was."""
    bench.camera.add_frames(30)
    bench.run()
    receipt = bench.intake.receive("boot-4", dismiss(user="ann"))
    assert receipt.frame_available
    (feedback,) = bench.spool.feedback
    assert (feedback.camera_id, feedback.release_id, feedback.user) == ("front", "r-1", "ann")
    ((record, _),) = bench.spool.captures
    assert record.frame_index == 3
    assert record.inclusion_probability == 1.0
    assert record.arm_probability(Arm.DISMISSED) == 1.0
    random = next(outcome for outcome in record.arms if outcome.arm is Arm.RANDOM)
    assert (random.kept, random.probability) == (False, KEEP_NONE.random_probability)
    assert any("wrong_class" in reason for reason in record.reasons)
    known = bench.predictions.get("boot-4")
    assert known is not None
    assert known.decision.arms == ("dismissed",)


def test_a_second_dismissal_does_not_capture_again(bench: Bench) -> None:
    """Two people may dismiss one prediction: two verdicts, one capture, both with the frame."""
    bench.camera.add_frames(1)
    bench.run()
    answers = [bench.intake.receive("boot-1", dismiss(user=user)) for user in ("ann", "bob")]
    assert [answer.frame_available for answer in answers] == [True, True]
    assert len({answer.feedback_id for answer in answers}) == 2
    assert len(bench.spool.captures) == 1
    assert len(bench.spool.feedback) == 2


def test_a_confirmation_captures_nothing(bench: Bench) -> None:
    """A confirmed frame that no arm kept stays unkept, and the verdict says that it travels alone."""
    bench.camera.add_frames(1)
    bench.run()
    feedback = bench.intake.receive("boot-1", FeedbackRequest(verdict=Verdict.CONFIRMED))
    assert not feedback.frame_available
    assert not bench.spool.captures
    assert bench.intake.receive("boot-1", dismiss()).frame_available


def test_feedback_travels_without_its_frame(bench: Bench) -> None:
    """An unknown or long gone prediction still takes a verdict."""
    receipt = bench.intake.receive("earlier-boot-99", dismiss(reason=FeedbackReason.NOT_THERE))
    (feedback,) = bench.spool.feedback
    assert not feedback.frame_available
    assert feedback.camera_id is None
    assert receipt == Receipt.of(feedback)


@pytest.fixture
def queued(tmp_path: Path, classifier: LoadedModel) -> Bench:
    """A bench whose keeper has one frame in its queue."""
    bench = Bench(tmp_path, KEEP_ALL)
    bench.live.replace(classifier)
    bench.camera.add_frames(1)
    bench.run()
    return bench


@pytest.mark.parametrize("kept", [True, False])
def test_a_verdict_waits_for_its_frame(queued: Bench, kept: bool) -> None:
    """While the frame is queued no verdict about it is stored; then it says whether the frame was kept or dropped."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(queued.intake.receive, "boot-1", dismiss())
        # Another verdict does not wait.
        queued.intake.receive("earlier-boot-99", dismiss(feedback_id="other"))
        assert not answer.done()
        assert [feedback.feedback_id for feedback in queued.spool.feedback] == ["other"]
        queued.spool.refuse_captures = not kept
        queued.store(1)
        assert answer.result(5).frame_available is kept
    assert queued.spool.feedback[-1].frame_available is kept
    assert len(queued.spool.captures) == kept


def test_a_verdict_does_not_wait_for_ever(queued: Bench) -> None:
    """When the frame does not reach the disk in time nothing is stored; the same id works once it has."""
    hasty = FeedbackIntake(queued.spool, queued.keeper, queued.ring, queued.predictions, max_wait_s=0.01)
    with pytest.raises(SpoolUnavailableError) as refused:
        hasty.receive("boot-1", dismiss(feedback_id="f-1"))
    assert refused.value.retryable
    assert not queued.spool.feedback
    queued.store(1)
    assert hasty.receive("boot-1", dismiss(feedback_id="f-1")).frame_available


def test_a_frame_the_queue_had_no_room_for_is_told_at_once(tmp_path: Path, classifier: LoadedModel) -> None:
    """A frame dropped as backlog is gone: the verdict travels alone and does not wait."""
    bench = Bench(tmp_path, KEEP_ALL, max_queued=1)
    bench.live.replace(classifier)
    bench.camera.add_frames(2)
    bench.run()
    assert not bench.intake.receive("boot-2", dismiss()).frame_available


def test_the_capture_loop_never_waits_for_a_verdict(queued: Bench) -> None:
    """While a verdict waits for its frame, the next frames are answered and queued."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(queued.intake.receive, "boot-1", dismiss())
        queued.camera.add_frames(5)
        queued.run()
        assert not answer.done()
        queued.store(6)
        assert answer.result(5).frame_available
    assert queued.ledger.snapshot().frames_inferred == 6


@pytest.mark.parametrize("spec", [KEEP_ALL, KEEP_NONE])
def test_a_power_cut_leaves_no_verdict_without_its_frame(
    tmp_path: Path, classifier: LoadedModel, spec: CapturePolicySpec
) -> None:
    """Whichever system call of a dismissal is the last, the disk holds no verdict that promises a missing frame, and
    the client's next try with the same id ends in one verdict."""
    for system_call in count(1):
        folder = tmp_path / str(system_call)
        folder.mkdir()
        bench = Bench(folder, spec)
        bench.live.replace(classifier)
        bench.camera.add_frames(1)
        bench.run()
        spool = open_spool(folder, bench.ledger, "boot")
        bench.keeper._sink = spool
        intake = FeedbackIntake(spool, bench.keeper, bench.ring, bench.predictions, max_wait_s=0.0)
        with power_cut_before(system_call) as cut:
            if spec is KEEP_ALL:
                with pytest.raises(SpoolUnavailableError):
                    intake.receive("boot-1", dismiss(feedback_id="f-1"))
                bench.store(1)
            intake.receive("boot-1", dismiss(feedback_id="f-1"))
        again = open_spool(folder, Ledger(), "boot-b")
        receipt = again.find_receipt("f-1")
        assert receipt or cut
        if receipt:
            assert receipt.frame_available
            assert again.held_captures == 1
        after = Bench(folder)
        second = FeedbackIntake(again, after.keeper, after.ring, after.predictions)
        assert second.receive("boot-1", dismiss(feedback_id="f-1")).frame_available == (again.held_captures == 1)
        assert again.snapshot().feedback_spooled == 1
        if not cut:
            break
    assert system_call > 4


def open_spool(folder: Path, ledger: Ledger, boot_id: str) -> Spool:
    return Spool.open(folder / "spool", SpoolLimits(min_free_bytes=0), ledger, device_id="cam-1", boot_id=boot_id)


def test_the_same_feedback_id_counts_once(bench: Bench) -> None:
    """A client that retries with its own id gets the same answer and is stored once."""
    bench.camera.add_frames(1)
    bench.run()
    first = bench.intake.receive("boot-1", dismiss(feedback_id="f-1"))
    assert bench.intake.receive("boot-1", dismiss(feedback_id="f-1")) == first
    assert [Receipt.of(feedback) for feedback in bench.spool.feedback] == [first]


def test_feedback_that_is_not_durable_is_an_error_and_may_be_retried(bench: Bench) -> None:
    """When the spool refuses, the caller hears it, and the same id works later; a frame dropped meanwhile is told."""
    bench.camera.add_frames(1)
    bench.run()
    bench.spool.refuse = True
    with pytest.raises(AgentError):
        bench.intake.receive("boot-1", dismiss(feedback_id="f-1"))
    bench.spool.refuse = False
    feedback = bench.intake.receive("boot-1", dismiss(feedback_id="f-1"))
    assert not feedback.frame_available
    counters = bench.ledger.snapshot()
    assert counters.selected == counters.spooled + sum(counters.dropped.values())


# -- ring and log -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(max_bytes=st.integers(0, 40_000), count=st.integers(1, 40))
def test_the_ring_stays_within_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, classifier: LoadedModel, max_bytes: int, count: int
) -> None:
    """The newest frames are held, never more bytes than allowed, and claiming gives them back."""
    bench = Bench(tmp_path_factory.mktemp("ring"), ring_bytes=max_bytes)
    ring = bench.ring
    bench.live.replace(classifier)
    bench.camera.add_frames(count)
    bench.run()
    assert ring.used_bytes <= max_bytes
    held = [n for n in range(1, count + 1) if ring.claim(f"boot-{n}") is not None]
    assert held == list(range(count - len(held) + 1, count + 1))
    assert (ring.used_bytes, len(ring)) == (0, 0)


def test_a_poller_misses_nothing(tmp_path: Path, classifier: LoadedModel) -> None:
    """Following the cursor gives every prediction once and in order, also across the log's bound."""
    bench = Bench(tmp_path, max_predictions=10)
    bench.live.replace(classifier)
    seen: list[int] = []
    cursor = 0
    for _ in range(6):
        bench.camera.add_frames(7)
        bench.run()
        while found := bench.predictions.after(cursor, 3):
            seen += [prediction.cursor for prediction in found]
            cursor = seen[-1]
    assert seen == list(range(1, 43))
    assert [p.cursor for p in bench.predictions.after(0, 100)] == list(range(33, 43))
    assert bench.predictions.get("boot-32") is None
    assert bench.predictions.after(42, 5) == []
