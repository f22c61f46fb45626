"""`gleaner-agent`: the command line of one device's agent."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from curate.errors import AgentError, ConfigError, Error
from edge_agent.cameras.registry import describe_camera
from edge_agent.config.agent import AgentConfig, load_config
from edge_agent.logs import configure_logging
from edge_agent.service import agent_version, run_service
from edge_agent.sync.bucket import describe_access, open_store

log = logging.getLogger(__name__)

OK: Final = 0
FAILED: Final = 1
WRONG_CONFIG: Final = 2
_STATUS_TIMEOUT_S: Final = 5.0

_DESCRIPTION = """\
The agent that runs on a camera: answers every frame with the model the cloud assigned, keeps the frames worth a
label through power cuts and dead links, and takes people's verdicts over HTTP on this machine.
"""

_EPILOG = """\
first steps:
  1. copy configs/agent.yaml, set device_id, camera, bucket and trust
  2. gleaner-agent check --config agent.yaml      is everything in reach?
  3. gleaner-agent run --config agent.yaml        runs until SIGTERM or Ctrl-C
  4. gleaner-agent status --config agent.yaml     from another terminal

exit codes: 0 fine, 1 it failed, 2 the configuration or the command line is wrong
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors are a message and a hint on standard error, never a trace."""
    arguments = _parser().parse_args(argv)
    command: Callable[[AgentConfig], int] = arguments.command
    try:
        return command(load_config(arguments.config))
    except Error as exc:
        _complain(str(exc), exc.hint)
        return WRONG_CONFIG if isinstance(exc, ConfigError) else FAILED
    except KeyboardInterrupt:
        return OK
    except Exception as exc:
        log.debug("unforeseen", exc_info=True)
        _complain(f"unforeseen {type(exc).__name__}: {exc}", "Set log.level to debug for the trace, and tell us.")
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gleaner-agent",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gleaner-agent {agent_version()}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command, text in (
        ("run", _run, "run the agent in the foreground; SIGTERM stops it, SIGKILL loses nothing that was kept"),
        ("status", _status, "ask the running agent for its counters, model, policy and spool, as JSON"),
        ("check", _check, "validate the configuration and say whether camera, trust and bucket are in reach"),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--config", type=Path, required=True, help="the agent's YAML file; see configs/agent.yaml")
        sub.set_defaults(command=command)
    return parser


def _run(config: AgentConfig) -> int:
    try:
        configure_logging(config.log)
    except OSError as exc:
        raise ConfigError(f"cannot open the log file {config.log.file}: {exc.strerror}") from exc
    with _stop_on_signals() as stop:
        run_service(config, stop)
    return OK


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT set; a second signal ends the process at once.

    A handler that set the event itself could deadlock: it runs inside whatever lock the main thread just took. So the
    handler does nothing, and a thread reads the byte that the interpreter writes for each signal.
    """
    stop = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    threading.Thread(target=_await_signals, args=(reader, stop), name="signals", daemon=True).start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writer.close()


def _await_signals(reader: socket.socket, stop: threading.Event) -> None:
    with reader:
        while reader.recv(1):
            if stop.is_set():
                os._exit(FAILED)
            stop.set()


def _status(config: AgentConfig) -> int:
    print(json.dumps(_fetch_status(config), indent=2, ensure_ascii=False))
    return OK


def _fetch_status(config: AgentConfig) -> Any:
    address_file = config.state_dir / "api.json"
    hint = "Start it with `gleaner-agent run --config …`."
    try:
        url = str(json.loads(address_file.read_bytes())["url"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise AgentError(f"no agent has run with the state folder {config.state_dir}", hint=hint) from exc
    # Never through a proxy from the environment: the agent is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/v1/status", timeout=_STATUS_TIMEOUT_S) as response:
            return json.load(response)
    except (urllib.error.URLError, OSError, ValueError) as exc:
        raise AgentError(f"the agent does not answer at {url}: {exc}", hint=hint) from exc


def _check(config: AgentConfig) -> int:
    print(f"configuration: valid, device {config.device_id}, state in {config.state_dir}")
    exit_code = OK
    for name, look in (("camera", _look_at_camera), ("trust", _look_at_trust), ("bucket", _look_at_bucket)):
        try:
            print(f"{name}: {look(config)}")
        except Error as exc:
            exit_code = exit_code or (WRONG_CONFIG if isinstance(exc, ConfigError) else FAILED)
            _complain(f"{name}: {exc}", exc.hint)
    return exit_code


def _look_at_camera(config: AgentConfig) -> str:
    return describe_camera(config.camera)


def _look_at_trust(config: AgentConfig) -> str:
    if not config.trust.root_file.is_file():
        raise ConfigError(
            f"{config.trust.root_file} is not a file", hint="Copy the release repository's root.json to it."
        )
    return f"{config.trust.root_file} is there"


def _look_at_bucket(config: AgentConfig) -> str:
    return describe_access(open_store(config.bucket), config.device_id)


def _complain(message: str, hint: str | None) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
