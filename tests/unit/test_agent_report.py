"""The heartbeat: what it asks of other parts, and that nobody waits for anybody there."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

from curate.contracts.ids import BootId, DeviceId
from curate.contracts.telemetry import DeviceCounters, DeviceLimits, ReportedState
from edge_agent.report import DeviceReport


def test_whoever_is_asked_may_report_something(tmp_path: Path) -> None:
    """A part that is asked for the heartbeat may count an error meanwhile: nothing is held while it is asked, and the
    heartbeat tells of it already."""
    report = DeviceReport(tmp_path / "updates.json", agent_version="1")

    def describe_limits() -> DeviceLimits:
        report.count_error("SlowDiskError")
        return DeviceLimits(reserve_ready=False)

    report.follow_limits(describe_limits)
    told: list[ReportedState] = []

    def ask() -> None:
        now, counters = datetime(2026, 3, 1, tzinfo=UTC), DeviceCounters()
        told.append(
            report.state(device_id=DeviceId("cam-1"), boot_id=BootId("b"), now=now, counters=counters, quarantined=0)
        )

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(20)
    assert [(state.errors, state.limits) for state in told] == [
        ({"SlowDiskError": 1}, DeviceLimits(reserve_ready=False))
    ]
