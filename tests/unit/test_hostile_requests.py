"""Requests that no honest client would send: an answer each time, and never that of a surprised server (P2)."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from edge_agent.interfaces.api import create_app
from edge_agent.models.inference import LoadedModel
from tests.fakes.agent_bench import Bench
from tests.fakes.api_bench import OPTIONS, ApiBench
from tests.fakes.captures import broken_laws
from tests.fakes.hostile_images import damaged, encoded, monsters
from tests.fakes.memory import MIB, peak_memory
from tests.fakes.mutations import damage_bytes, damage_json, monstrous_json
from tests.fakes.nightly import Tell, cases

REQUESTS = cases(thin=2500, full=10_000)
MAY_BE_UNAVAILABLE = ("/healthz", "/v2/health/ready", "/ready", "/infer")
"""503 is their honest word for "not now"."""
HOST = (b"host", b"127.0.0.1:8080")
JSON = (b"content-type", b"application/json")
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW", "")
EVIL_TEXTS = (
    "..",
    "%2e%2e%2f",
    "../../etc/passwd",
    "a" * 5000,
    "\x00",
    "\u202e\u0661",
    "-1",
    "9" * 400,
    "1e9",
    "0x10",
    "١٢",
    "",
    " ",
    "boot-2",
    "boot-99",
    "front",
    "r-1",
    "<script>alert(1)</script>",
    "a\r\nSet-Cookie: x=1",
    "{}",
    "null",
)
PATHS = (
    "/",
    "/livez",
    "/healthz",
    "/metrics",
    "/v1/status",
    "/v1/cameras",
    "/v1/cameras/{}/live.jpg",
    "/v1/predictions",
    "/v1/predictions/{}",
    "/v1/predictions/{}/image",
    "/v1/predictions/{}/explain",
    "/v1/predictions/{}/feedback",
    "/v1/captures/{}",
    "/v1/switches",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{}",
    "/v2/models/{}/ready",
    "/v2/models/{}/versions/{}",
    "/v2/models/{}/versions/{}/infer",
    "/v2/models/{}/infer",
    "/{}",
    "//{}/../v1/status",
)
VERDICT = json.dumps(
    {
        "verdict": "corrected",
        "label": "dark",
        "reason": "wrong_class",
        "box_id": "b1",
        "box": {"x_min": 1.0, "y_min": 1.0, "x_max": 9.0, "y_max": 9.0},
        "comment": "no",
    }
).encode()
TENSOR: dict[str, Any] = {
    "id": "1",
    "inputs": [{"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [7] * 3072}],
    "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
}
BINARY: dict[str, Any] = {
    "inputs": [
        {"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 3072}}
    ]
}
SWITCHES = b'{"capture_allowed": true, "metered": false}'


@dataclass
class Asked:
    """One request as a server would hand it to the application."""

    method: str
    path: str
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    leaves_early: bool = False


def hostile_requests(rng: random.Random, count: int) -> Iterator[Asked]:
    """Yield seeded requests: good ones with something wrong, and wrong ones throughout."""
    pictures = [raw for _, raw in (*monsters(), *damaged(rng, 50)) if len(raw) < 90_000]
    for _ in range(count):
        path = rng.choice(PATHS)
        names = [rng.choice(EVIL_TEXTS) if rng.random() < 0.4 else good_name(path, rng) for _ in range(2)]
        asked = Asked(good_method(path) if rng.random() < 0.8 else rng.choice(METHODS), path.format(*names))
        asked.query = query(rng)
        body, asked.headers = body_for(path, rng, pictures)
        asked.headers += spoilt_headers(rng)
        asked.pieces = [body[at : at + 4096] for at in range(0, len(body), 4096)][: rng.choice((1, 1000))]
        asked.leaves_early = rng.random() < 0.02
        yield asked


def good_name(path: str, rng: random.Random) -> str:
    """A name that exists."""
    return "front" if "cameras" in path else rng.choice(("r-1", "1")) if "models" in path else "boot-2"


def good_method(path: str) -> str:
    """The method the route knows."""
    return "POST" if path.endswith(("feedback", "infer")) else "PUT" if path.endswith("switches") else "GET"


def query(rng: random.Random) -> bytes:
    """Parameters, some of them known."""
    if rng.random() < 0.5:
        return b""
    names = ("after", "limit", "boot", "fps", "binary", "x" * 300)
    pairs = [f"{rng.choice(names)}={rng.choice(EVIL_TEXTS)}" for _ in range(rng.randint(1, 4))]
    raw = "&".join(pairs).encode("utf-8", "replace")
    return raw if rng.random() < 0.7 else damage_bytes(raw, rng)


def body_for(path: str, rng: random.Random, pictures: list[bytes]) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A body of the right kind, usually damaged, with the headers that go with it."""
    if path.endswith("infer"):
        return infer_body(rng, pictures)
    good = SWITCHES if path.endswith("switches") else VERDICT
    return damage(good, rng), [HOST, JSON]


def damage(good: bytes, rng: random.Random) -> bytes:
    """The document, damaged or not."""
    choice = rng.random()
    if choice < 0.1:
        return good
    if choice < 0.13:
        return monstrous_json(rng)
    return damage_json(good, rng) if choice < 0.7 else damage_bytes(good, rng)


def infer_body(rng: random.Random, pictures: list[bytes]) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A tensor as JSON, a tensor in binary with its length told or lied about, or a picture."""
    kind = rng.randrange(4)
    if kind == 0:
        return damage(json.dumps(TENSOR).encode(), rng), [HOST, JSON]
    if kind == 1:
        raw = rng.choice(pictures) if rng.random() < 0.9 else encoded("PNG")
        picture = {
            "inputs": [
                {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw) + 4}}
            ]
        }
        payload = len(raw).to_bytes(4, "little") + raw
    else:
        picture, payload = BINARY, bytes(3072) if rng.random() < 0.5 else rng.randbytes(rng.choice((0, 1, 3071, 9000)))
    header = damage(json.dumps(picture).encode(), rng) if rng.random() < 0.6 else json.dumps(picture).encode()
    told = str(len(header)) if rng.random() < 0.8 else rng.choice(EVIL_TEXTS)
    length = (b"inference-header-content-length", told.encode("latin-1", "replace"))
    return header + payload, [HOST, (b"content-type", b"application/octet-stream"), length]


def spoilt_headers(rng: random.Random) -> list[tuple[bytes, bytes]]:
    """Now and then headers that lie, repeat themselves, or never end."""
    if rng.random() < 0.6:
        return []
    choices = (
        (b"host", b"evil.example"),
        (b"content-length", b"-1"),
        (b"content-length", b"9" * 30),
        (b"content-encoding", b"gzip"),
        (b"content-type", b"text/plain"),
        (b"content-type", b"application/json; charset=\xff\xfe"),
        (b"authorization", b"Bearer " + b"\xff" * 50),
        (b"authorization", b"Basic !!!!"),
        (b"cookie", b"a=b; " * 500),
        (b"accept", b"\x00"),
        (b"range", b"bytes=-1--1"),
        (b"if-none-match", b'"' * 100),
        (b"transfer-encoding", b"chunked"),
        (b"x-forwarded-for", b"a" * 10_000),
        (b"origin", b"null"),
    )
    return [rng.choice(choices) for _ in range(rng.randint(1, 3))]


async def ask(app: ASGIApp, asked: Asked) -> int:
    """Hand the request to the application as a server does; return the status it answered."""
    pieces = list(asked.pieces) or [b""]
    status = 0

    async def receive() -> Message:
        if not pieces or (asked.leaves_early and len(pieces) < 2):
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            assert all(b"\n" not in value and b"\r" not in value for _, value in message["headers"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": asked.method,
        "path": asked.path,
        "raw_path": asked.path.encode("utf-8", "replace"),
        "root_path": "",
        "query_string": asked.query,
        "headers": asked.headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
    }
    await asyncio.wait_for(app(scope, receive, send), 20)
    return status


@pytest.fixture
def api(tmp_path: Path, classifier: LoadedModel) -> Iterator[ApiBench]:
    """The interfaces of an agent that has answered five frames."""
    made = ApiBench(Bench.answering(tmp_path, classifier, frames=5), tmp_path)
    yield made
    made.work.stop()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_request_surprises_the_server(api: ApiBench, tell: Tell) -> None:
    """Thousands of hostile requests to every route: each gets an answer within what HTTP calls the client's fault or a
    good one, none a server's surprise; memory stays, the ledger closes, and an honest request is answered as before."""
    app = create_app(api.view, api.service, api.work, OPTIONS)
    outcomes: Counter[int] = Counter()

    async def campaign() -> None:
        for asked in hostile_requests(random.Random(12), REQUESTS):
            try:
                status = await ask(app, asked)
            except BaseException as exc:
                exc.add_note(f"{asked!r:.1500}")
                raise
            outcomes[status] += 1
            is_unavailable = status == 503 and asked.path.endswith(MAY_BE_UNAVAILABLE)
            answers = 200 <= status < 500 or is_unavailable or (status == 0 and asked.leaves_early)
            assert answers, (status, f"{asked!r:.1500}")
        assert await ask(app, Asked("GET", "/v1/status", headers=[HOST])) == 200
        honest = Asked("POST", "/v2/models/r-1/infer", headers=[HOST, JSON], pieces=[json.dumps(TENSOR).encode()])
        assert await ask(app, honest) in (200, 404)

    with peak_memory() as peak:
        asyncio.run(campaign())
    tell(f"requests: {dict(sorted(outcomes.items()))}, {peak.grown_bytes / MIB:.0f} MiB at the peak")
    assert outcomes[200] > REQUESTS / 20
    assert sum(count for status, count in outcomes.items() if 400 <= status < 500) > REQUESTS / 3
    assert broken_laws(api.bench.ledger.snapshot()) == []
    assert peak.grown_bytes < 128 * MIB
