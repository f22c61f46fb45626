"""Whatever answers in the bucket's place, both S3 stores say what it means; and they mean the same keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curate.errors import (
    AccessDeniedError,
    BlobExistsError,
    BlobNotFoundError,
    BlobRefusedError,
    ClockSkewError,
    StorageError,
    StorageUnavailableError,
)
from curate.storage.ports import BlobStore
from curate.storage.s3 import S3BlobStore
from curate.storage.s3_lean import LeanS3BlobStore
from curate.storage.s3_settings import S3Settings
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.scripted_server import (
    BOMB,
    PORTAL,
    TAKEN,
    ScriptedServer,
    answer,
    create,
    get,
    listing,
    put,
    s3_error,
    scripted_server,
    settings_for,
)

STORES: dict[str, Callable[[S3Settings], BlobStore]] = {"s3": S3BlobStore, "lean": LeanS3BlobStore}

ANSWERS: list[tuple[str, Callable[[BlobStore], object], bytes, type[StorageError]]] = [
    ("a portal's page", put, answer("200 OK", PORTAL, Content_Type="text/html"), StorageUnavailableError),
    ("a portal's page as a list", listing, answer("200 OK", PORTAL), StorageUnavailableError),
    ("a portal's demand", get, answer("511 Network Authentication Required", PORTAL), StorageUnavailableError),
    ("a proxy's refusal", put, answer("403 Forbidden", PORTAL, Content_Type="text/html"), AccessDeniedError),
    ("a proxy that finds nobody", put, answer("502 Bad Gateway", PORTAL), StorageUnavailableError),
    ("a proxy's limit", put, answer("413 Request Entity Too Large", PORTAL), BlobRefusedError),
    ("a body cut short", get, answer("200 OK", b"12345", ETag='"t"', Content_Length="9"), StorageUnavailableError),
    ("no HTTP", get, b"SSH-2.0-OpenSSH_9.2\r\n\r\n", StorageUnavailableError),
    ("an entity in a refusal", get, answer("403 Forbidden", BOMB), AccessDeniedError),
    ("a missing key", get, s3_error("404 Not Found", "NoSuchKey"), BlobNotFoundError),
    ("a missing bucket", get, s3_error("404 Not Found", "NoSuchBucket"), StorageError),
    ("denied", get, s3_error("403 Forbidden", "AccessDenied"), AccessDeniedError),
    ("an old session", put, s3_error("400 Bad Request", "ExpiredToken"), AccessDeniedError),
    ("a wrong session", put, s3_error("400 Bad Request", "InvalidToken"), AccessDeniedError),
    ("a wrong time", put, s3_error("403 Forbidden", "RequestTimeTooSkewed"), ClockSkewError),
    ("a changed body", put, s3_error("400 Bad Request", "BadDigest"), StorageUnavailableError),
    ("overload", put, s3_error("503 Slow Down", "SlowDown"), StorageUnavailableError),
    ("too many", put, s3_error("429 Too Many Requests", "TooManyRequests"), StorageUnavailableError),
    ("a bad name", put, s3_error("400 Bad Request", "KeyTooLongError"), BlobRefusedError),
    ("a taken key", create, s3_error("412 Precondition Failed", "PreconditionFailed"), BlobExistsError),
    ("a race for a key", create, s3_error("409 Conflict", "ConditionalRequestConflict"), BlobExistsError),
]


@pytest.fixture(scope="module")
def one_server() -> Iterator[ScriptedServer]:
    """One server for all answers: boto3 takes long to make a client."""
    with scripted_server(TAKEN) as server:
        yield server


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest, one_server: ScriptedServer) -> BlobStore:
    """A client of each kind."""
    return STORES[request.param](settings_for(one_server.url))


@pytest.mark.parametrize(("what", "ask", "raw", "error"), ANSWERS, ids=[what for what, *_ in ANSWERS])
def test_what_an_answer_means(
    store: BlobStore,
    one_server: ScriptedServer,
    what: str,
    ask: Callable[[BlobStore], object],
    raw: bytes,
    error: type[StorageError],
) -> None:
    """Network, rights, clock and poison are told apart by the same table, whichever client asked."""
    one_server.script = [raw.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)]
    with pytest.raises(StorageError) as caught:
        ask(store)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "text",
    [
        '{"access_key": "a", "secret_key": "b", "session_token": "session"}',
        "[default]\naws_access_key_id = a\naws_secret_access_key = b\naws_session_token = session\n",
    ],
)
@pytest.mark.parametrize("kind", STORES)
def test_a_file_may_hold_a_session(tmp_path: Path, kind: str, text: str) -> None:
    """Temporary keys come with a token, which is sent and signed."""
    path = tmp_path / "credentials"
    path.write_text(text)
    with scripted_server(TAKEN) as server:
        put(STORES[kind](settings_for(server.url, access_key=None, secret_key=None, credentials_file=path)))
    assert "X-Amz-Security-Token: session" in server.requests[0]
    assert "x-amz-security-token" in server.requests[0].split("SignedHeaders=")[1]


def test_any_printable_key_travels(s3_settings: S3Settings) -> None:
    """Blanks, signs and other alphabets in a key mean the same to both clients, alone and in a listing."""
    keys = sorted(["a b/c+d", "a%20b", "\u00fc/\u65e5\u672c/~x_-.jpg", "q?a=b&c#d", "it's/(1)*!,;:@$'"])
    lean, cloud = LeanS3BlobStore(s3_settings), S3BlobStore(s3_settings)
    for key in keys:
        lean.put(key, key.encode())
    assert [cloud.get(key) for key in keys] == [lean.get(key) for key in keys] == [key.encode() for key in keys]
    assert list(lean.list("")) == list(cloud.list(""))
    assert [blob.key for blob in lean.list("")] == keys


def test_what_passes_a_proxy_is_signed_as_it_arrives(s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server takes what came through a proxy of the environment."""
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with FaultProxy(str(s3_settings.endpoint_url)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        LeanS3BlobStore(s3_settings).put("x", b"1")
        assert proxy.requests == 1
