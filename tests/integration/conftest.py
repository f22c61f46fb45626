"""What several integration tests start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.releases import Device, Publisher


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """A started repository with the first release published and assigned."""
    publisher = Publisher(tmp_path / "cloud")
    publisher.publish("r-1")
    publisher.assign("r-1")
    return publisher


@pytest.fixture
def device(tmp_path: Path, publisher: Publisher) -> Device:
    """A device that runs the first release."""
    device = Device(tmp_path / "device", publisher)
    event = device.turn()
    assert event is not None
    assert event.outcome == "committed"
    return device
