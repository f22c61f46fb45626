"""Who is let in, and how the agent says whether it is well."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from curate.errors import ConfigError
from edge_agent.interfaces.health import CameraFacts, evaluate_health
from edge_agent.interfaces.tokens import FAILURE_WINDOW_S, MAX_FAILURES, TokenGuard, load_tokens, make_session
from tests.fakes.agent_bench import Bench
from tests.fakes.api_bench import OPTIONS, ApiBench

TOKEN = "0123456789abcdef-right"
OTHER = "0123456789abcdef-other"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of an API that asks for a token."""
    bench = Bench(tmp_path)
    with ApiBench(bench, tmp_path).serve(replace(OPTIONS, guard=TokenGuard([OTHER, TOKEN]))) as made:
        yield made


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_without_a_token_nothing_is_told(client: httpx.Client) -> None:
    """Every path but the two for supervisors is 401, unknown ones included; those two give no reasons."""
    for path in ("/", "/v1/status", "/v1/predictions", "/metrics", "/v2", "/v2/models/live/infer", "/nowhere"):
        answer = client.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/healthz").json() == {"status": "unhealthy"}


def test_each_token_opens(client: httpx.Client) -> None:
    """Any token of the file is good, and then reasons are told, and any host name will do."""
    for token in (TOKEN, OTHER):
        assert client.get("/v1/status", headers=bearer(token)).status_code == 200
    told = client.get("/healthz", headers=bearer(TOKEN) | {"Host": "camera.local"}).json()
    assert told == {"status": "unhealthy", "reasons": ["there is no model yet"]}


def test_the_page_trades_its_token_for_a_cookie(client: httpx.Client) -> None:
    """/?token= gives a cookie that scripts and other sites cannot use, and that is not the token itself."""
    answer = client.get("/", params={"token": TOKEN})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=strict", f"gleaner={make_session(TOKEN)}"):
        assert part in cookie
    assert TOKEN not in cookie
    assert client.get("/v1/status").status_code == 200
    client.cookies.clear()
    assert client.get("/", params={"token": "0123456789abcdef-wrong"}).status_code == 401


def test_cookies_are_no_tokens(client: httpx.Client) -> None:
    """The cookie does not work as a token, nor the token as a cookie."""
    assert client.get("/v1/status", headers=bearer(make_session(TOKEN))).status_code == 401
    assert client.get("/v1/status", headers={"Cookie": f"gleaner={TOKEN}"}).status_code == 401


@pytest.mark.parametrize("header", ["Basic abc", "Bearer", "Bearer \xe9", "", f"bearer{TOKEN}", "Bearer " + "x" * 5000])
def test_odd_headers_are_wrong_tokens(client: httpx.Client, header: str) -> None:
    """Whatever stands in the header, it is a token or it is not."""
    answer = client.get("/v1/status", headers={"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401


def test_guessing_is_slow(client: httpx.Client) -> None:
    """After some wrong tokens a client is refused unheard, the right token included."""
    for _ in range(MAX_FAILURES):
        assert client.get("/v1/status", headers=bearer("wrong" * 5)).status_code in {401, 429}
    answer = client.get("/v1/status", headers=bearer(TOKEN))
    assert (answer.status_code, "retry-after" in answer.headers) == (429, True)


def test_a_blocked_client_blocks_nobody_else_and_not_for_ever() -> None:
    """Failures count for each client by itself, and pass with time."""
    now = [0.0]
    guard = TokenGuard([TOKEN], monotonic=lambda: now[0])
    for _ in range(MAX_FAILURES):
        assert not guard.admits("wrong", client="a")
    assert not guard.admits(TOKEN, client="a")
    assert guard.admits(TOKEN, client="b")
    now[0] = FAILURE_WINDOW_S + 1.0
    assert guard.admits(TOKEN, client="a")


def test_an_old_cookie_shuts_nobody_out(client: httpx.Client) -> None:
    """A page that is left open with a cookie of a token that is no more does not count as guessing."""
    for _ in range(2 * MAX_FAILURES):
        assert client.get("/v1/cameras", headers={"Cookie": "gleaner=" + "0" * 64}).status_code == 401
    assert client.get("/v1/cameras", headers=bearer(TOKEN)).status_code == 200


def test_a_page_from_elsewhere_changes_nothing(client: httpx.Client) -> None:
    """What a browser says comes from another site's page is refused unless it only reads, whatever it carries."""
    elsewhere = bearer(TOKEN) | {"Sec-Fetch-Site": "cross-site"}
    for method, path in (("POST", "/v2/models/live/infer"), ("PUT", "/v1/switches")):
        assert client.request(method, path, headers=elsewhere).status_code == 403
    assert client.get("/v1/switches", headers=elsewhere).status_code == 200


def test_the_guard_remembers_a_bounded_number_of_clients() -> None:
    """A client with many addresses costs no memory without end."""
    guard = TokenGuard([TOKEN])
    for number in range(5000):
        guard.admits("wrong", client=str(number))
    assert len(guard._failures) <= 1024


def test_tokens_are_read_from_a_file(tmp_path: Path) -> None:
    """One a line; comments and empty lines say nothing."""
    path = tmp_path / "tokens"
    path.write_text(f"# the installer's\n{TOKEN}\n\n  {OTHER}  \n")
    assert load_tokens(path) == [TOKEN, OTHER]


@pytest.mark.parametrize("content", [b"", b"# only words\n", b"short\n", b"with a space in the middle\n", b"\xff" * 20])
def test_bad_token_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file, weak tokens and bytes that are no text are errors with a hint."""
    path = tmp_path / "tokens"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_tokens(path)
    assert caught.value.hint
    with pytest.raises(ConfigError):
        load_tokens(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"A: b\r\n" * 200_000 + b"\r\n",
        b"POST /v2/models/live/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/models/live/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/switches HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused(tmp_path: Path, raw: bytes) -> None:
    """Broken requests end with a status of the client's fault, or a closed connection; the next one is answered."""
    with ApiBench(Bench(tmp_path), tmp_path).serve() as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=20) as connection:
            with suppress(OSError):  # the server may have hung up already
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
            try:
                answer = connection.recv(64)
            except ConnectionError:
                answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
        assert client.get("/livez").status_code == 200


def test_health_is_about_answers() -> None:
    """A model, frames and answers make it well; a camera that just started gets its time."""

    def health(
        frame_s: float | None, answer_s: float | None, *, model: bool = True, running_s: float = 99.0
    ) -> list[str]:
        facts = CameraFacts("front", frame_s, answer_s)
        return list(evaluate_health([facts], has_model=model, running_s=running_s, max_silence_s=60.0).reasons)

    assert health(1.0, 1.0) == []
    assert health(None, None, running_s=5.0) == []
    assert health(1.0, 1.0, model=False) == ["there is no model yet"]
    assert health(70.0, 70.0) == ["camera front has given no frame for 70 s"]
    assert health(None, None) == ["camera front has given no frame for 99 s"]
    assert health(1.0, 65.0) == ["frames of camera front have not been answered for 65 s"]
    assert health(1.0, None) == ["frames of camera front have not been answered for 99 s"]
