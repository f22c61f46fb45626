"""The camera comes first: clients that post as fast as they can, over both transports, take nothing from it (P2)."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from curate.contracts.telemetry import DeviceCounters
from edge_agent.interfaces.inference_grpc import SERVICE
from edge_agent.interfaces.protos import open_inference_pb2 as pb
from tests.integration.test_agent_service import SIZE, World, verify_laws, wait_until

CLIENTS = 4
"""Of each transport."""
QUIET_FRAMES, BUSY_FRAMES = 20, 60
TOLERATED_SHARE = 0.1
"""Of the frames: what else runs on the machine changes between the two looks."""
ANSWERED, REFUSED = "answered", "refused"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An agent whose camera shows ten frames a second, whoever reads them, and skips what is a second late."""
    made = World(tmp_path)
    (tmp_path / "frames").mkdir()
    for index in range(5):
        Image.new("RGB", (SIZE, SIZE), (40 * index,) * 3).save(tmp_path / "frames" / f"{index}.png")
    document = yaml.safe_load(made.config.read_text())
    document["camera"] |= {"follow": False, "fps": 10.0, "max_lag_frames": 10}
    document |= {"grpc": {"port": 0}, "api": {"port": 0, "max_posts_waiting": 1}}
    made.config.write_text(yaml.safe_dump(document))
    made.release("r-1", bias=0.0)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


def post_over_http(world: World, opened: ExitStack) -> Callable[[], str]:
    """Return what posts one tensor over HTTP and says how it was answered."""
    url = json.loads((world.state / "api.json").read_text())["url"]
    body = {"inputs": [{"name": "images", "shape": [1, SIZE, SIZE, 3], "datatype": "UINT8", "data": [9] * SIZE**2 * 3}]}
    content = json.dumps(body).encode()
    client = opened.enter_context(httpx.Client(base_url=url, trust_env=False, timeout=60))

    def post() -> str:
        status = client.post("/v2/models/live/infer", content=content).status_code
        return {200: ANSWERED, 503: REFUSED}.get(status, f"HTTP {status}")

    return post


def post_over_grpc(world: World, opened: ExitStack) -> Callable[[], str]:
    """The same over gRPC."""
    address = f"127.0.0.1:{world.get('/v1/status')['grpc_port']}"
    channel = opened.enter_context(grpc.insecure_channel(address))
    infer = channel.unary_unary(f"/{SERVICE}/ModelInfer", request_serializer=pb.ModelInferRequest.SerializeToString)
    tensor = pb.ModelInferRequest.InferInputTensor(name="images", datatype="UINT8", shape=[1, SIZE, SIZE, 3])
    request = pb.ModelInferRequest(
        model_name="live", inputs=[tensor], raw_input_contents=[np.zeros((SIZE, SIZE, 3), np.uint8).tobytes()]
    )

    def post() -> str:
        try:
            infer(request, timeout=60)
        except grpc.RpcError as exc:
            code = exc.code()
            return REFUSED if code is grpc.StatusCode.RESOURCE_EXHAUSTED else str(code)
        return ANSWERED

    return post


@contextmanager
def flooded(posts: list[tuple[str, Callable[[], str]]]) -> Iterator[Counter[tuple[str, str]]]:
    """Post from as many threads as there are ways; count the answers by way."""
    found: Counter[tuple[str, str]] = Counter()
    over = threading.Event()
    lock = threading.Lock()

    def run(way: str, post: Callable[[], str]) -> None:
        while not over.is_set():
            answer = post()
            with lock:
                found[way, answer] += 1

    threads = [threading.Thread(target=run, args=each) for each in posts]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        over.set()
        for thread in threads:
            thread.join()


def look(world: World, frames: int, *, until: Callable[[], bool] = lambda: True) -> float:
    """Let so many frames pass; return which share of them the model saw."""
    start = world.counters()
    ends: list[DeviceCounters] = []

    def is_over() -> bool:
        ends.append(world.counters())
        return ends[-1].frames_seen - start.frames_seen >= frames and until()

    wait_until(is_over, f"{frames} frames", 240)
    verify_laws(ends[-1])
    return (ends[-1].frames_inferred - start.frames_inferred) / (ends[-1].frames_seen - start.frames_seen)


def test_posted_load_takes_nothing_from_the_camera(world: World) -> None:
    """While eight clients post as fast as they can, the model sees as large a share of the camera's frames as without
    them; what is too much is refused as busy, over both transports, and nothing is answered otherwise."""
    world.start()
    wait_until(lambda: world.counters().frames_inferred > 0, "the first answer")
    quiet = look(world, QUIET_FRAMES)
    ways = {"http": post_over_http, "grpc": post_over_grpc}
    expected = {(way, answer) for way in ways for answer in (ANSWERED, REFUSED)}
    with (
        ExitStack() as opened,
        flooded(
            [(way, open_post(world, opened)) for way, open_post in ways.items() for _ in range(CLIENTS)]
        ) as answers,
    ):
        busy = look(world, BUSY_FRAMES, until=lambda: set(answers) >= expected)
    assert set(answers) == expected
    assert busy >= quiet - TOLERATED_SHARE, f"{busy:.2f} of the frames with posts, {quiet:.2f} without; {answers}"
