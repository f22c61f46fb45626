"""One agent a state folder: the second one is told so instead of corrupting the first one's spool."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from curate.errors import AgentError


@contextmanager
def exclusive_state(state_dir: Path) -> Iterator[None]:
    """Hold the state folder for this process; creates it. `agent.pid` tells who holds it.

    The kernel releases the lock when the process ends, however it ends.

    Raises:
        AgentError: another agent holds it, or the folder cannot be written.
    """
    path = state_dir / "agent.pid"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        descriptor = _open(path)
    except OSError as exc:
        raise AgentError(
            f"cannot use the state folder {state_dir}: {exc.strerror}", hint="Give the agent's user write access to it."
        ) from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise AgentError(
                f"another agent (process {holder}) already uses {state_dir}",
                hint="Stop it first, or give this agent a state_dir of its own.",
            ) from exc
        with suppress(OSError):  # it only helps a person to find us, and a full disk must not keep us from starting
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
        # A file system with errors is mounted read-only at the next start; frames can be answered all the same.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
