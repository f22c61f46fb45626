"""The agent with a detector: the same loop, ring, keeper, intake and API as with a classifier."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import pytest

from curate.answers.base import BadOutputError
from curate.answers.detection import DETECTION
from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.capture import CaptureRecord
from curate.contracts.feedback import MarkedBox, Verdict
from curate.contracts.prediction import DetectionPrediction
from curate.errors import SelfCheckError
from edge_agent.cameras.base import Skipped, SkipReason, decode_image
from edge_agent.capture.feedback_intake import FeedbackRequest, UnknownBoxError
from edge_agent.models.inference import LoadedModel, load_model
from edge_agent.models.self_check import load_golden, verify_model
from tests.fakes.agent_bench import KEEP_ALL, KEEP_NONE, NOW, Bench
from tests.fakes.api_bench import ApiBench
from tests.fakes.tiny_detector import SPEC, detector_manifest, quarters, tiny_detector_bytes
from tests.fakes.tiny_model import tiny_manifest, tiny_model_bytes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    path.write_bytes(tiny_detector_bytes())
    return load_model(path, detector_manifest())


@pytest.fixture
def bench(tmp_path: Path, model: LoadedModel) -> Bench:
    made = Bench(tmp_path)
    made.live.replace(model)
    return made


def scores_of(bench: Bench, number: int) -> dict[str, float]:
    found = bench.predictions.get(f"boot-{number}")
    assert found is not None
    return dict(found.answer.scores)


def updates_of(bench: Bench) -> list[tuple[str, str | None]]:
    state = bench.report.state(
        device_id="cam-1", boot_id="boot", now=NOW, counters=bench.ledger.snapshot(), quarantined=0
    )
    return [(event.outcome, event.release_id) for event in state.updates]


def test_a_capture_carries_its_boxes(tmp_path: Path, model: LoadedModel) -> None:
    """The record holds boxes in the frame's pixels with embeddings, faint ones too, and survives the wire."""
    bench = Bench(tmp_path, KEEP_ALL)
    bench.live.replace(model)
    bench.camera.add_image(quarters(0.0, 0.9, 0.2, 0.02, size=64))
    bench.run()
    bench.store(1)
    ((record, _),) = bench.spool.captures
    prediction = record.prediction
    assert isinstance(prediction, DetectionPrediction)
    assert [box.box_id for box in prediction.boxes] == ["b1", "b2"]
    assert [box.score for box in prediction.boxes] == pytest.approx([0.9, 0.2], abs=0.02)
    assert [box.box_id for box in prediction.shown_boxes] == ["b1"]
    top_right = prediction.boxes[0]
    assert (top_right.x_min, top_right.y_min, top_right.x_max, top_right.y_max) == (36.0, 4.0, 60.0, 28.0)
    assert [box.embedding.dim for box in prediction.boxes if box.embedding] == [2, 2]
    assert prediction.embedding is not None
    assert prediction.embedding.dim == SPEC.embedding_dim
    assert CaptureRecord.from_bytes(record.to_bytes()) == record


def test_recent_predictions_cost_little(bench: Bench) -> None:
    """What pollers read holds no embeddings; the frame that may still be captured holds them."""
    bench.camera.add_image(quarters(0.9, 0.9, 0.9, 0.9))
    bench.run()
    listed, held = bench.predictions.get("boot-1"), bench.ring.find("boot-1")
    assert listed is not None
    assert held is not None
    assert listed.answer.size_bytes < held.answer.size_bytes
    assert all(box.embedding is None for box in listed.to_prediction().boxes)


def test_a_reader_belongs_to_one_model(bench: Bench, model: LoadedModel) -> None:
    """A swap starts a reader without tracks, so the old model's tracks are not lost under the new one."""
    for _ in range(5):
        bench.camera.add_image(quarters(0.9, 0.0, 0.0, 0.0))
    bench.camera.add_image(quarters(0.0, 0.0, 0.0, 0.0))
    bench.run()
    assert scores_of(bench, 6)["flicker"] > 0.0
    bench.live.replace(LoadedModel(model._session, detector_manifest("d-2")))
    bench.camera.add_image(quarters(0.0, 0.0, 0.0, 0.0))
    bench.run()
    assert scores_of(bench, 7)["flicker"] == 0.0


def test_a_long_gap_starts_a_new_reader(bench: Bench) -> None:
    """Frames far apart in the camera's own count are not taken for neighbours; a short gap is bridged."""
    for gap, flickers in ((3, True), (50, False)):
        for _ in range(5):
            bench.camera.add_image(quarters(0.9, 0.0, 0.0, 0.0))
        bench.camera.events.append(Skipped(SkipReason.BACKPRESSURE, gap))
        bench.camera.next_index += gap
        bench.camera.add_image(quarters(0.0, 0.0, 0.0, 0.0))
        bench.run()
        assert (scores_of(bench, bench.predictions.newest_cursor)["flicker"] > 0.0) is flickers


def test_a_bad_answer_skips_the_frame_and_no_more(tmp_path: Path) -> None:
    """A detector whose answer does not fit its specification yields bad_output and a counted error each frame."""
    session = ort.InferenceSession(tiny_detector_bytes(), providers=["CPUExecutionProvider"])
    wrong = detector_manifest().model_copy(update={"model": SPEC.model_copy(update={"class_names": ["a", "b"]})})
    bench = Bench(tmp_path, KEEP_ALL)
    bench.live.replace(LoadedModel(session, wrong))
    bench.camera.add_frames(2)
    bench.run()
    assert bench.ledger.snapshot().frames_skipped == {"bad_output": 2}


@pytest.mark.parametrize(("wanted", "replaced"), [("least_confidence", True), ("entropy", False), ("flicker", False)])
def test_a_score_the_answers_lack_is_replaced_and_told_once(
    tmp_path: Path, model: LoadedModel, wanted: str, replaced: bool
) -> None:
    """A policy made for another kind is followed with the kind's own score; one event says so."""
    spec = CapturePolicySpec(version="v", uncertain_budget_fraction=0.5, uncertainty_score=wanted)
    bench = Bench(tmp_path, spec, max_queued=100)
    bench.live.replace(model)
    rng = np.random.default_rng(0)
    for _ in range(40):
        bench.camera.add_image(quarters(*rng.random(4)))
    bench.run()
    assert updates_of(bench) == ([("score_replaced", "d-1")] if replaced else [])
    reasons = [reason for p in bench.predictions.after(0, 100) for reason in p.decision.reasons]
    used = "uncertainty" if replaced else wanted
    assert any(reason.startswith(f"uncertain: {used} ") for reason in reasons)
    assert bench.ledger.snapshot().frames_inferred == 40


def test_kinds_may_change_under_one_stream(bench: Bench, tmp_path: Path) -> None:
    """A classifier may follow a detector on the same camera: the next frame is answered in its way."""
    path = tmp_path / "c.onnx"
    path.write_bytes(tiny_model_bytes())
    bench.camera.add_frames(1)
    bench.run()
    bench.live.replace(load_model(path, tiny_manifest(release_id="c-1", number=2)))
    bench.camera.add_frames(1)
    bench.run()
    assert [p.to_prediction().kind for p in bench.predictions.after(0, 9)] == ["detection", "classification"]


# -- golden -------------------------------------------------------------------------------------------------------


def golden(model: LoadedModel, **changes: np.ndarray) -> bytes:
    images = np.stack([quarters(0.9, 0.3, 0.6, 0.1), quarters(0.0, 0.8, 0.2, 0.7)])
    answers = [model.infer(image).outputs for image in images]
    arrays = {name: np.stack([answer[name] for answer in answers]) for name in DETECTION.output_names}
    file = io.BytesIO()
    np.savez(file, **({"images": images, "tolerance": np.array(0.05)} | arrays | changes))  # type: ignore[arg-type]
    return file.getvalue()


def test_a_detector_is_checked_by_its_golden_answers(tmp_path: Path, model: LoadedModel) -> None:
    """The same answers pass, in any order of candidates; another score, or a missing output, does not."""
    path = tmp_path / "golden.npz"
    path.write_bytes(golden(model))
    good = load_golden(path, SPEC)
    verify_model(model, good)
    path.write_bytes(golden(model, **{n: good.outputs[n][:, ::-1] for n in DETECTION.output_names[:3]}))
    verify_model(model, load_golden(path, SPEC))
    path.write_bytes(golden(model, probabilities=good.outputs["probabilities"] * np.float32(0.8)))
    with pytest.raises(SelfCheckError, match="off by"):
        verify_model(model, load_golden(path, SPEC))
    path.write_bytes(golden(model, boxes=good.outputs["boxes"][:1]))
    with pytest.raises(SelfCheckError, match="rows"):
        load_golden(path, SPEC)


# -- feedback and the API -----------------------------------------------------------------------------------------


@pytest.fixture
def client(bench: Bench, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a real server whose agent has seen two frames."""
    bench.camera.add_image(quarters(0.9, 0.5, 0.2, 0.0))
    bench.camera.add_image(quarters(0.0, 0.0, 0.0, 0.0))
    bench.run()
    with ApiBench(bench, tmp_path).serve() as made:
        yield made


def test_a_prediction_tells_its_boxes(client: httpx.Client) -> None:
    """Each box has id, label, score and corners, and says whether it is to be shown; none at all is an answer."""
    told = client.get("/v1/predictions/boot-1").json()
    assert (told["kind"], told["captured"]) == ("detection", [])
    assert [(box["box_id"], box["label"], box["shown"]) for box in told["boxes"]] == [
        ("b1", "lamp", True),
        ("b2", "lamp", True),
        ("b3", "lamp", False),
    ]
    assert [told["boxes"][0][name] for name in ("x_min", "y_min", "x_max", "y_max")] == [2.0, 2.0, 14.0, 14.0]
    assert set(told["scores"]) == DETECTION.score_names
    assert client.get("/v1/predictions/boot-2").json()["boxes"] == []


def test_one_box_is_dismissed(client: httpx.Client, bench: Bench) -> None:
    """A verdict about a box the prediction has is stored with its id; about another it is 422 and nothing is kept."""
    url = "/v1/predictions/boot-1/feedback"
    refused = client.post(url, json={"verdict": "dismissed", "box_id": "b9"})
    assert (refused.status_code, "no box b9" in refused.json()["error"]) == (422, True)
    assert not bench.spool.captures
    assert client.post(url, json={"verdict": "dismissed", "box_id": "b3"}).status_code == 202
    (stored,) = bench.spool.feedback
    assert (stored.box_id, stored.frame_available) == ("b3", True)


def test_a_box_of_a_forgotten_prediction_is_taken(client: httpx.Client, bench: Bench) -> None:
    """What the agent no longer remembers it does not judge."""
    answer = client.post("/v1/predictions/old-7/feedback", json={"verdict": "dismissed", "box_id": "b9"})
    assert answer.status_code == 202


def test_a_missed_object_is_reported_with_its_box(client: httpx.Client, bench: Bench) -> None:
    """A correction may draw a box where there was none; the frame is captured and the verdict carries the box."""
    box = {"x_min": 2, "y_min": 3.5, "x_max": 10, "y_max": 20}
    body = {"verdict": "corrected", "label": "lamp", "box": box}
    answer = client.post("/v1/predictions/boot-2/feedback", json=body)
    assert (answer.status_code, answer.json()["frame_available"]) == (202, True)
    (stored,) = bench.spool.feedback
    assert (stored.verdict, stored.label, stored.box) == (Verdict.CORRECTED, "lamp", MarkedBox.model_validate(box))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verdict": "dismissed"}, "corrected"),
        ({"label": None}, "label"),
        ({"box_id": "b1"}, "box_id"),
        ({"box": {"x_min": 5, "y_min": 0, "x_max": 5, "y_max": 9}}, "area"),
        ({"box": {"x_min": -5, "y_min": 0, "x_max": 5, "y_max": 9}}, "x_min"),
        ({"box": {"x_min": 0, "y_min": 0, "x_max": 5}}, "y_max"),
        ({"box": {"x_min": 0, "y_min": 0, "x_max": 5, "y_max": 9, "colour": 1}}, "colour"),
    ],
)
def test_a_box_without_explanation_is_refused(
    client: httpx.Client, bench: Bench, change: dict[str, object], words: str
) -> None:
    """A drawn box needs `corrected`, a label, no box id, and four corners with an area; 422 says which is missing."""
    box = {"x_min": 0, "y_min": 0, "x_max": 5, "y_max": 9}
    body = {"verdict": "corrected", "label": "lamp", "box": box} | change
    answer = client.post("/v1/predictions/boot-1/feedback", json=body)
    assert (answer.status_code, words in answer.json()["error"]) == (422, True)
    assert not bench.spool.feedback


def test_a_repeated_verdict_is_answered_before_its_box_is_judged(bench: Bench) -> None:
    """The receipt of a stored verdict is returned whatever else the repetition says."""
    bench.camera.add_image(quarters(0.9, 0.0, 0.0, 0.0))
    bench.run()
    request = FeedbackRequest(verdict=Verdict.DISMISSED, box_id="b1", feedback_id="f-1")
    first = bench.intake.receive("boot-1", request)
    assert bench.intake.receive("boot-1", request.model_copy(update={"box_id": "b7"})) == first
    with pytest.raises(UnknownBoxError):
        bench.intake.receive("boot-1", request.model_copy(update={"box_id": "b7", "feedback_id": "f-2"}))


def test_the_frame_behind_a_prediction_can_be_seen(client: httpx.Client, bench: Bench) -> None:
    """The picture comes from the ring, from the queue to the disk and from the disk; afterwards it is 404 with why."""
    url = "/v1/predictions/boot-1/image"
    held = client.get(url)
    assert (held.status_code, held.headers["content-type"]) == (200, "image/jpeg")
    assert decode_image(held.content, max_pixels=5000).shape == (32, 32, 3)
    assert bench.ring.find("boot-1") is not None
    frame = bench.ring.claim("boot-1")
    assert frame is not None
    assert client.get(url).status_code == 404
    bench.keeper.offer(frame, frame.prediction.decision)
    assert client.get(url).content == held.content
    bench.store(1)
    assert decode_image(client.get(url).content, max_pixels=5000).shape == (32, 32, 3)
    gone = client.get("/v1/predictions/boot-99/image")
    assert (gone.status_code, "no frame is held" in gone.json()["error"]) == (404, True)
    assert client.get("/v1/predictions/bad.id/image").status_code == 422


def test_a_prediction_of_another_kind_is_not_described(bench: Bench) -> None:
    """Describing one kind's prediction by another kind is an error of ours and says so."""
    bench.camera.add_frames(1)
    bench.run()
    found = bench.predictions.get("boot-1")
    assert found is not None
    for prediction, names in ((found.to_prediction(), []), (None, ["lamp"])):
        with pytest.raises(BadOutputError):
            DETECTION.describe(prediction, names)  # type: ignore[arg-type]


def test_keep_none_keeps_none(bench: Bench) -> None:
    """Held frames stay in the ring when no arm wants them."""
    assert bench.loop.policy_spec == KEEP_NONE
    bench.camera.add_frames(3)
    bench.run()
    assert (len(bench.ring), len(bench.spool.captures)) == (3, 0)
