"""A machine with a wrong clock and a real S3 server, which refuses signatures of another time."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from curate.errors import AccessDeniedError, ClockSkewError, StorageError, StorageUnavailableError
from curate.storage.s3_lean import LeanS3BlobStore
from curate.storage.s3_settings import S3Settings
from edge_agent.clock import Clock
from tests.conftest import S3Server
from tests.fakes.tls_server import make_certificate, tls_server

FIFTY_YEARS_S = 50 * 365.25 * 86_400


class StubbornClock:
    """A clock that is wrong and learns nothing."""

    def now(self) -> datetime:
        return datetime.now(UTC) - timedelta(seconds=FIFTY_YEARS_S)

    def monotonic(self) -> float:
        return time.monotonic()

    def learn(self, server_time: datetime, *, sent_s: float, received_s: float) -> None:
        return


def test_the_server_refuses_what_is_signed_at_another_time(s3_settings: S3Settings) -> None:
    """Without learning, a camera in the past uploads nothing: it hears of its clock, and may try again."""
    with pytest.raises(ClockSkewError) as caught:
        LeanS3BlobStore(s3_settings, StubbornClock()).put("a", b"1")
    assert caught.value.retryable


@pytest.mark.parametrize("error_s", [-FIFTY_YEARS_S, -3600.0, 3600.0])
def test_a_wrong_clock_learns_the_time_from_the_refusal_and_uploads_at_once(
    s3_settings: S3Settings, error_s: float
) -> None:
    """The first put of a machine in another time succeeds; afterwards it knows the time to two seconds."""
    clock = Clock(system=lambda: time.time() + error_s)
    store = LeanS3BlobStore(s3_settings, clock)
    store.put("captures/x", b"1")
    assert store.get("captures/x") == b"1"
    assert clock.state().synchronised
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=2)
    LeanS3BlobStore(s3_settings, clock).create("captures/y", b"2")


def test_every_request_of_a_wrong_clock_may_be_the_first(s3_settings: S3Settings) -> None:
    """Reading, asking for a size and removing learn the time as well as writing does, also where the refusal has no
    body that says why."""
    LeanS3BlobStore(s3_settings).put("there", b"123")

    def fresh() -> LeanS3BlobStore:
        return LeanS3BlobStore(s3_settings, Clock(system=lambda: time.time() - FIFTY_YEARS_S))

    assert fresh().get("there") == b"123"
    assert fresh().get_if_changed("there", None) is not None
    assert fresh().size("there") == 3
    fresh().delete("there")
    assert LeanS3BlobStore(s3_settings).size("there") is None


def test_a_good_clock_and_wrong_keys_are_denied_without_another_try(
    s3_server: S3Server, s3_settings: S3Settings
) -> None:
    """A refusal that has nothing to do with the time stays what it is, and the system's clock stays untouched."""
    clock = Clock()
    bad = s3_server.settings(s3_settings.bucket, access_key="admin", secret_key="wrong")
    with pytest.raises(AccessDeniedError):
        LeanS3BlobStore(bad, clock).put("x", b"")
    assert clock.state().synchronised
    assert clock.state().offset_s == 0.0


def test_a_wrong_clock_and_a_missing_bucket_end_in_the_true_error(s3_server: S3Server) -> None:
    """After the time is put right the second answer counts."""
    clock = Clock(system=lambda: time.time() - FIFTY_YEARS_S)
    with pytest.raises(StorageError) as caught:
        LeanS3BlobStore(s3_server.settings("nobody-made-this"), clock).get("x")
    assert not isinstance(caught.value, ClockSkewError)


def put_over_tls(
    monkeypatch: pytest.MonkeyPatch, folder: Path, clock: Clock, *, address: str = "127.0.0.1", known: bool = True
) -> None:
    """Put a blob to a server whose certificate is not valid yet, as none is for a clock in 1970."""
    certificate = make_certificate(folder, starts_in=timedelta(days=1), address=address)
    if known:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with tls_server(certificate) as url:
        settings = S3Settings(
            endpoint_url=url,
            bucket="bucket",
            access_key=SecretStr("a"),
            secret_key=SecretStr("b"),
            connect_timeout_s=2,
            read_timeout_s=2,
            max_attempts=1,
        )
        LeanS3BlobStore(settings, clock).put("x", b"1")


def in_1970() -> Clock:
    return Clock(system=lambda: time.time() - FIFTY_YEARS_S)


def test_a_clock_in_1970_leaves_a_certificates_dates_and_learns_the_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For a camera in 1970 no certificate is valid yet: it uploads over TLS all the same, and then knows the time."""
    clock = in_1970()
    put_over_tls(monkeypatch, tmp_path, clock)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=2)


def test_a_plausible_clock_holds_a_certificate_to_its_dates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The exception is for clocks that cannot be right."""
    with pytest.raises(StorageUnavailableError, match="not yet valid"):
        put_over_tls(monkeypatch, tmp_path, Clock())


def test_a_clock_in_1970_still_wants_the_right_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A certificate of another host is refused, whatever the clock says."""
    with pytest.raises(StorageUnavailableError, match="IP address mismatch"):
        put_over_tls(monkeypatch, tmp_path, in_1970(), address="127.0.0.2")


def test_a_clock_in_1970_still_wants_a_known_issuer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A certificate that nobody vouches for is refused, whatever the clock says."""
    with pytest.raises(StorageUnavailableError, match="self-signed"):
        put_over_tls(monkeypatch, tmp_path, in_1970(), known=False)


class _Portal(BaseHTTPRequestHandler):
    """Says 200 to whatever it hears, as the sign-in page of a hotel's network does."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        page = b"<html>Welcome! Please sign in.</html>" if self.command == "GET" else b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    do_PUT = do_GET = _answer

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


def test_a_captive_portal_is_no_bucket() -> None:
    """What answers 200 to everything and keeps nothing is a link that is down: nothing counts as sent or changed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Portal)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        settings = S3Settings(
            bucket="gleaner",
            endpoint_url=f"http://127.0.0.1:{server.server_port}",
            access_key=SecretStr("a" * 8),
            secret_key=SecretStr("b" * 8),
        )
        store = LeanS3BlobStore(settings, Clock())
        with pytest.raises(StorageUnavailableError):
            store.put("captures/x", b"1")
        with pytest.raises(StorageUnavailableError):
            store.get_if_changed("twin/cam/ack.json", None)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
