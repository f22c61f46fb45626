"""Serves the API from a thread of its own. The one home of uvicorn."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette

from curate.errors import ConfigError
from edge_agent.durable import persist_bytes

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 64
_TICK_S: Final = 1.0


class _RestfulServer(uvicorn.Server):
    """Looks after itself once a second, not ten times, and ends at once when told to: at five frames a second the
    difference is 2 % of what the model takes."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()

    async def main_loop(self) -> None:
        """Renew the date that answers carry, until told to end."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), _TICK_S)

    def end(self) -> None:
        """Stop; from any thread."""
        self.should_exit = True
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._told.set)


class ApiServer:
    """An HTTP server in a thread. `address_file` tells other programs where it listens."""

    def __init__(
        self,
        app: Starlette,
        *,
        host: str,
        port: int,
        address_file: Path,
        instance: str = "",
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
    ) -> None:
        """Bind at once, so that a taken port is an error at the start and not a line in a log. By `instance`, which
        stands in the address file, `app` proves that it is the one the file speaks of.

        Raises:
            ConfigError: the port is taken or not allowed, or certificate and key cannot be used.
        """
        self._address_file = address_file
        config = _configure(app, tls_cert, tls_key)
        self._socket = _bind(host, port)
        self.port: int = self._socket.getsockname()[1]
        address = _address(host, self.port, secure=config.is_ssl) | {"instance": instance}
        try:
            persist_bytes(address_file, json.dumps(address).encode() + b"\n")
        except OSError as exc:  # programs on this machine do not find the API; frames are answered all the same
            log.warning("cannot write %s: %s", address_file, exc)
        self._server = _RestfulServer(config)
        self._thread = threading.Thread(target=self._serve, name="api", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Stop answering; requests under way get a second."""
        self._server.end()
        self._thread.join(timeout_s)
        self._socket.close()
        with suppress(OSError):
            self._address_file.unlink(missing_ok=True)

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])


def _address(host: str, port: int, *, secure: bool) -> dict[str, object]:
    """Return what a program on this machine has to know."""
    near = "127.0.0.1" if ipaddress.IPv4Address(host).is_unspecified else host
    scheme = "https" if secure else "http"
    return {"host": host, "port": port, "url": f"{scheme}://{near}:{port}", "pid": os.getpid()}


def _configure(app: Starlette, tls_cert: Path | None, tls_key: Path | None) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )
    try:
        # Now, and not in the server's thread, where nobody would hear of a certificate that cannot be used.
        config.load()
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"the certificate cannot be used: {exc}", hint="api.tls_cert and api.tls_key are PEM files that fit."
        ) from exc
    return config


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Who reads the address file may connect at once; the kernel holds the connection until the server runs.
        listener.listen(64)
    except OSError as exc:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {exc.strerror}", hint="Set api.port to a free port, or to 0 for any."
        ) from exc
    return listener
