"""A bad link and a bad server in front of a real S3 server.

One thread a connection, one request a connection. Each request is handed to the fault that is set at that moment.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Self
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

_MAX_HEAD_BYTES = 64 * 1024
_NOT_PASSED_ON = frozenset({"expect", "connection", "proxy-connection"})
_SIGNATURE = frozenset({"authorization", "x-amz-date", "x-amz-content-sha256"})
_MAX_SKEW = timedelta(minutes=15)
"""What Amazon's S3 bears."""


@dataclass(frozen=True)
class Request:
    """One request as the client sent it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        """Return a header, or nothing."""
        return next((value for key, value in self.headers if key.lower() == name), "")


@dataclass(frozen=True)
class Answer:
    """One answer."""

    status: int
    reason: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def to_bytes(self) -> bytes:
        """Return it as it goes over the wire, on a connection that ends with it."""
        kept = [(key, value) for key, value in self.headers if key.lower() not in {"connection", "transfer-encoding"}]
        if not any(key.lower() == "content-length" for key, _ in kept):
            kept.append(("Content-Length", str(len(self.body))))
        lines = "".join(f"{key}: {value}\r\n" for key, value in [*kept, ("Connection", "close")])
        return f"HTTP/1.1 {self.status} {self.reason}\r\n{lines}\r\n".encode("latin-1") + self.body


def s3_error(status: int, code: str, now: datetime) -> Answer:
    """Return an error as S3 words it."""
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>-</Message></Error>'
    headers = [("Content-Type", "application/xml"), ("Date", format_datetime(now, usegmt=True))]
    return Answer(status, code, headers, body.encode())


class Exchange:
    """One connection, from the client's first byte to the end."""

    def __init__(self, client: socket.socket, target: tuple[str, int], forwarded: list[tuple[str, str]]) -> None:
        self._client = client
        self._target = target
        self._forwarded = forwarded
        self._early = b""

    def read_head(self) -> tuple[str, list[tuple[str, str]]]:
        """Read up to the empty line; return the first line and the headers."""
        raw = b""
        while b"\r\n\r\n" not in raw:
            piece = self._client.recv(4096)
            if not piece or len(raw) > _MAX_HEAD_BYTES:
                raise ConnectionError("no request came")
            raw += piece
        head, self._early = raw.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        return first, [(key, value.strip()) for key, _, value in (line.partition(":") for line in lines)]

    def read_request(self, *, share: float = 1.0, bytes_per_s: float | None = None) -> Request:
        """Read a request, or only a share of its body."""
        first, headers = self.read_head()
        method, path, _ = first.split(" ", 2)
        request = Request(method, path, headers, b"")
        if "100-continue" in request.header("expect").lower():
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        wanted = int(int(request.header("content-length") or 0) * share)
        body = self._early
        while len(body) < wanted:
            piece = self._client.recv(min(64 * 1024, wanted - len(body)))
            if not piece:
                raise ConnectionError("the client went away")
            body += piece
        if bytes_per_s is not None:
            time.sleep(len(body) / bytes_per_s)
        return Request(method, path, headers, body)

    def forward(self, request: Request) -> Answer:
        """Ask the real server."""
        self._forwarded.append((request.method, request.path))
        connection = http.client.HTTPConnection(*self._target, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for key, value in request.headers:
                if key.lower() not in _NOT_PASSED_ON:
                    connection.putheader(key, value)
            connection.endheaders(request.body)
            response = connection.getresponse()
            return Answer(response.status, response.reason, response.getheaders(), response.read())

    def answer(self, answer: Answer, *, share: float = 1.0, bytes_per_s: float | None = None) -> None:
        """Send an answer, or only a share of it."""
        raw = answer.to_bytes()
        raw = raw[: int(len(raw) * share)]
        if bytes_per_s is None:
            self._client.sendall(raw)
            return
        step = max(1, int(bytes_per_s / 10))
        for start in range(0, len(raw), step):
            self._client.sendall(raw[start : start + step])
            time.sleep(step / bytes_per_s)

    def reset(self) -> None:
        """End with a reset instead of a farewell."""
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Fault = Callable[[Exchange], None]


def passes(exchange: Exchange) -> None:
    """No fault."""
    exchange.answer(exchange.forward(exchange.read_request()))


def drops(exchange: Exchange) -> None:
    """The connection ends before a byte is read."""
    exchange.reset()


def resets_in_request(exchange: Exchange) -> None:
    """The connection is reset in the middle of the body; nothing reaches the server."""
    exchange.read_request(share=0.5)
    exchange.reset()


def resets_in_answer(exchange: Exchange) -> None:
    """The server has done it, and the connection is reset in the middle of its answer."""
    exchange.answer(exchange.forward(exchange.read_request()), share=0.5)
    exchange.reset()


def loses_answer(exchange: Exchange) -> None:
    """The server has done it and answered 200; the client never hears of it."""
    exchange.forward(exchange.read_request())


def storms(exchange: Exchange) -> None:
    """The server is overloaded: 503 SlowDown."""
    exchange.read_request()
    exchange.answer(s3_error(503, "SlowDown", datetime.now(UTC)))


def crawls(exchange: Exchange, bytes_per_s: float = 1000.0) -> None:
    """A link of 1 kB/s in both directions."""
    request = exchange.read_request(bytes_per_s=bytes_per_s)
    exchange.answer(exchange.forward(request), bytes_per_s=bytes_per_s)


@dataclass(frozen=True)
class WrongClock:
    """Server and client disagree about the time by `offset`: what is signed more than 15 minutes off is refused, as S3
    does, with the server's `Date`. What is signed well is signed anew for the server behind, which lives now."""

    offset: timedelta
    access_key: str
    secret_key: str

    def __call__(self, exchange: Exchange) -> None:
        """Handle one request."""
        request = exchange.read_request()
        now = datetime.now(UTC) + self.offset
        signed_at = datetime.strptime(request.header("x-amz-date"), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if abs(signed_at - now) > _MAX_SKEW:
            exchange.answer(s3_error(403, "RequestTimeTooSkewed", now))
            return
        answer = exchange.forward(self._signed_anew(request))
        headers = [(key, value) for key, value in answer.headers if key.lower() != "date"]
        dated = [*headers, ("Date", format_datetime(now, usegmt=True))]
        exchange.answer(Answer(answer.status, answer.reason, dated, answer.body))

    def _signed_anew(self, request: Request) -> Request:
        kept = {key: value for key, value in request.headers if key.lower() not in _SIGNATURE | _NOT_PASSED_ON}
        url = f"http://{request.header('host')}{request.path}"
        unsigned = AWSRequest(request.method, url, kept, request.body)
        S3SigV4Auth(Credentials(self.access_key, self.secret_key), "s3", "us-east-1").add_auth(unsigned)
        return Request(request.method, request.path, list(unsigned.headers.items()), request.body)


class FaultProxy:
    """Listens on loopback until closed. `fault` may be changed at any time; each `every`-th request suffers it."""

    def __init__(self, endpoint_url: str) -> None:
        target = urlsplit(endpoint_url)
        self._target = (str(target.hostname), int(target.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.fault: Fault = passes
        self.forwarded: list[tuple[str, str]] = []
        """Method and path of what reached the server."""
        self.requests = 0
        self.faults = 0
        self.every = 1
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads = [*(t for t in self._threads if t.is_alive()), thread]
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(30)
        self.requests += 1
        suffers = self.requests % self.every == 0
        self.faults += suffers and self.fault is not passes
        with client, contextlib.suppress(OSError, http.client.HTTPException):
            (self.fault if suffers else passes)(Exchange(client, self._target, self.forwarded))

    def heal(self) -> None:
        """From now on everything passes."""
        self.fault = passes

    def close(self) -> None:
        """Stop listening and wait for what goes on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)
        for thread in self._threads:
            thread.join(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
