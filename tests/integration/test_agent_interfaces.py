"""Clients that nobody here wrote: tritonclient over HTTP and gRPC, TLS, and MQTT through a real mosquitto."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import yaml
from PIL import Image
from tritonclient.utils import InferenceServerException

from curate.errors import ConfigError
from edge_agent.agent_client import AgentClient, AgentNotRunningError
from edge_agent.config.agent import load_config
from edge_agent.config.interfaces import MqttConfig
from edge_agent.interfaces.inference_grpc import GrpcAddress, InferenceGrpcServer
from edge_agent.interfaces.mqtt import MqttBridge
from edge_agent.interfaces.tokens import TokenGuard
from edge_agent.models.inference import LoadedModel
from tests.conftest import _missing
from tests.fakes.agent_bench import Bench
from tests.fakes.api_bench import OPTIONS, ApiBench
from tests.fakes.mqtt_broker import MOSQUITTO, Broker, Listener, listening, wait_until
from tests.fakes.tiny_model import CLASSES
from tests.integration.test_agent_service import SIZE, FrameWriter, World
from tests.unit.test_agent_config import MINIMAL, write

TOKEN = "0123456789abcdef-token"
SHAPE = (1, 32, 32, 3)
MAX_VERDICT_BYTES = 16 * 1024


@pytest.fixture
def api(tmp_path: Path, classifier: LoadedModel) -> ApiBench:
    return ApiBench(Bench.answering(tmp_path, classifier, frames=3), tmp_path)


def frames(brightness: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full(SHAPE, brightness, np.uint8)


def jpeg(brightness: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), (brightness,) * 3).save(buffer, "JPEG")
    return buffer.getvalue()


# -- Open Inference Protocol --------------------------------------------------------------------------------------


def ask(library: Any, client: Any, *, headers: dict[str, str] | None = None) -> None:
    """What any client of the protocol does, over either transport: both libraries have one interface."""
    assert client.is_server_live(headers=headers)
    assert client.is_server_ready(headers=headers)
    assert client.is_model_ready("live", headers=headers)
    assert client.is_model_ready("live", "r-1", headers=headers)
    tensor = library.InferInput("images", SHAPE, "UINT8")
    tensor.set_data_from_numpy(frames(255))
    answer = client.infer("live", [tensor], request_id="q-7", headers=headers)
    probabilities = answer.as_numpy("probabilities")
    assert probabilities.shape == (1, len(CLASSES))
    assert int(probabilities.argmax()) == CLASSES.index("bright")
    assert json.loads(answer.as_numpy("prediction")[0])["label"] == "bright"
    picture = library.InferInput("image", [1], "BYTES")
    picture.set_data_from_numpy(np.array([jpeg(0)], dtype=np.object_))
    wanted = [library.InferRequestedOutput("prediction"), library.InferRequestedOutput("embedding")]
    answer = client.infer("live", [picture], outputs=wanted, model_version="r-1", headers=headers)
    assert json.loads(answer.as_numpy("prediction")[0])["label"] == "dark"
    assert answer.as_numpy("embedding").shape == (1, 3)
    assert answer.as_numpy("probabilities") is None
    wrong = library.InferInput("images", [1, 2, 2, 3], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 2, 2, 3), np.uint8))
    with pytest.raises(InferenceServerException, match="shape"):
        client.infer("live", [wrong], headers=headers)
    with pytest.raises(InferenceServerException, match="no model"):
        client.infer("other", [tensor], headers=headers)


def test_the_http_client_works_unchanged(api: ApiBench) -> None:
    """tritonclient.http, with its binary tensors: health, metadata, infer on a tensor and on a picture, refusals."""
    with api.serve() as served, tritonclient.http.InferenceServerClient(str(served.base_url)[7:].strip("/")) as client:
        assert client.get_server_metadata()["name"] == "gleaner-agent"
        told = client.get_model_metadata("live")
        assert (told["versions"], told["inputs"][0]["shape"]) == (["r-1"], list(SHAPE))
        ask(tritonclient.http, client)


@contextmanager
def grpc_server(api: ApiBench, guard: TokenGuard | None = None, **address: Any) -> Iterator[InferenceGrpcServer]:
    server = InferenceGrpcServer(
        api.service, api.work, GrpcAddress("127.0.0.1", 0, **address), guard=guard, max_message_bytes=100_000
    )
    server.start()
    try:
        yield server
    finally:
        server.stop(1.0)
        api.work.stop()


def test_the_grpc_client_works_unchanged(api: ApiBench) -> None:
    """tritonclient.grpc: the same as over HTTP."""
    with (
        grpc_server(api) as server,
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        assert client.get_server_metadata().name == "gleaner-agent"
        told = client.get_model_metadata("live")
        assert (list(told.versions), list(told.inputs[0].shape)) == (["r-1"], list(SHAPE))
        assert [output.name for output in told.outputs] == ["probabilities", "embedding", "prediction"]
        ask(tritonclient.grpc, client)


def test_the_grpc_door(api: ApiBench, classifier: LoadedModel) -> None:
    """With a guard, every call needs a token; without a model, calls are answered UNAVAILABLE."""
    with (
        grpc_server(api, TokenGuard([TOKEN])) as server,
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        with pytest.raises(InferenceServerException, match="authorization"):
            client.is_server_live()
        headers = {"authorization": f"Bearer {TOKEN}"}
        ask(tritonclient.grpc, client, headers=headers)
        api.bench.live.replace(None)
        assert not client.is_server_ready(headers=headers)
        with pytest.raises(InferenceServerException, match="no model yet") as caught:
            client.get_model_metadata("live", headers=headers)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"


def test_hostile_grpc_is_refused(api: ApiBench) -> None:
    """Bytes that are no message, messages that are too large and typed contents that do not fit are refused in words,
    and the next call is answered."""
    with grpc_server(api) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        for raw, code in (
            (b"\xff\xff\xff", grpc.StatusCode.INTERNAL),
            (b"", grpc.StatusCode.NOT_FOUND),
            (b"\x0a\x04live", grpc.StatusCode.INVALID_ARGUMENT),
            (b"\x0a\x04live" + bytes(200_000), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(raw, timeout=10)
            assert caught.value.code() == code
            assert live(b"", timeout=10) == b"\x08\x01"


def test_a_taken_grpc_port_is_said_in_words(api: ApiBench) -> None:
    """Two servers on one port: the second is a configuration error with a hint."""
    with grpc_server(api) as server, pytest.raises(ConfigError) as caught:
        InferenceGrpcServer(
            api.service, api.work, GrpcAddress("127.0.0.1", server.port), guard=None, max_message_bytes=1000
        )
    assert "cannot listen" in str(caught.value)
    assert caught.value.hint


# -- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return cert, key


def test_tls_and_token_together(api: ApiBench, certificate: tuple[Path, Path]) -> None:
    """Over TLS the cookie travels over TLS only, and the address file says https."""
    options = replace(OPTIONS, guard=TokenGuard([TOKEN]))
    with api.serve(options, tls=certificate) as client:
        assert "Secure" in client.get("/", params={"token": TOKEN}).headers["set-cookie"]
        assert client.get("/v1/cameras").status_code == 200
        assert json.loads((api.folder / "api.json").read_text())["url"].startswith("https://127.0.0.1:")


def test_the_command_line_finds_in(api: ApiBench, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    """The agent's own client uses the token of the file and believes the certificate of the configuration."""
    (tmp_path / "tokens").write_text(TOKEN)
    cert, key = certificate
    settings = {"token_file": "tokens", "tls_cert": str(cert), "tls_key": str(key)}
    config = load_config(write(tmp_path, MINIMAL | {"state_dir": ".", "api": settings}))
    with api.serve(replace(OPTIONS, guard=TokenGuard([TOKEN])), tls=certificate):
        assert AgentClient(config).get("/v1/switches") == {"capture_allowed": True, "metered": False}


def test_something_else_on_the_port_is_said_in_words(tmp_path: Path) -> None:
    """An address file that outlived its agent may lead to a program that speaks no HTTP."""
    config = load_config(write(tmp_path, MINIMAL | {"state_dir": "."}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "api.json").write_text(json.dumps({"url": f"http://127.0.0.1:{server.getsockname()[1]}"}))

        def greet() -> None:
            with server.accept()[0] as caller:
                caller.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                caller.recv(4096)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(AgentNotRunningError, match="does not answer"):
            AgentClient(config).get("/v1/status")
        thread.join(10)


def test_grpc_over_tls(api: ApiBench, certificate: tuple[Path, Path]) -> None:
    """The same certificate serves gRPC."""
    cert, key = certificate
    with grpc_server(api, certificate=cert.read_bytes(), key=key.read_bytes()) as server:
        credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"", timeout=10) == b"\x08\x01"


def test_a_wrong_certificate_is_said_in_words(api: ApiBench, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    """A key that is no key is a configuration error at the start, not a line in a thread's log."""
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(ConfigError, match="certificate"), api.serve(tls=(certificate[0], tmp_path / "key.pem")):
        pass


# -- MQTT ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if MOSQUITTO is None:
        _missing("mosquitto", "apt-get install mosquitto")
    made = Broker(tmp_path)
    made.start()
    yield made
    made.stop()


@contextmanager
def bridging(api: ApiBench, port: int, **settings: Any) -> Iterator[MqttBridge]:
    """The bridge as the service runs it."""
    config = MqttConfig(host="127.0.0.1", port=port, prediction_interval_s=0.05, **settings)
    bridge = MqttBridge(config, api.view, agent_version="1.2.3", max_message_bytes=MAX_VERDICT_BYTES)
    stop = threading.Event()
    thread = threading.Thread(target=bridge.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield bridge
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def heard(listener: Listener, topic: str) -> bool:
    return topic in listener.newest


def test_predictions_and_state_are_told(api: ApiBench, broker: Broker) -> None:
    """The newest prediction of a camera and the device's state arrive; at the end the device says that it is gone."""
    with listening(broker.port) as listener:
        with bridging(api, broker.port):
            wait_until(lambda: heard(listener, "gleaner/cam-1/front/prediction"), "a prediction")
            told = listener.document("gleaner/cam-1/front/prediction")
            assert (told["prediction_id"], told["summary"]) == ("boot-3", told["label"])
            wait_until(lambda: heard(listener, "gleaner/cam-1/state"), "the state")
            assert listener.document("gleaner/cam-1/state")["release_id"] == "r-1"
            assert listener.newest["gleaner/cam-1/availability"] == b"online"
            assert listener.counts["gleaner/cam-1/front/prediction"] == 1
            assert not heard(listener, "gleaner/cam-1/front/image")
        wait_until(lambda: listener.newest["gleaner/cam-1/availability"] == b"offline", "the goodbye")


def test_home_assistant_finds_the_camera(api: ApiBench, broker: Broker) -> None:
    """Discovery messages are retained, have unique ids of one device, and name topics that are really used."""
    with bridging(api, broker.port, image_interval_s=0.5), listening(broker.port) as listener:
        prefix = "homeassistant/{}/gleaner_cam-1/{}/config"
        topics = {
            prefix.format("binary_sensor", "problem"): "state_topic",
            prefix.format("sensor", "pending"): "state_topic",
            prefix.format("sensor", "release"): "state_topic",
            prefix.format("sensor", "front_answer"): "state_topic",
            prefix.format("camera", "front_picture"): "topic",
        }
        button = prefix.format("button", "front_dismiss")
        wait_until(lambda: {*topics, button} <= listener.newest.keys(), "the discovery messages")
        documents = [listener.document(topic) for topic in (*topics, button)]
        assert len({document["unique_id"] for document in documents}) == len(documents)
        assert {document["device"]["identifiers"][0] for document in documents} == {"gleaner_cam-1"}
        used = {listener.document(topic)[key] for topic, key in topics.items()}
        used |= {document["availability_topic"] for document in documents}
        wait_until(lambda: used <= listener.newest.keys(), f"messages on {used}")
        assert listener.newest["gleaner/cam-1/front/image"].startswith(b"\xff\xd8")
        listener.send(listener.document(button)["command_topic"], b"dismiss")
        wait_until(lambda: len(api.bench.spool.feedback) == 1, "the dismissal")
        assert api.bench.spool.feedback[0].prediction_id == "boot-3"
    with listening(broker.port) as late:
        wait_until(lambda: set(topics) <= late.retained, "retained discovery messages")


def test_verdicts_come_in_and_are_answered(api: ApiBench, broker: Broker) -> None:
    """A verdict is stored and answered; the same one twice counts once; what is malformed is refused in words."""
    feedback, reply = "gleaner/cam-1/feedback", "gleaner/cam-1/feedback/reply"
    with listening(broker.port) as listener, bridging(api, broker.port):
        wait_until(lambda: heard(listener, "gleaner/cam-1/state"), "the bridge")

        def say(payload: object) -> Any:
            before = listener.counts.get(reply, 0)
            listener.send(feedback, payload)
            wait_until(lambda: listener.counts.get(reply, 0) > before, "a reply")
            return listener.document(reply)

        verdict = {"prediction_id": "boot-2", "verdict": "dismissed", "reason": "wrong_class"}
        first = say(verdict)
        assert (first["accepted"], first["frame_available"]) == (True, True)
        assert say(verdict)["feedback_id"] == first["feedback_id"]
        assert [stored.prediction_id for stored in api.bench.spool.feedback] == ["boot-2"]
        for wrong in (b"\xff", b"[" * 9000, {}, verdict | {"colour": 1}, verdict | {"prediction_id": "a/b"}):
            refused = say(wrong)
            assert refused["accepted"] is False
            assert refused["error"]
        assert len(api.bench.spool.feedback) == 1


def test_a_message_that_is_too_long_is_refused_and_never_held(api: ApiBench, broker: Broker) -> None:
    """Verdicts and presses above the bound are answered, counted and gone; of 16 MB only a little is ever in memory."""
    feedback, reply = "gleaner/cam-1/feedback", "gleaner/cam-1/feedback/reply"
    long = json.dumps({"prediction_id": "boot-2", "verdict": "dismissed"}).encode().ljust(MAX_VERDICT_BYTES + 1)
    most_held = 0
    with listening(broker.port) as listener, bridging(api, broker.port) as bridge:
        wait_until(lambda: heard(listener, "gleaner/cam-1/front/prediction"), "the bridge")
        receive = bridge._client._sock_recv

        def watched(bufsize: int) -> bytes:
            nonlocal most_held
            piece = receive(bufsize)
            most_held = max(most_held, len(bridge._client._in_packet["packet"]) + len(piece))
            return piece

        def answered(count: int) -> bool:
            return listener.counts.get(reply, 0) == count

        bridge._client._sock_recv = watched  # type: ignore[method-assign]
        sent = ((feedback, long), (feedback, b" " * 2**24), ("gleaner/cam-1/front/dismiss", b"x" * 2**18))
        for count, (topic, payload) in enumerate(sent, 1):
            listener.send(topic, payload)
            wait_until(partial(answered, count), "a reply")
            assert listener.document(reply) == {
                "accepted": False,
                "error": f"the message is longer than {MAX_VERDICT_BYTES} bytes",
            }
        listener.send(feedback, long.rstrip().ljust(MAX_VERDICT_BYTES))
        wait_until(lambda: len(api.bench.spool.feedback) == 1, "a verdict that is just short enough")
        assert bridge.counters()["mqtt_refused_too_long"] == len(sent)
    assert MAX_VERDICT_BYTES < most_held < 256 * 1024


def test_a_retained_press_is_none(api: ApiBench, broker: Broker) -> None:
    """A press that the broker keeps comes again with each subscription, long after its frame: it dismisses nothing."""
    dismiss, feedback, reply = (f"gleaner/cam-1/{end}" for end in ("front/dismiss", "feedback", "feedback/reply"))
    with listening(broker.port) as listener:
        listener.send(dismiss, b"dismiss", retain=True)
        with bridging(api, broker.port) as bridge:
            wait_until(lambda: heard(listener, "gleaner/cam-1/front/prediction"), "a prediction")
            bridge._client.subscribe(dismiss, 1)
            listener.send(feedback, {"prediction_id": "boot-2", "verdict": "confirmed"})
            wait_until(lambda: heard(listener, reply), "a reply")
    assert [stored.prediction_id for stored in api.bench.spool.feedback] == ["boot-2"]


def test_a_verdict_waits_for_the_disk(api: ApiBench, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict that the disk refuses is not answered, and is stored once the disk takes it again."""
    from edge_agent.errors import SpoolUnavailableError
    from edge_agent.interfaces import mqtt

    monkeypatch.setattr(mqtt, "_RETRY_S", 0.1)
    refusals: list[str] = []
    put = api.bench.spool.put_feedback

    def put_later(feedback: Any) -> None:
        if len(refusals) < 3:
            refusals.append(feedback.feedback_id)
            raise SpoolUnavailableError("the disk is full")
        put(feedback)

    monkeypatch.setattr(api.bench.spool, "put_feedback", put_later)
    with listening(broker.port) as listener, bridging(api, broker.port):
        wait_until(lambda: heard(listener, "gleaner/cam-1/state"), "the bridge")
        listener.send("gleaner/cam-1/feedback", {"prediction_id": "boot-1", "verdict": "confirmed"})
        wait_until(lambda: len(api.bench.spool.feedback) == 1, "the verdict")
    assert len(refusals) == 3
    assert len(set(refusals)) == 1


def test_the_broker_may_go_and_come_back(api: ApiBench, broker: Broker) -> None:
    """Without a broker nothing piles up and nothing fails; when it is back, everything is told anew."""
    prediction = "gleaner/cam-1/front/prediction"
    with bridging(api, broker.port) as bridge:
        with listening(broker.port) as listener:
            wait_until(lambda: heard(listener, "gleaner/cam-1/state"), "the state")
        broker.stop()
        api.bench.camera.add_frames(50)
        api.bench.run()
        assert len(bridge._unsent) <= 32
        broker.start()
        with listening(broker.port) as listener:
            api.bench.camera.add_frames(1)  # the one before may have been told before anybody listened
            api.bench.run()
            wait_until(lambda: b"boot-54" in listener.newest.get(prediction, b""), "a prediction after the return")
            assert listener.newest["gleaner/cam-1/availability"] == b"online"


def test_a_broker_with_a_password(api: ApiBench, tmp_path: Path) -> None:
    """The agent logs in with the password of its file."""
    broker = Broker(tmp_path, user="cam", password="a secret")
    (tmp_path / "password").write_text("a secret\n")
    broker.start()
    try:
        with (
            listening(broker.port, user="cam", password="a secret") as listener,
            bridging(api, broker.port, username="cam", password_file=tmp_path / "password"),
        ):
            wait_until(lambda: heard(listener, "gleaner/cam-1/state"), "the state")
    finally:
        broker.stop()


def test_a_missing_password_file_is_said_in_words(api: ApiBench, tmp_path: Path) -> None:
    """It is a configuration error at the start."""
    config = MqttConfig(host="127.0.0.1", username="cam", password_file=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="password_file"):
        MqttBridge(config, api.view, agent_version="1.2.3", max_message_bytes=MAX_VERDICT_BYTES)


def test_the_whole_agent_serves_all_of_them(tmp_path: Path, broker: Broker, request: pytest.FixtureRequest) -> None:
    """One agent's process: the page, metrics, health, HTTP and gRPC inference, a switch, and a verdict over MQTT that
    becomes a capture whose way can be followed."""
    world = World(tmp_path)
    request.addfinalizer(lambda: world.process and world.process.kill())
    document = yaml.safe_load(world.config.read_text())
    document |= {"grpc": {"port": 0}, "mqtt": {"host": "127.0.0.1", "port": broker.port}}
    world.config.write_text(yaml.safe_dump(document))
    with FrameWriter(tmp_path / "frames", fps=10.0), listening(broker.port) as listener:
        world.start()
        assert world.fetch("/healthz").status_code == 503
        world.release("r-1", bias=0.0)
        topic = "gleaner/cam-1/front/prediction"
        wait_until(lambda: heard(listener, topic), "a prediction over MQTT", 90)
        assert world.get("/healthz") == {"status": "ok", "reasons": []}
        assert world.fetch("/").headers["content-type"].startswith("text/html")
        assert "gleaner_inference_seconds_count" in world.fetch("/metrics").text
        assert world.fetch("/v1/cameras/front/live.jpg").status_code == 200
        status = world.get("/v1/status")
        tensor = np.zeros((1, SIZE, SIZE, 3), np.uint8)
        for library, port in ((tritonclient.grpc, status["grpc_port"]), (tritonclient.http, api_port(world))):
            with library.InferenceServerClient(f"127.0.0.1:{port}") as client:
                given = library.InferInput("images", tensor.shape, "UINT8")
                given.set_data_from_numpy(tensor)
                answer = client.infer("live", [given])
                assert json.loads(answer.as_numpy("prediction")[0])["label"] == "dark"
        prediction_id = listener.document(topic)["prediction_id"]
        listener.send("gleaner/cam-1/feedback", {"prediction_id": prediction_id, "verdict": "dismissed"})
        wait_until(lambda: heard(listener, "gleaner/cam-1/feedback/reply"), "the reply")
        assert listener.document("gleaner/cam-1/feedback/reply")["frame_available"]
        wait_until(
            lambda: world.get(f"/v1/captures/{prediction_id}")["stage"] == "uploaded",
            "the dismissed frame's upload",
            60,
        )
        world.acknowledge()
        wait_until(lambda: world.get(f"/v1/captures/{prediction_id}")["stage"] == "acknowledged", "its acknowledgement")
        assert world.end(signal.SIGTERM) == 0
        wait_until(lambda: listener.newest["gleaner/cam-1/availability"] == b"offline", "the goodbye")


def api_port(world: World) -> int:
    return int(json.loads((world.state / "api.json").read_text())["port"])
