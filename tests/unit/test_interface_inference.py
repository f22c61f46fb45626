"""The Open Inference Protocol over HTTP: raw requests, good and hostile."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from edge_agent.interfaces.bodies import read_body
from edge_agent.interfaces.inference_rest import HEADER_LENGTH
from edge_agent.interfaces.posted_work import NICENESS, PostedWork
from edge_agent.interfaces.refusals import BusyError
from edge_agent.models.inference import LoadedModel, load_model
from tests.fakes.agent_bench import Bench
from tests.fakes.api_bench import MAX_POSTED_PIXELS, ApiBench
from tests.fakes.tiny_model import CLASSES, tiny_manifest, tiny_model_bytes

INFER = "/v2/models/live/infer"
SHAPE = [1, 32, 32, 3]


@pytest.fixture
def api(tmp_path: Path, classifier: LoadedModel) -> ApiBench:
    return ApiBench(Bench.answering(tmp_path, classifier), tmp_path)


@pytest.fixture
def client(api: ApiBench) -> Iterator[httpx.Client]:
    with api.serve() as made:
        yield made


def jpeg(brightness: int, size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (brightness,) * 3).save(buffer, "JPEG")
    return buffer.getvalue()


def pixels(brightness: int) -> list[int]:
    return [brightness] * (32 * 32 * 3)


def numbers(brightness: int) -> dict[str, Any]:
    return {"name": "images", "datatype": "UINT8", "shape": SHAPE, "data": pixels(brightness)}


def binary(header: dict[str, Any], tail: bytes) -> dict[str, Any]:
    head = json.dumps(header).encode()
    return {"content": head + tail, "headers": {HEADER_LENGTH: str(len(head))}}


def outputs_of(answer: httpx.Response) -> dict[str, Any]:
    return {output["name"]: output for output in answer.json()["outputs"]}


def test_metadata(client: httpx.Client) -> None:
    """Server and model say what they are; the model's version is its release."""
    assert client.get("/v2").json() == {
        "name": "gleaner-agent",
        "version": "1.2.3",
        "extensions": ["binary_tensor_data"],
    }
    for path in ("/v2/models/live", "/v2/models/live/versions/r-1"):
        told = client.get(path).json()
        assert (told["name"], told["versions"], told["platform"]) == ("live", ["r-1"], "onnxruntime_onnx")
        assert told["inputs"][0] == {"name": "images", "datatype": "UINT8", "shape": SHAPE}
        assert {output["name"]: output["shape"] for output in told["outputs"]} == {
            "probabilities": [1, 3],
            "embedding": [1, 3],
            "prediction": [1],
        }
    for path in ("/v2/models/other", "/v2/models/live/versions/r-9", "/v2/models/live/versions/r-9/ready"):
        assert client.get(path).status_code in {404, 503}


def test_readiness(client: httpx.Client, api: ApiBench) -> None:
    """Live always; ready while a model answers, and only under its own name and version."""
    ready = ("/v2/health/ready", "/v2/models/live/ready", "/v2/models/live/versions/r-1/ready")
    assert {client.get(path).status_code for path in ready} == {200}
    assert client.get("/v2/models/other/ready").status_code == 503
    api.bench.live.replace(None)
    assert {client.get(path).status_code for path in ready} == {503}
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/models/live").status_code == 503
    assert client.post(INFER, json={"inputs": [numbers(3)]}).status_code == 503


@pytest.mark.parametrize(("brightness", "label"), [(0, "dark"), (255, "bright")])
def test_a_frame_is_answered_in_json(client: httpx.Client, brightness: int, label: str) -> None:
    """Raw outputs come with their shapes, the prediction as the agent's own API tells it, the request's id back."""
    answer = client.post(INFER, json={"id": "q-1", "inputs": [numbers(brightness)]})
    assert (answer.status_code, answer.json()["id"], answer.json()["model_version"]) == (200, "q-1", "r-1")
    outputs = outputs_of(answer)
    assert outputs["probabilities"]["shape"] == [1, 3]
    assert sum(outputs["probabilities"]["data"]) == pytest.approx(1.0, abs=1e-4)
    told = json.loads(outputs["prediction"]["data"][0])
    assert (told["label"], told["release_id"]) == (label, "r-1")


def test_a_picture_is_answered_like_its_pixels(client: httpx.Client) -> None:
    """A JPEG in base64, a JPEG in binary and the pixels it holds get the same answer."""
    raw = jpeg(200)
    picture = {"name": "image", "datatype": "BYTES", "shape": [1]}
    as_json = client.post(INFER, json={"inputs": [picture | {"data": [base64.b64encode(raw).decode()]}]})
    tail = struct.pack("<I", len(raw)) + raw
    as_binary = client.post(
        INFER, **binary({"inputs": [picture | {"parameters": {"binary_data_size": len(tail)}}]}, tail)
    )
    as_pixels = client.post(INFER, json={"inputs": [numbers(200)]})
    found = [outputs_of(answer)["probabilities"]["data"] for answer in (as_json, as_binary, as_pixels)]
    assert found[0] == found[1] == pytest.approx(found[2], abs=1e-3)


def test_outputs_come_as_they_are_asked_for(client: httpx.Client) -> None:
    """One output in binary, one in JSON, in the order of the request; lengths add up to the body."""
    asked = [{"name": "embedding", "parameters": {"binary_data": True}}, {"name": "probabilities"}]
    answer = client.post(INFER, json={"inputs": [numbers(9)], "outputs": asked})
    split = int(answer.headers[HEADER_LENGTH])
    head = json.loads(answer.content[:split])
    first, second = head["outputs"]
    assert (first["name"], second["name"]) == ("embedding", "probabilities")
    assert first["parameters"] == {"binary_data_size": len(answer.content) - split}
    assert np.frombuffer(answer.content[split:], "<f4").shape == (3,)
    assert len(second["data"]) == len(CLASSES)


_HUGE = {"name": "images", "datatype": "UINT8", "shape": [2**30, 2**30, 2**30, 3], "data": [1]}
_PIXELS = {"name": "images", "datatype": "UINT8", "shape": SHAPE}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"inputs": NaN}', "inputs"),
        (b"\xff\xfe", "JSON"),
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": "images"}, "inputs"),
        ({"inputs": [_HUGE] * 20}, "inputs"),
        ({"inputs": [numbers(1)] * 2}, "exactly one"),
        ({"inputs": [_HUGE]}, "shape"),
        ({"inputs": [numbers(1) | {"shape": [-1, 32, 32, 3]}]}, "shape"),
        ({"inputs": [numbers(1) | {"shape": [2**80, 3]}]}, "shape"),
        ({"inputs": [numbers(1) | {"shape": [1] * 500}]}, "shape"),
        ({"inputs": [numbers(1) | {"shape": ["1", 32, 32, 3]}]}, "shape"),
        ({"inputs": [numbers(1) | {"datatype": "FP32"}]}, "datatype"),
        ({"inputs": [numbers(1) | {"datatype": "x" * 200}]}, "datatype"),
        ({"inputs": [numbers(1) | {"name": "frames"}]}, "unknown input"),
        ({"inputs": [numbers(1) | {"data": [1, 2, 3]}]}, "bytes"),
        ({"inputs": [numbers(1) | {"data": [300] * 3072}]}, "0 to 255"),
        ({"inputs": [_PIXELS]}, "binary_data_size"),
        ({"inputs": [numbers(1) | {"parameters": {"binary_data_size": 3}}]}, "binary_data_size"),
        ({"inputs": [_PIXELS | {"parameters": {"binary_data_size": 3072}}]}, "no length"),
        ({"inputs": [_PIXELS | {"parameters": {"binary_data_size": -1}}]}, "no length"),
        ({"inputs": [_PIXELS | {"parameters": {"binary_data_size": True}}]}, "no length"),
        ({"inputs": [_PIXELS | {"parameters": {"binary_data_size": 1e9}}]}, "no length"),
        ({"inputs": [numbers(1)], "outputs": [{"name": "logits"}]}, "unknown output"),
        ({"inputs": [numbers(1)], "outputs": [{"name": "embedding"}] * 2}, "twice"),
        ({"inputs": [numbers(1)], "id": "x" * 999}, "id"),
    ],
)
def test_hostile_requests_are_refused_in_words(client: httpx.Client, body: Any, words: str) -> None:
    """Whatever is malformed is 400 with what is wrong, in the protocol's form, and the next request is answered."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(INFER, content=raw)
    assert answer.status_code == 400
    assert set(answer.json()) <= {"error", "hint"}
    assert words in answer.json()["error"]
    assert len(answer.content) < 2000
    assert client.post(INFER, json={"inputs": [numbers(1)]}).status_code == 200


@pytest.mark.parametrize("declared", ["-1", "1e3", "", "99999999999999999999999", "100000", "\xb2"])
def test_wrong_header_lengths_are_refused(client: httpx.Client, declared: str) -> None:
    """A length of the JSON part that is none, or beyond the body, is 400."""
    headers = {HEADER_LENGTH: declared.encode("latin-1")}
    assert client.post(INFER, content=b"{}", headers=headers).status_code == 400


def test_sizes_are_bounded(client: httpx.Client) -> None:
    """A body over the limit, told or not, is 413; a compressed one 415; a picture of too many pixels 400."""
    assert client.post(INFER, content=b" " * 200_000).status_code == 413
    assert client.post(INFER, content=iter([b" " * 50_000] * 4)).status_code == 413
    assert client.post(INFER, content=b"x", headers={"Content-Encoding": "gzip"}).status_code == 415
    raw = jpeg(1, (MAX_POSTED_PIXELS // 100 + 1, 100))
    tail = struct.pack("<I", len(raw)) + raw
    picture = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tail)}}
    answer = client.post(INFER, **binary({"inputs": [picture]}, tail))
    assert (answer.status_code, "more than" in answer.json()["error"]) == (400, True)


def test_bytes_that_belong_to_nobody_are_refused(client: httpx.Client) -> None:
    """What follows the last tensor is a mistake."""
    picture = _PIXELS | {"parameters": {"binary_data_size": 3072}}
    assert client.post(INFER, **binary({"inputs": [picture]}, bytes(3072))).status_code == 200
    assert client.post(INFER, **binary({"inputs": [picture]}, bytes(3073))).status_code == 400


def test_a_model_that_is_replaced_meanwhile(api: ApiBench, client: httpx.Client, classifier: LoadedModel) -> None:
    """A request whose model is retired before it is asked is answered by the next one."""
    path = api.folder / "m.onnx"
    path.write_bytes(tiny_model_bytes(bias=0.3))
    retired = load_model(path, tiny_manifest(release_id="r-0"))
    retired.retire()
    seats = [retired, classifier, classifier, classifier]
    api.bench.live.current = lambda: seats.pop(0) if len(seats) > 1 else classifier  # type: ignore[method-assign]
    answer = client.post(INFER, json={"inputs": [numbers(1)]})
    assert (answer.status_code, answer.json()["model_version"]) == (200, "r-1")


def test_a_model_that_fails_is_said(api: ApiBench, client: httpx.Client) -> None:
    """When the model that answers fails on the frame, the client is told so, with 500."""
    path = api.folder / "m.onnx"
    path.write_bytes(tiny_model_bytes())
    broken = load_model(path, tiny_manifest(release_id="r-0"))
    broken.retire()
    api.bench.live.replace(broken)
    answer = client.post(INFER, json={"inputs": [numbers(1)]})
    assert (answer.status_code, "did not answer" in answer.json()["error"]) == (500, True)


def test_slow_bodies_are_given_up() -> None:
    """A body that does not arrive in time is 408, so that it does not hold its place for long."""
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}

    async def never() -> Any:
        await asyncio.sleep(60)

    with pytest.raises(HTTPException) as caught:
        asyncio.run(read_body(Request(scope, never), max_bytes=10, timeout_s=0.05))
    assert caught.value.status_code == 408


def test_posted_frames_leave_no_trace(client: httpx.Client, api: ApiBench) -> None:
    """What strangers post is no frame of a camera: no prediction, no capture, no count."""
    client.post(INFER, json={"inputs": [numbers(1)]})
    assert api.bench.predictions.newest_cursor == 0
    assert api.bench.ledger.snapshot().frames_seen == 0


def test_the_line_is_short_and_the_camera_first() -> None:
    """One request runs and one waits; a third is refused at once, and the worker has stepped back."""
    work = PostedWork(max_waiting=1)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        go_on.wait(10)
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with work.place(), work.place():
        future = work.submit(slow)
        assert begun.wait(10)
        with pytest.raises(BusyError), work.place():
            pass
        go_on.set()
        assert future.result(10) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    with work.place():
        pass
    work.stop()


def test_a_full_line_is_503(client: httpx.Client, api: ApiBench) -> None:
    """A client that comes when the line is full is told to come again; nothing else waits for it."""
    with api.work.place(), api.work.place():
        answer = client.post(INFER, json={"inputs": [numbers(1)]})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.get("/v2/models/live").status_code == 200
    assert client.post(INFER, json={"inputs": [numbers(1)]}).status_code == 200
