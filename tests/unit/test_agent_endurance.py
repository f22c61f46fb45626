"""What must not stop the agent: a log that takes no line, a switch on a slow disk, a loop that dies (P2)."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from curate.errors import AgentError
from edge_agent import logs
from edge_agent.logs import JsonLines, UnhurriedHandler
from edge_agent.loops import keep_running
from edge_agent.switches import Switches

PATIENCE_S = 20.0


class StuckStream(io.StringIO):
    """A pipe that nobody reads until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        assert self.released.wait(PATIENCE_S)
        return super().write(text)


def test_a_log_that_takes_no_line_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """While whoever takes the log does not, records are handed over at once, a bounded number of them waits, and in the
    end the log says how many were dropped."""
    monkeypatch.setattr(logs, "MAX_WAITING", 10)
    stream = StuckStream()
    target = logging.StreamHandler(stream)
    target.setFormatter(JsonLines())
    handler = UnhurriedHandler(target)
    started_s = time.monotonic()
    for number in range(100):
        handler.handle(logging.makeLogRecord({"msg": "frame %d", "args": (number,)}))
    assert time.monotonic() - started_s < PATIENCE_S / 2
    stream.released.set()
    wait_for(lambda: "did not keep up" in stream.getvalue())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0]["message"] == "frame 0"
    assert next(line["dropped"] for line in lines if "dropped" in line) in {89, 90}
    handler.close()


def test_whoever_asks_for_the_switches_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    """While a switch is being written, which may take as long as the disk likes, frames still hear how it stands."""
    path = tmp_path / "switches.json"
    switches = Switches(path)
    os.mkfifo(tmp_path / "switches.json.tmp")  # opening it for writing waits for a reader

    def write() -> None:
        with suppress(AgentError):  # a pipe cannot be synced
            switches.flip(metered=True)

    flip = threading.Thread(target=write, daemon=True)
    flip.start()
    wait_for(flip.is_alive)
    heard: list[bool] = []
    asking = threading.Thread(target=lambda: heard.append(switches.state().capture_allowed), daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    assert heard == [True]
    assert flip.is_alive()
    with (tmp_path / "switches.json.tmp").open("rb"):
        wait_for(lambda: not flip.is_alive())


@pytest.mark.parametrize("death", [RuntimeError("bug"), SystemExit(3), None])
def test_a_loop_that_ends_begins_anew(death: BaseException | None) -> None:
    """Whatever ends a loop before it is told to stop, an exit included, is counted and the loop runs again; told to
    stop, it ends for good."""
    stop, runs, errors = threading.Event(), [], []

    def run(stop: threading.Event) -> None:
        runs.append(1)
        if len(runs) == 3:
            stop.set()
        elif death is not None:
            raise death

    keep_running("sync", run, stop, count_error=errors.append, restart_s=0.0)
    assert len(runs) == 3
    assert errors == ([] if death is None else [type(death).__name__] * 2)


def wait_for(condition: object, timeout_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.005)
