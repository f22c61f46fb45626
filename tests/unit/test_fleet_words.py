"""What the fleet table says of a device."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from curate.contracts.telemetry import DeviceCounters, DeviceLimits, ReportedState, UpdateEvent
from curate.release.fleet import describe_problems

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def state(**change: Any) -> ReportedState:
    about = {"device_id": "cam-1", "boot_id": "b", "reported_at": NOW, "agent_version": "1", "release_id": "r-2"}
    return ReportedState(**{**about, "counters": DeviceCounters(), **change})


@pytest.mark.parametrize("outcome", ["downloading", "smoke", "trial", "committed", "swapped"])
def test_an_update_on_its_way_is_no_problem(outcome: str) -> None:
    """A device that runs the newest release and is busy or done with an update has nothing to tell."""
    assert describe_problems(state(updates=[UpdateEvent(at=NOW, outcome=outcome)]), "r-2") == []


@pytest.mark.parametrize("outcome", ["refused", "rolled_back", "postponed", "settings_refused"])
def test_whatever_went_wrong_last_is_told(outcome: str) -> None:
    """The newest event stands in the table with its reason when it is no good news."""
    told = describe_problems(state(updates=[UpdateEvent(at=NOW, outcome=outcome, detail="why")]), "r-2")
    assert told == [f"{outcome}: why"]


def test_everything_else_that_is_wrong_is_told_too() -> None:
    """Another release than the newest, files in quarantine and captures that may not go are each a problem."""
    limits = DeviceLimits(held_back={"metered": 7})
    told = describe_problems(state(quarantined=2, limits=limits), "r-3")
    assert told == ["not on r-3", "2 file(s) in quarantine", "captures held back: 7 by metered"]
    assert describe_problems(state(), None) == []
