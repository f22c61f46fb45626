"""Serves the API from a thread of its own. The one home of uvicorn."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from curate.errors import AgentError, ConfigError
from edge_agent.durable import persist_bytes

log = logging.getLogger(__name__)


class ApiServer:
    """An HTTP server on loopback, in a thread. `address_file` tells other programs where it listens."""

    def __init__(self, app: Starlette, *, host: str, port: int, address_file: Path) -> None:
        """Bind at once, so that a taken port is an error at the start and not a line in a log.

        Raises:
            ConfigError: the port is taken or not allowed.
            AgentError: the address file cannot be written.
        """
        self._address_file = address_file
        self._socket = _bind(host, port)
        self.port: int = self._socket.getsockname()[1]
        address = {"host": host, "port": self.port, "url": f"http://{host}:{self.port}", "pid": os.getpid()}
        try:
            persist_bytes(address_file, json.dumps(address).encode() + b"\n")
        except OSError as exc:
            self._socket.close()
            raise AgentError(f"cannot write {address_file}: {exc.strerror}") from exc
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=64,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="api", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Stop answering; requests under way get a second."""
        self._server.should_exit = True
        self._thread.join(timeout_s)
        self._socket.close()
        self._address_file.unlink(missing_ok=True)

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])


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
