"""The HTTP API: what it answers, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from curate.answers.classification import CLASSIFICATION
from edge_agent.capture.feedback_intake import FeedbackIntake, FeedbackRequest
from edge_agent.capture.feedback_limits import FeedbackLimits
from edge_agent.config.sections import FeedbackConfig
from edge_agent.interfaces.pictures import MAX_VIEWERS
from edge_agent.models.inference import LoadedModel
from edge_agent.spool.index import CapturePlace
from tests.fakes.agent_bench import Bench
from tests.fakes.api_bench import ApiBench
from tests.fakes.tiny_model import CLASSES


@pytest.fixture
def bench(tmp_path: Path, classifier: LoadedModel) -> Bench:
    return Bench.answering(tmp_path, classifier, frames=5)


@pytest.fixture
def api(bench: Bench, tmp_path: Path) -> ApiBench:
    return ApiBench(bench, tmp_path)


@pytest.fixture
def client(api: ApiBench) -> Iterator[httpx.Client]:
    """A client of a real server on a free port."""
    with api.serve() as made:
        yield made


def test_health_and_status(client: httpx.Client) -> None:
    """The agent says that it lives, that it does its job, and what it counted."""
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/healthz").json() == {"status": "ok", "reasons": []}
    status = client.get("/v1/status").json()
    assert status["counters"]["frames_inferred"] == 5


def test_a_silent_camera_is_not_healthy(client: httpx.Client, api: ApiBench) -> None:
    """/healthz says 503 and which camera is silent, while /livez stays fine."""
    api.last_frame_age_s = 75.0
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unhealthy")
    assert answer.json()["reasons"] == ["camera front has given no frame for 75 s"]
    assert client.get("/livez").status_code == 200


def test_polling_by_cursor(client: httpx.Client, bench: Bench) -> None:
    """Pages follow each other without gap or repetition; the last page is empty and keeps the cursor."""
    seen: list[int] = []
    cursor = 0
    while True:
        page = client.get("/v1/predictions", params={"after": cursor, "limit": 2, "boot": "boot"}).json()
        assert page["missed"] == 0
        if not page["predictions"]:
            break
        seen += [prediction["cursor"] for prediction in page["predictions"]]
        cursor = page["next_cursor"]
    assert seen == [1, 2, 3, 4, 5]
    assert page["next_cursor"] == page["newest_cursor"] == 5


def test_one_prediction(client: httpx.Client) -> None:
    """A prediction has its id, frame, label, probabilities, scores and arms; an unknown one is 404."""
    prediction: dict[str, Any] = client.get("/v1/predictions/boot-2").json()
    assert (prediction["prediction_id"], prediction["frame_index"], prediction["cursor"]) == ("boot-2", 1, 2)
    assert prediction["label"] == CLASSES[prediction["class_index"]]
    assert sum(prediction["probabilities"]) == pytest.approx(1.0, abs=1e-4)
    assert set(prediction["scores"]) == CLASSIFICATION.score_names
    assert prediction["captured"] == []
    assert client.get("/v1/predictions/boot-99").status_code == 404


@pytest.mark.parametrize("params", [{"after": 900}, {"after": 4, "boot": "an-earlier-one"}])
def test_a_poller_of_an_earlier_boot_starts_over(client: httpx.Client, params: dict[str, Any]) -> None:
    """A cursor that cannot be of this boot gives everything from the start."""
    page = client.get("/v1/predictions", params=params).json()
    assert [prediction["cursor"] for prediction in page["predictions"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("params", [{"after": -1}, {"after": "x"}, {"limit": 0}, {"limit": 10**9}, {"after": 2**60}])
def test_wrong_numbers_are_refused(client: httpx.Client, params: dict[str, Any]) -> None:
    """Cursors and limits outside their range are 422 with the range in words."""
    answer = client.get("/v1/predictions", params=params)
    assert answer.status_code == 422
    assert "whole number" in answer.json()["error"]


def test_feedback_is_taken_and_captures(client: httpx.Client, bench: Bench) -> None:
    """A dismissal is 202 with its id, is stored, and its frame is captured and shown as such."""
    answer = client.post(
        "/v1/predictions/boot-3/feedback", json={"verdict": "dismissed", "reason": "wrong_class", "user": "ann"}
    )
    assert answer.status_code == 202
    (stored,) = bench.spool.feedback
    assert answer.json() == {"feedback_id": stored.feedback_id, "frame_available": True}
    assert client.get("/v1/predictions/boot-3").json()["captured"] == ["dismissed"]


def test_unknown_predictions_take_feedback(client: httpx.Client) -> None:
    """A well-formed id the agent does not know is 202, without a frame."""
    answer = client.post("/v1/predictions/long-gone-7/feedback", json={"verdict": "confirmed"})
    assert (answer.status_code, answer.json()["frame_available"]) == (202, False)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("boot-1", {}, "verdict"),
        ("boot-1", {"verdict": "meh"}, "verdict"),
        ("boot-1", {"verdict": "dismissed", "reason": "because"}, "reason"),
        ("boot-1", {"verdict": "dismissed", "colour": 1}, "colour"),
        ("boot-1", {"verdict": "corrected", "label": "x" * 300}, "label"),
        ("boot-1", {"verdict": "dismissed", "feedback_id": "../../etc"}, "feedback_id"),
        ("boot-1", [1], "body"),
        ("bad.id", {"verdict": "dismissed"}, "prediction id"),
        ("-x", {"verdict": "dismissed"}, "prediction id"),
        ("boot-1%0A", {"verdict": "dismissed"}, "prediction id"),
    ],
)
def test_malformed_feedback_is_refused(client: httpx.Client, bench: Bench, path: str, body: object, words: str) -> None:
    """Wrong ids, verdicts, fields and lengths are 422 that name what is wrong; nothing is stored."""
    answer = client.post(f"/v1/predictions/{path}/feedback", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["error"]
    assert not bench.spool.feedback


def test_bodies_and_hosts_are_guarded(client: httpx.Client, bench: Bench) -> None:
    """Broken JSON, big bodies, forms from other sites and foreign host names are refused."""
    url = "/v1/predictions/boot-1/feedback"
    as_json = {"content-type": "application/json"}
    assert client.post(url, content=b"{", headers=as_json).status_code == 422
    assert client.post(url, content=b" " * 2000, headers=as_json).status_code == 413
    assert client.post(url, content=iter([b" " * 900] * 9), headers=as_json).status_code == 413
    assert client.post(url, content=b'{"verdict":"dismissed"}').status_code == 415
    assert client.get("/v1/status", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/v1/predictions/boot-1/feedback").status_code == 405
    assert not bench.spool.feedback


def test_a_spool_that_cannot_store_is_503(client: httpx.Client, bench: Bench) -> None:
    """The app learns that the verdict is not stored, and may send it again with the same id."""
    bench.spool.refuse = True
    body = {"verdict": "confirmed", "feedback_id": "f-1"}
    answer = client.post("/v1/predictions/boot-1/feedback", json=body)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    bench.spool.refuse = False
    for _ in range(2):
        assert client.post("/v1/predictions/boot-1/feedback", json=body).status_code == 202
    assert len(bench.spool.feedback) == 1


def test_a_capture_is_followed(client: httpx.Client, api: ApiBench, bench: Bench) -> None:
    """What became of a frame: not kept, dismissed and spooled, then where the spool says; unknown is an answer."""

    def stage(prediction_id: str) -> str:
        return str(client.get(f"/v1/captures/{prediction_id}").json()["stage"])

    assert stage("boot-2") == "not_kept"
    client.post("/v1/predictions/boot-2/feedback", json={"verdict": "dismissed"})
    assert stage("boot-2") == "spooled"
    for place in (CapturePlace.IN_BATCH, CapturePlace.UPLOADED, CapturePlace.ACKNOWLEDGED, CapturePlace.EVICTED):
        api.places.told["boot-2"] = place
        assert stage("boot-2") == place.value
    assert stage("boot-99") == "unknown"
    assert client.get("/v1/captures/a.b").status_code == 422


def test_a_decision_is_explained(client: httpx.Client) -> None:
    """Every answered frame tells which arms decided what; an unknown one is 404."""
    told = client.get("/v1/predictions/boot-2/explain").json()
    assert told["prediction_id"] == "boot-2"
    assert client.get("/v1/predictions/boot-99/explain").status_code == 404


def test_switches(client: httpx.Client, api: ApiBench) -> None:
    """Switches are read and flipped; a body that names none, or something else, is 422 and flips nothing."""
    assert client.get("/v1/switches").json() == {"capture_allowed": True, "metered": False}
    assert client.put("/v1/switches", json={"capture_allowed": False}).json() == {
        "capture_allowed": False,
        "metered": False,
    }
    for wrong in ({}, {"capture_allowed": "yes"}, {"metered": True, "colour": 1}, []):
        assert client.put("/v1/switches", json=wrong).status_code == 422
    assert client.put("/v1/switches", content=b'{"metered": true}').status_code == 415
    assert not api.view.switches.state().metered


def test_cameras_and_their_newest_picture(client: httpx.Client) -> None:
    """Each camera comes with its newest prediction, and its newest frame is a picture that says which one it is."""
    (camera,) = client.get("/v1/cameras").json()["cameras"]
    assert (camera["camera_id"], camera["newest"]["prediction_id"]) == ("front", "boot-5")
    live = client.get("/v1/cameras/front/live.jpg")
    assert (live.status_code, live.headers["content-type"], live.headers["x-prediction-id"]) == (
        200,
        "image/jpeg",
        "boot-5",
    )
    assert client.get("/v1/cameras/back/live.jpg").status_code == 404


def test_pictures_are_few_at_a_time(api: ApiBench, client: httpx.Client) -> None:
    """A picture frees its place when it was sent, or was not there: more than all places are answered in a row."""
    statuses = {client.get("/v1/cameras/front/live.jpg").status_code for _ in range(2 * MAX_VIEWERS)}
    assert statuses == {200}
    assert client.get("/v1/predictions/boot-77/image").status_code == 404
    missing = {client.get("/v1/predictions/boot-77/image").status_code for _ in range(2 * MAX_VIEWERS)}
    assert missing == {404}


def test_the_page_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    """The page is one file; its policy lets its own script run and nothing else, and no other page frame it."""
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    for rule in ("default-src 'none'", "script-src 'sha256-", "frame-ancestors 'none'"):
        assert rule in policy
    assert "unsafe" not in policy
    assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert "https://" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_metrics_are_what_prometheus_reads(client: httpx.Client, api: ApiBench) -> None:
    """Prometheus' own parser reads the page; counters, histogram and reasons hold what the agent counted."""
    api.latencies.observe(0.004)
    api.latencies.observe(7.0)
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["gleaner_frames_inferred_total",] == 5
    assert samples["gleaner_inference_seconds_bucket", "0.005"] == 1
    assert samples["gleaner_inference_seconds_bucket", "+Inf"] == 2
    assert samples["gleaner_inference_seconds_count",] == 2
    assert samples["gleaner_errors_total", "BadOutputError"] == 2
    assert samples["gleaner_camera_fps", "front"] == 5.0
    assert samples["gleaner_healthy",] == 1


def test_a_flood_is_told_to_wait(api: ApiBench, bench: Bench) -> None:
    """Verdicts beyond the limits are 429 with the seconds to wait, and are not stored."""
    limits = FeedbackLimits(FeedbackConfig(user_per_minute=6.0, user_burst=2), lambda: 0.0)
    intake = FeedbackIntake(bench.spool, bench.keeper, bench.ring, bench.predictions, limits=limits)
    api.view = replace(api.view, intake=intake)
    with api.serve() as client:
        answers = [
            client.post(f"/v1/predictions/old-{number}/feedback", json={"verdict": "confirmed", "user": "eve"})
            for number in range(3)
        ]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert answers[-1].headers["retry-after"] == "10"
    assert len(bench.spool.feedback) == 2


def test_the_request_fits_the_wire_document() -> None:
    """Every field of the request except the id ends in the feedback document under the same name."""
    from curate.contracts.feedback import Feedback

    assert set(FeedbackRequest.model_fields) <= set(Feedback.model_fields)
