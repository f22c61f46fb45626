"""Kills at random moments: SIGKILL to an agent, the flow process, Label Studio or the S3 server."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.sandbox.processes import kill_process, running_names
from flows.sandbox.script import DemoScript

VICTIMS = {"agent": "agent-", "flow": "worker", "label-studio": "label-studio", "s3": "s3"}
"""Kind of victim to the name its processes start with."""


class Chaos:
    """Kills one process of each kind in turn, at moments drawn from the seed, while the context is open."""

    def __init__(self, root: Path, script: DemoScript, note: Callable[..., Any]) -> None:
        self._root = root
        self._kinds = script.chaos
        self._random = random.Random(script.seed)
        self._note = note
        self._pause_s = script.kill_pause_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)

    def __enter__(self) -> Chaos:
        if self._kinds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._kinds:
            self._thread.join()

    def _run(self) -> None:
        for kind in self._kinds:
            if self._stopping.wait(self._random.uniform(*self._pause_s)):
                return
            self.kill(kind)

    def kill(self, kind: str) -> str | None:
        """Kill one running process of that kind and return its name; None when none runs."""
        names = sorted(name for name in running_names(self._root) if name.startswith(VICTIMS[kind]))
        if not names:
            return None
        name = self._random.choice(names)
        kill_process(self._root, name)
        self._note("killed", name=name)
        return name
