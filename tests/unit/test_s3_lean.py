"""The device's S3 client: what it bears, what it costs, who asks, and which way."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from curate.errors import (
    AccessDeniedError,
    BlobNotFoundError,
    BlobTooLargeError,
    ConfigError,
    StorageError,
    StorageUnavailableError,
)
from curate.storage import s3_connection
from curate.storage.ports import BlobInfo, BlobStore
from curate.storage.s3_connection import locate_bucket
from curate.storage.s3_lean import LeanS3BlobStore
from edge_agent.clock import Clock
from tests.fakes.scripted_server import (
    BOMB,
    PORTAL,
    TAKEN,
    ScriptedServer,
    answer,
    get,
    listing,
    put,
    s3_error,
    scripted_server,
    settings_for,
    stream,
)

LISTING = """<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>
<Contents><Key>{key}</Key><Size>3</Size></Contents><NextContinuationToken>{token}</NextContinuationToken>
</ListBucketResult>"""


def test_a_portal_s_redirect_and_a_refusal_cut_short_pass() -> None:
    """Neither is S3's word. (boto3 follows such a redirect until its stack ends, and takes the other for a denial.)"""
    redirect = answer("302 Found", PORTAL, Location="http://portal.example/")
    for raw in (redirect, answer("403 Forbidden", b"<Error>", Content_Length="99", Connection="close")):
        with scripted_server(raw) as server, pytest.raises(StorageUnavailableError):
            put(LeanS3BlobStore(settings_for(server.url)))


def test_another_region_is_a_mistake_to_set_right_and_no_captures_fault() -> None:
    """Amazon answers 400 to a signature for another region: no capture may be given up for that."""
    for refusal in (s3_error("400 Bad", "AuthorizationHeaderMalformed"), s3_error("301 Moved", "PermanentRedirect")):
        with scripted_server(refusal) as server, pytest.raises(AccessDeniedError) as caught:
            put(LeanS3BlobStore(settings_for(server.url)))
        assert "region" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("ask", "head", "error"),
    [
        (get, "403 Forbidden", AccessDeniedError),
        (put, "200 OK", StorageUnavailableError),
        (lambda store: store.get("x", max_bytes=1000), "200 OK", BlobTooLargeError),
        (listing, "200 OK", StorageUnavailableError),
    ],
)
def test_an_endless_answer_is_left(ask: Callable[[BlobStore], object], head: str, error: type[StorageError]) -> None:
    """Whoever answers without an end is heard for so long as an answer may be, and then left."""
    start = f'HTTP/1.1 {head}\r\nETag: "t"\r\nTransfer-Encoding: chunked\r\n\r\n'.encode()
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with scripted_server(start, endless=chunk) as server:
        with pytest.raises(error):
            ask(LeanS3BlobStore(settings_for(server.url)))
        assert server.sent_bytes < 32 * 1024 * 1024


def test_a_line_without_an_end_is_left() -> None:
    """Neither a header nor the length of a chunk may go on for ever."""
    for start in (b"HTTP/1.1 200 OK\r\nETag: ", b'HTTP/1.1 200 OK\r\nETag: "t"\r\nTransfer-Encoding: chunked\r\n\r\n'):
        with scripted_server(start, endless=b"1" * 0x10000) as server:
            with pytest.raises(StorageUnavailableError):
                get(LeanS3BlobStore(settings_for(server.url)))
            assert server.sent_bytes < 16 * 1024 * 1024


def test_a_body_is_what_was_sent() -> None:
    """Whatever the answer says of its encoding, the blob is its bytes: nothing is unpacked."""
    packed = gzip.compress(b"x" * 100_000)
    with scripted_server(answer("200 OK", packed, ETag='"t"', Content_Encoding="gzip")) as server:
        assert LeanS3BlobStore(settings_for(server.url)).get("x", max_bytes=1000) == packed


WORDS = st.sampled_from(["ETag", "Date", "Content-Length", "Transfer-Encoding", "Location", "Content-Encoding", "X"])
VALUES = st.sampled_from(['"t"', "chunked", "gzip", "-5", "7", "9" * 30, "Sun, 99 Nov 0000 24:61:00 GMT"]) | st.text(
    st.characters(max_codepoint=255), max_size=20
)


@given(
    status=st.sampled_from(["200 OK", "204 No", "206 P", "304 N", "403 F", "503 S", "999 ?", "0 0", "100 C", "x"]),
    headers=st.lists(st.tuples(WORDS, VALUES), max_size=6),
    body=st.binary(max_size=60) | st.sampled_from([b"3\r\nabc\r\n0\r\n\r\n", b"-3\r\n", BOMB, PORTAL]),
    ask=st.sampled_from([get, put, listing, stream, lambda store: store.size("x"), lambda store: store.delete("x")]),
)
@example(status="200 OK", headers=[("ETag", '"t"'), ("Transfer-Encoding", "chunked")], body=b"-2", ask=get)
def test_whatever_answers_nothing_but_our_errors_come_out(
    hanging_up: ScriptedServer,
    status: str,
    headers: list[tuple[str, str]],
    body: bytes,
    ask: Callable[[BlobStore], object],
) -> None:
    """Any answer at all is a blob store's, or an error of ours that says what to do."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    hanging_up.script = [f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1") + body]
    with contextlib.suppress(StorageError):
        ask(LeanS3BlobStore(settings_for(hanging_up.url), Clock()))


@pytest.fixture(scope="module")
def hanging_up() -> Iterator[ScriptedServer]:
    """A server that ends every connection with its answer."""
    with scripted_server(TAKEN) as server:
        server.hangs_up = True
        yield server


@pytest.mark.parametrize("tag", ["", "\u00e9", "a\x01b"])
def test_a_tag_that_could_not_be_sent_back_is_none(tag: str) -> None:
    """The next request repeats the tag: what does not fit into a header is not a blob store's."""
    raw = answer("200 OK", b"1").replace(b"\r\n\r\n", f"\r\nETag: {tag}\r\n\r\n".encode("latin-1"))
    with scripted_server(raw) as server, pytest.raises(StorageUnavailableError):
        LeanS3BlobStore(settings_for(server.url)).get_if_changed("x", None)


def test_a_store_that_knows_no_ranges_is_told() -> None:
    """The whole blob instead of its rest would be the wrong bytes."""
    with scripted_server(answer("200 OK", b"12345", ETag='"t"')) as server:
        with pytest.raises(StorageError):
            stream(LeanS3BlobStore(settings_for(server.url)))
        assert list(LeanS3BlobStore(settings_for(server.url)).stream("x")) == [b"12345"]


@pytest.mark.parametrize("length", [None, "-1", "\u0663", "9" * 5000])
def test_a_size_is_a_number(length: str | None) -> None:
    """A length that is none is no word of a blob store."""
    line = "" if length is None else f"Content-Length: {length}\r\n"
    raw = f'HTTP/1.1 200 OK\r\nETag: "t"\r\n{line}Connection: close\r\n\r\n'.encode()
    with scripted_server(raw) as server, pytest.raises(StorageUnavailableError):
        LeanS3BlobStore(settings_for(server.url)).size("x")


def test_pages_follow_their_tokens_and_end() -> None:
    """Keys are decoded once; a store that gives the same page again and again is left."""

    def page(key: str, token: str) -> bytes:
        return answer("200 OK", LISTING.format(key=key, token=token).encode())

    with scripted_server(page("inbox/b+%2B%C3%BC", "1&amp;2"), page("inbox/a", "")) as server:
        found = list(LeanS3BlobStore(settings_for(server.url)).list("inbox/"))
        assert found == [BlobInfo("inbox/a", 3), BlobInfo("inbox/b +\u00fc", 3)]
        assert "continuation-token=1%262" in server.requests[1]
    with scripted_server(page("inbox/a", "again")) as server, pytest.raises(StorageError):
        listing(LeanS3BlobStore(settings_for(server.url)))


def test_one_connection_carries_many_requests() -> None:
    """Whatever is answered, the connection is kept: puts, refusals, what has not changed."""
    missing, same, blob = s3_error("404 N", "NoSuchKey"), b"HTTP/1.1 304 Not Modified\r\n\r\n", b"12"
    with scripted_server(TAKEN, missing, same, answer("204 N"), answer("200 OK", blob, ETag='"t"'), TAKEN) as server:
        store = LeanS3BlobStore(settings_for(server.url))
        put(store)
        with pytest.raises(BlobNotFoundError):
            get(store)
        assert store.get_if_changed("x", '"t"') is None
        store.delete("x")
        assert list(store.stream("x")) == [blob]
        put(store)
        assert (server.connections, len(server.requests)) == (1, 6)


def test_a_call_attempts_so_often_as_it_may() -> None:
    """What passes is tried again within the call, up to `max_attempts`; what does not pass is not."""
    busy = s3_error("503 Slow Down", "SlowDown")
    with scripted_server(busy, TAKEN) as server:
        put(LeanS3BlobStore(settings_for(server.url, max_attempts=2)))
        assert len(server.requests) == 2
    with scripted_server(busy) as server:
        with pytest.raises(StorageUnavailableError):
            put(LeanS3BlobStore(settings_for(server.url, max_attempts=2)))
        assert len(server.requests) == 2
    with scripted_server(s3_error("403 F", "AccessDenied")) as server:
        with pytest.raises(AccessDeniedError):
            put(LeanS3BlobStore(settings_for(server.url, max_attempts=2)))
        assert len(server.requests) == 1


# -- who asks, and which way -----------------------------------------------------------------------------------------


def test_the_environment_s_keys_and_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys in the settings those of the environment sign, with their session; without any nothing is sent."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-outside")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session")
    with scripted_server(TAKEN) as server:
        settings = settings_for(server.url, access_key=None, secret_key=None)
        put(LeanS3BlobStore(settings))
        assert "Credential=from-outside/" in server.requests[0]
        assert "X-Amz-Security-Token: session" in server.requests[0]
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(AccessDeniedError) as caught:
            put(LeanS3BlobStore(settings))
        assert caught.value.hint
        assert len(server.requests) == 1


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """`http_proxy` names the way, with its user and password; `no_proxy` says for whom not."""
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with scripted_server(TAKEN) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//us%40er:pass@"))
        put(LeanS3BlobStore(settings_for("http://s3.example.com:8333")))
        (request,) = proxy.requests
        assert request.startswith("PUT http://s3.example.com:8333/bucket/captures/x ")
        assert "\nHost: s3.example.com:8333" in request
        assert "proxy-authorization: Basic dXNAZXI6cGFzcw==" in request
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with scripted_server(TAKEN) as server:
            put(LeanS3BlobStore(settings_for(server.url)))
            assert (len(server.requests), len(proxy.requests)) == (1, 1)
    monkeypatch.setenv("http_proxy", "socks5://nobody")
    with pytest.raises(ConfigError):
        LeanS3BlobStore(settings_for("http://s3.example.com"))


@pytest.mark.parametrize(
    ("more", "address"),
    [
        ({"endpoint_url": None}, "https://bucket.s3.us-east-1.amazonaws.com"),
        ({"endpoint_url": None, "region": "cn-north-1"}, "https://bucket.s3.cn-north-1.amazonaws.com.cn"),
        ({"endpoint_url": None, "bucket": "a.bucket"}, "https://s3.us-east-1.amazonaws.com/a.bucket"),
        ({"endpoint_url": "http://h:80"}, "http://h/bucket"),
        ({"endpoint_url": "https://h:8333/"}, "https://h:8333/bucket"),
        ({"endpoint_url": "https://H/s3/"}, "https://h/s3/bucket"),
        ({"endpoint_url": "http://[::1]:9000"}, "http://[::1]:9000/bucket"),
    ],
)
def test_where_a_bucket_is(more: dict[str, object], address: str) -> None:
    """By path behind an endpoint, by name at Amazon's, where a certificate allows it."""
    assert locate_bucket(settings_for("", **more)).url == address


@pytest.mark.parametrize("endpoint", ["s3.example.com", "ftp://h", "http://", "http://h:port", "https://h:99999"])
def test_an_endpoint_that_is_none_is_told(endpoint: str) -> None:
    """A slip in the configuration is told before anything is sent."""
    with pytest.raises(ConfigError, match="endpoint_url"):
        LeanS3BlobStore(settings_for(endpoint))


def test_certificates_that_cannot_be_read_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So is a bundle of the environment that is not there."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nothing.pem"))
    with pytest.raises(ConfigError, match=r"nothing\.pem"):
        LeanS3BlobStore(settings_for("https://s3.example.com"))


def test_a_machine_without_certificates_falls_back_on_certifi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the system trusts nobody, the package's list is taken if it is installed."""
    import certifi

    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert s3_connection._find_certifi() == certifi.where()
    (tmp_path / "a.pem").write_text("")
    assert s3_connection._find_certifi() is None
