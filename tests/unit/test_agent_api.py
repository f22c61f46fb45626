"""The HTTP API: what it answers, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge_agent.capture.feedback_intake import FeedbackRequest
from edge_agent.capture.frame_finder import FrameFinder
from edge_agent.interfaces.api import create_app
from edge_agent.interfaces.api_server import ApiServer
from edge_agent.models.inference import LoadedModel, load_model
from tests.fakes.agent_bench import Bench
from tests.fakes.tiny_model import CLASSES, tiny_manifest, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    path.write_bytes(tiny_model().SerializeToString())
    return load_model(path, tiny_manifest(release_id="r-1"))


@pytest.fixture
def bench(tmp_path: Path, model: LoadedModel) -> Bench:
    made = Bench(tmp_path)
    made.live.replace(model)
    made.camera.add_frames(5)
    made.run()
    return made


@pytest.fixture
def client(bench: Bench, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a real server on a free port."""
    app = create_app(
        boot_id="boot",
        status=lambda: {"device_id": "cam-1", "counters": bench.ledger.snapshot().model_dump()},
        predictions=bench.predictions,
        intake=bench.intake,
        frames=FrameFinder(bench.ring, bench.keeper, bench.spool),
        host="127.0.0.1",
        max_body_bytes=1000,
    )
    server = ApiServer(app, host="127.0.0.1", port=0, address_file=tmp_path / "api.json")
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False, timeout=5.0) as made:
        yield made
    server.stop(5.0)


def test_health_and_status(client: httpx.Client) -> None:
    """The agent says that it lives, and what it counted."""
    assert client.get("/healthz").json() == {"status": "ok"}
    status = client.get("/v1/status").json()
    assert status["counters"]["frames_inferred"] == 5


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
    assert set(prediction["scores"]) == {"least_confidence", "margin", "entropy"}
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


def test_the_request_fits_the_wire_document() -> None:
    """Every field of the request except the id ends in the feedback document under the same name."""
    from curate.contracts.feedback import Feedback

    assert set(FeedbackRequest.model_fields) <= set(Feedback.model_fields)
