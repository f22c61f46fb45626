"""A server that answers what a test tells it to, byte by byte, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import SecretStr

from curate.storage.ports import BlobStore
from curate.storage.s3_settings import S3Settings

PORTAL = b"<html><body>Welcome! Please <b>sign in</b>.<br></body></html>"
"""What the network of a hotel says to whatever is asked."""
BOMB = b'<!DOCTYPE Error [<!ENTITY a "ha">]><Error><Code>NoSuchKey&a;</Code></Error>'
"""A refusal that wants an entity to be expanded."""


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """Return an answer as it goes over the wire; `ETag` and `Content_Type` are headers."""
    named = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def s3_error(status: str, code: str) -> bytes:
    """Return a refusal as S3 words it."""
    return answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>-</Message></Error>".encode())


TAKEN = answer("200 OK", ETag='"tag"')
"""How a bucket takes a blob."""


@dataclass
class ScriptedServer:
    """One connection at a time. Each request gets the next answer of the script, the last one again and again."""

    url: str
    script: list[bytes]
    requests: list[str] = field(default_factory=list)
    """The head of each request, as it came."""
    connections: int = 0
    sent_bytes: int = 0
    endless: bytes = b""
    """Sent after each answer until the client goes away."""
    hangs_up: bool = False
    """Whether every connection ends with its first answer."""

    def serve(self, listener: socket.socket) -> None:
        """Serve until the listener is closed."""
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            client.settimeout(10)
            with client, contextlib.suppress(OSError):
                self._serve_one(client)

    def _serve_one(self, client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            while lines := _read_head(stream):
                length = next((line for line in lines if line.lower().startswith("content-length:")), ":0")
                stream.read(int(length.split(":")[1]))
                self.requests.append("\n".join(lines))
                raw = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                self._send(client, raw)
                while self.endless:
                    self._send(client, self.endless)
                if self.hangs_up or b"Connection: close" in raw:
                    return

    def _send(self, client: socket.socket, raw: bytes) -> None:
        client.sendall(raw)
        self.sent_bytes += len(raw)


def _read_head(stream: object) -> list[str]:
    lines: list[str] = []
    while line := stream.readline().decode("latin-1").rstrip("\r\n"):  # type: ignore[attr-defined]
        lines.append(line)
    return lines


@contextlib.contextmanager
def scripted_server(*script: bytes, endless: bytes = b"") -> Iterator[ScriptedServer]:
    """Serve the script on loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = ScriptedServer(f"http://127.0.0.1:{listener.getsockname()[1]}", list(script), endless=endless)
    thread = threading.Thread(target=server.serve, args=(listener,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def settings_for(url: str, **more: object) -> S3Settings:
    """Settings of a client of the server, which tries once."""
    keys = {"access_key": SecretStr("a" * 8), "secret_key": SecretStr("b" * 8)}
    defaults = {"bucket": "bucket", "endpoint_url": url, "read_timeout_s": 5, "max_attempts": 1}
    return S3Settings.model_validate({**defaults, **keys, **more})


def get(store: BlobStore) -> object:
    """Read a blob."""
    return store.get("twin/cam/ack.json")


def put(store: BlobStore) -> object:
    """Write a blob."""
    return store.put("captures/x", b"1")  # type: ignore[func-returns-value]


def create(store: BlobStore) -> object:
    """Write a new blob."""
    return store.create("captures/x", b"1")  # type: ignore[func-returns-value]


def stream(store: BlobStore) -> object:
    """Read the rest of a blob."""
    return list(store.stream("tuf/x", start=2))


def listing(store: BlobStore) -> object:
    """List blobs."""
    return list(store.list("inbox/"))
