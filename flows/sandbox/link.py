"""A camera's link to the bucket that can be cut: a TCP relay on loopback which a control file switches.

While the control file says `down`, new connections are refused and open ones are dropped, as when a modem loses its
network; when it says `up` again the relay listens on the same port.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from pathlib import Path

from flows.sandbox.simulator import SimulatorConfig, load_simulator_config

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 16


class LinkConfig(SimulatorConfig):
    """Listen on `listen_port`, relay to `target_port`, obey `control_file` (`up` or `down`; missing means up)."""

    listen_port: int
    target_port: int
    control_file: Path
    poll_s: float = 0.2


class Link:
    """One relay. `run` never returns by itself."""

    def __init__(self, config: LinkConfig) -> None:
        self._config = config
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def run(self) -> None:
        """Follow the control file for ever."""
        while True:
            wanted = is_up(self._config.control_file)
            if wanted and self._server is None:
                self._server = await asyncio.start_server(self._relay, "127.0.0.1", self._config.listen_port)
                log.info("link up")
            elif not wanted and self._server is not None:
                self._server.close()
                for writer in list(self._open):
                    writer.transport.abort()
                self._server = None
                log.info("link down")
            await asyncio.sleep(self._config.poll_s)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._config.target_port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, far_writer}
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            self._open -= {writer, far_writer}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


def is_up(control_file: Path) -> bool:
    """Whether the control file lets the link be up."""
    try:
        return control_file.read_text().strip() != "down"
    except FileNotFoundError:
        return True


def set_link(control_file: Path, *, up: bool) -> None:
    """Switch a link."""
    temporary = control_file.with_suffix(".tmp")
    temporary.write_text("up" if up else "down")
    temporary.replace(control_file)


def main(argv: list[str]) -> int:
    """Run a link until killed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Link(load_simulator_config(argv, LinkConfig)).run())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
