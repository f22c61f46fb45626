"""What an init system is to a real fleet: whatever should run and does not is started again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from curate.errors import Error
from flows.sandbox.processes import load_process, spawn
from flows.sandbox.stack import restart_service

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Program:
    """One supervised process."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    before_restart: Callable[[], None] | None = None
    """Runs when the process was found dead, before it is started again."""


class Supervisor:
    """Keeps programs and services of one root alive until closed."""

    def __init__(self, root: Path, services: Sequence[str], on_restart: Callable[[str], None]) -> None:
        self._root = root
        self._services = tuple(services)
        self._programs: dict[str, Program] = {}
        self._on_restart = on_restart
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def add(self, program: Program) -> None:
        """Start the program and keep it running."""
        with self._lock:
            spawn(self._root, program.name, program.argv, env=program.env, cwd=program.cwd)
            self._programs[program.name] = program

    def remove(self, name: str) -> None:
        """Stop caring about the program, so that it may end."""
        with self._lock:
            self._programs.pop(name, None)

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY_S):
            try:
                with self._lock:
                    self._look()
            except Error as exc:  # the next look tries again
                log.warning("cannot restart: %s", exc)

    def _look(self) -> None:
        for name in self._services:
            if load_process(self._root, name) is None:
                self._on_restart(name)
                restart_service(self._root, name)
        for program in list(self._programs.values()):
            if load_process(self._root, program.name) is None:
                self._on_restart(program.name)
                if program.before_restart is not None:
                    program.before_restart()
                spawn(self._root, program.name, program.argv, env=program.env, cwd=program.cwd)
