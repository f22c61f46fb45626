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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import yaml

from curate.errors import ConfigError, Error
from edge_agent.agent_client import AgentClient, AgentNotRunningError
from edge_agent.bench.command import add_bench, run_bench
from edge_agent.cameras.registry import describe_camera
from edge_agent.config.agent import AgentConfig, load_config
from edge_agent.doctor.examine import examine
from edge_agent.doctor.findings import Level, worst
from edge_agent.logs import configure_logging
from edge_agent.service import agent_version, run_service
from edge_agent.switches import Switches
from edge_agent.sync.bucket import describe_access, open_store

log = logging.getLogger(__name__)

OK: Final = 0
FAILED: Final = 1
WRONG_CONFIG: Final = 2
_SWITCHES: Final = {"capture": "capture_allowed", "metered": "metered"}

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

when something is wrong:
  gleaner-agent doctor --config agent.yaml             says what, in words, and what to do; also while it runs
  gleaner-agent explain --config agent.yaml ID         why a prediction's frame was kept, or was not

exit codes: 0 fine, 1 it failed, 2 the configuration or the command line is wrong
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors are a message and a hint on standard error, never a trace."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except Error as exc:
        _complain(str(exc), exc.hint)
        return WRONG_CONFIG if isinstance(exc, ConfigError) else FAILED
    except (KeyboardInterrupt, BrokenPipeError):
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

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    for name, command, text in (
        ("run", _run, "run the agent in the foreground; SIGTERM stops it, SIGKILL loses nothing that was kept"),
        ("status", _status, "ask the running agent for its counters, cameras, model, policy and spool, as JSON"),
        ("check", _check, "validate the configuration and say whether cameras, trust and bucket are in reach"),
    ):
        _needs_config(add(name, command, text))
    sub = add(
        "doctor", _doctor, "examine device, cameras, clock, disk, bucket and model; say what to do; changes nothing"
    )
    _needs_config(sub)
    sub.add_argument("--json", action="store_true", help="one JSON object for each finding")
    sub = add("explain", _explain, "ask the running agent why it kept a prediction's frame, or did not")
    _needs_config(sub)
    sub.add_argument("prediction_id", help="as `GET /v1/predictions` lists them")
    sub = add("switch", _switch, "allow or forbid captures, or say that the link costs money; survives restarts")
    _needs_config(sub)
    sub.add_argument(
        "name", choices=sorted(_SWITCHES), help="capture: may frames be kept? metered: does the link cost?"
    )
    sub.add_argument("state", choices=("on", "off"))
    add_bench(add("bench", run_bench, "measure what the agent costs beside a bare ONNX Runtime loop, on this machine"))
    return parser


def _needs_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="the agent's YAML file; see configs/agent.yaml")


def _run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
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


def _status(arguments: argparse.Namespace) -> int:
    _print_json(AgentClient(load_config(arguments.config)).get("/v1/status"))
    return OK


def _explain(arguments: argparse.Namespace) -> int:
    path = f"/v1/predictions/{quote(arguments.prediction_id, safe='')}/explain"
    document = AgentClient(load_config(arguments.config)).get(path)
    print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100), end="")
    return OK


def _switch(arguments: argparse.Namespace) -> int:
    """Flip a switch of the running agent; of its file when none runs."""
    config = load_config(arguments.config)
    change = {_SWITCHES[arguments.name]: arguments.state == "on"}
    try:
        state = AgentClient(config).put("/v1/switches", change)
    except AgentNotRunningError:
        config.state_dir.mkdir(parents=True, exist_ok=True)
        state = Switches(config.state_dir / "switches.json").flip(**change).model_dump()
    _print_json(state)
    return OK


def _doctor(arguments: argparse.Namespace) -> int:
    findings = []
    for finding in examine(load_config(arguments.config)):
        findings.append(finding)
        print(json.dumps(asdict(finding)) if arguments.json else finding.lines(), flush=True)
    return FAILED if worst(findings) is Level.FAIL else OK


def _check(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    print(f"configuration: valid, device {config.device_id}, state in {config.state_dir}")
    exit_code = OK
    for name, look in _looks(config).items():
        try:
            print(f"{name}: {look()}")
        except Error as exc:
            exit_code = exit_code or (WRONG_CONFIG if isinstance(exc, ConfigError) else FAILED)
            _complain(f"{name}: {exc}", exc.hint)
    return exit_code


def _looks(config: AgentConfig) -> dict[str, Callable[[], str]]:
    cameras = {f"camera {camera.camera_id}": partial(describe_camera, camera) for camera in config.all_cameras}
    return {**cameras, "trust": partial(_look_at_trust, config), "bucket": partial(_look_at_bucket, config)}


def _look_at_trust(config: AgentConfig) -> str:
    if not config.trust.root_file.is_file():
        raise ConfigError(
            f"{config.trust.root_file} is not a file", hint="Copy the release repository's root.json to it."
        )
    return f"{config.trust.root_file} is there"


def _look_at_bucket(config: AgentConfig) -> str:
    return describe_access(open_store(config.bucket), config.device_id)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _complain(message: str, hint: str | None) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
