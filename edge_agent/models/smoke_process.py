"""Starts the check of a release in a process of its own and takes nothing it says on trust."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, TypeAlias

from pydantic import ValidationError

from edge_agent.models.smoke import SmokeRequest, SmokeResult

Smoke: TypeAlias = Callable[[SmokeRequest], SmokeResult]
"""Checks a model and never raises."""

_MODULE: Final = "edge_agent.models.smoke"
_MAX_RESULT_BYTES: Final = 64 * 1024
_KEPT_VARIABLES: Final = ("PATH", "LD_LIBRARY_PATH")
"""What the loader and accelerators need; keys to the bucket stay here."""
_PASSING_SIGNALS: Final = frozenset({signal.SIGKILL, signal.SIGALRM, signal.SIGXCPU, signal.SIGTERM})
"""Memory or time ran out, or somebody stopped it: another moment may be better."""


def run_smoke(request: SmokeRequest, *, command: tuple[str, ...] | None = None) -> SmokeResult:
    """Check a model in a process of its own; whatever happens there is a result.

    Args:
        request: what to check and within which bounds.
        command: another program to run, for tests.
    """
    deadline_s = time.monotonic() + request.settings.smoke_timeout_s
    try:
        process = _start(command or (sys.executable, "-P", "-m", _MODULE))
    except OSError as exc:
        return _failure(f"its check could not be started: {exc.strerror}", may_pass=True)
    try:
        raw = _talk(process, request.model_dump_json().encode(), deadline_s)
        if len(raw) > _MAX_RESULT_BYTES:
            return _failure("its check said more than a result")
        code = process.wait(max(0.0, deadline_s - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        return _failure(f"its check took longer than {request.settings.smoke_timeout_s:g} s", may_pass=True)
    finally:
        _end(process)
    return _read_result(raw, code)


def _start(command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={**kept, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def _talk(process: subprocess.Popen[bytes], request: bytes, deadline_s: float) -> bytes:
    """Send the request and read at most one byte more than a result may have.

    Raises:
        TimeoutError: the deadline passed.
    """
    if process.stdin is None or process.stdout is None:
        raise TimeoutError
    with contextlib.suppress(OSError):  # it died before it read all; its end tells more
        process.stdin.write(request)
        process.stdin.close()
    return _read(process.stdout, deadline_s)


def _read(stream: IO[bytes], deadline_s: float) -> bytes:
    raw = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while len(raw) <= _MAX_RESULT_BYTES:
            if not selector.select(max(0.0, deadline_s - time.monotonic())):
                raise TimeoutError
            piece = os.read(stream.fileno(), _MAX_RESULT_BYTES)
            if not piece:
                break
            raw += piece
    return raw


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of it behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _read_result(raw: bytes, code: int) -> SmokeResult:
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}  # those for real time have none
        return _failure(
            f"its check was ended by {names.get(-code, f'signal {-code}')}", may_pass=-code in _PASSING_SIGNALS
        )
    if code > 0:
        return _failure(f"its check ended with the code {code}")
    try:
        return SmokeResult.model_validate_json(raw)
    except ValidationError:
        return _failure("its check ended without a result")


def _failure(reason: str, *, may_pass: bool = False) -> SmokeResult:
    return SmokeResult(ok=False, reason=reason, may_pass=may_pass)
