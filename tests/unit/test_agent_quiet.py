"""The agent costs little: threads that have nothing to do sleep, and still end at once; work waits for who asks."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from edge_agent.capture import keeper
from edge_agent.interfaces import api_server
from edge_agent.latency import _MANY, BOUNDS_S, LatencyHistogram
from tests.fakes.agent_bench import KEEP_ALL, Bench

LONG_S = 600.0
PATIENCE_S = 30.0


def test_the_server_sleeps_and_still_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers, with a date, and ends when it is told to, however seldom it looks after itself."""
    monkeypatch.setattr(api_server, "_TICK_S", LONG_S)
    app = Starlette(routes=[Route("/", lambda _request: PlainTextResponse("here"))])
    server = api_server.ApiServer(app, host="127.0.0.1", port=0, address_file=tmp_path / "api.json")
    server.start()
    answer = httpx.get(f"http://127.0.0.1:{server.port}/", timeout=PATIENCE_S, trust_env=False)
    assert (answer.text, "date" in answer.headers) == ("here", True)
    server.stop(PATIENCE_S)
    assert not server._thread.is_alive()


def test_the_keeper_sleeps_and_still_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to stop and woken, the thread that stores ends, and what was queued is stored before."""
    monkeypatch.setattr(keeper, "_WAIT_S", LONG_S)
    bench = Bench(tmp_path, KEEP_ALL)
    stop = threading.Event()
    thread = threading.Thread(target=bench.keeper.run, args=(stop,), daemon=True)
    thread.start()
    stop.set()
    bench.keeper.wake()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_every_observation_is_counted_whenever_somebody_asks() -> None:
    """What waits to be sorted is in the next snapshot, many or few; the bounds belong to their buckets."""
    histogram = LatencyHistogram()
    for bound in BOUNDS_S:
        histogram.observe(bound)
    assert histogram.snapshot().counts == (*[1] * len(BOUNDS_S), 0)
    for _ in range(_MANY + 7):
        histogram.observe(9.0)
    assert len(histogram._waiting) < _MANY
    assert histogram.snapshot().counts[-1] == _MANY + 7
    assert histogram.snapshot().sum_s == pytest.approx(sum(BOUNDS_S) + 9.0 * (_MANY + 7))
