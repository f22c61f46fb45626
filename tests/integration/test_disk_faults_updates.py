"""A full and a failing disk at every single call of an update (P2, P3)."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from edge_agent.models.updater_state import load_state
from tests.fakes.disk_faults import FaultyDisk, faulty_disk
from tests.fakes.nightly import NIGHTLY, Tell
from tests.fakes.power_cut import fast_folder
from tests.fakes.releases import Device, Publisher

NEVER = 10**9
LENGTHS = (1, NEVER) if NIGHTLY else (1,)
STEP = 1 if NIGHTLY else 3
"""Only each third call by day: a life is a whole update."""


@pytest.fixture
def world() -> Iterator[tuple[Path, Publisher]]:
    """A device that runs its first release, with a second one assigned; on a fast disk."""
    with fast_folder() as name:
        folder = Path(name)
        publisher = Publisher(folder / "cloud")
        publisher.publish("r-1")
        publisher.assign("r-1")
        device = Device(folder / "device", publisher)
        device.turn()
        assert device.release_id == "r-1"
        publisher.publish("r-2", 0.3)
        publisher.assign("r-2")
        yield folder, publisher


def update(world: tuple[Path, Publisher], code: int, first: int, length: int) -> FaultyDisk:
    """Update a copy of the device over the fault; the old or the new release answers throughout, and on a good disk the
    next turn ends with the new one, or, where the disk failed the new one's own check, the next assignment."""
    folder = world[0] / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world[0] / "device", folder)
    device = Device(folder, world[1])
    before = load_state(folder / "updater.json").floor
    with faulty_disk(folder, code, first, length) as faulty:
        device.turn()
        assert device.release_id in {"r-1", "r-2"}
    device.restart()
    assert device.release_id in {"r-1", "r-2"}
    floor = load_state(folder / "updater.json").floor
    assert floor.release_number >= before.release_number
    assert floor.assignment_version >= before.assignment_version
    if device.release_id == "r-1":
        device.turn(after=timedelta(days=1))
    if device.release_id == "r-1":
        world[1].assign("r-2", policy=f"again-{first}")
        device.turn(after=timedelta(days=1))
    device.restart()
    assert device.release_id == "r-2"
    return faulty


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "failing"])
def test_a_disk_that_refuses_at_any_call_keeps_a_proven_model_running(
    world: tuple[Path, Publisher], code: int, tell: Tell
) -> None:
    """At every index of every call of an update (by day each third): nothing escapes from the turn, a model that was
    proven answers, the floor stays, and the update can be made up for when the disk is good again."""
    count = len(update(world, code, NEVER, 1).calls)
    lives = 0
    for first in range(0, count, STEP):
        for length in LENGTHS:
            lives += 1
            try:
                assert update(world, code, first, length).failed
            except BaseException as exc:
                exc.add_note(f"{errno.errorcode[code]} at call {first}, {length} time(s)")
                raise
    tell(f"update: {errno.errorcode[code]} at {lives} of {count * len(LENGTHS)} places in {count} calls")
    assert count > 10
