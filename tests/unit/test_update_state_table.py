"""What becomes of an update whatever happens in whichever of its phases: a table, after Mender's.

Every row runs the real updater on a real bucket, disk and model; only power, link, disk space and clock are scripted.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.contracts.paths import TUF_TARGETS, desired_key
from curate.errors import SelfCheckError, StorageError
from edge_agent.models.installer import UpdateLimits
from edge_agent.models.smoke import RunSettings
from edge_agent.models.smoke_process import run_smoke
from edge_agent.models.trial_watch import TrialRules
from edge_agent.models.updater_state import load_state
from tests.fakes.recording_store import CrashError
from tests.fakes.releases import DEVICE, SIZE, Device, Publisher, golden_bytes, release_files
from tests.fakes.treacherous_models import Treason

TRIAL = UpdateLimits(trial=TrialRules(window_s=2.0, window_frames=20, hang_s=30.0))
YEARS = timedelta(days=3650)


class Site:
    """A device that is given the release r-2, with a disk that notes every durable phase and fails on demand."""

    def __init__(self, folder: Path, row: Row, patch: pytest.MonkeyPatch) -> None:
        self.row = row
        self.publisher = Publisher(folder / "cloud")
        self.publisher.publish("r-1")
        self.device = Device(folder / "device", self.publisher, TRIAL, running=row.running)
        self.phases: list[str] = []
        self.disk_full = False
        self._struck = 0
        self._suffers = False
        if row.at != "idle":
            self.publisher.assign("r-1")
            self.device.turn()
            self.device.answer_frames(30)
            self.device.turn()
        self._phase = load_state(self.device.folder / "updater.json").attempt.phase.value if row.at != "idle" else ""
        self._before = len(self.device.outcomes)
        self._replace = os.replace
        patch.setattr(os, "replace", self._noted)

    def _noted(self, source: Any, target: Any) -> None:
        if self.disk_full:
            raise OSError(28, "No space left on device")
        self._replace(source, target)
        if Path(target).name != "updater.json":
            return
        phase = load_state(Path(target)).attempt.phase.value
        if phase != self._phase:
            self.phases.append(phase)
            self._phase = phase
        if self.phases[-1:] == [self.row.at] and self._struck < self.row.times:
            self._struck += 1
            self.row.happens(self)

    def watch_frames(self) -> None:
        """Let enough frames pass for a trial, bright ones where a release cannot stand them."""
        bright = self.row.treason is not None and self.phases[-1:] == ["trial"]
        self.device.answer_frames(self.row.frames, value=255 if bright else None)

    def live_through(self) -> None:
        """Some days of a device's life: polls, frames, and restarts where the process dies."""
        for _ in range(6):
            with contextlib.suppress(StorageError):
                try:
                    self.device.turn()
                    with hanging_frame(self):
                        self.watch_frames()
                        self.device.turn()
                except CrashError:
                    self.device.restart()
            if self._suffers:
                self.row.heals(self)
            self._suffers = self._struck > 0

    @property
    def told(self) -> list[str]:
        """What the heartbeat says of it, without the steps on the way; what repeats, for another reason, once."""
        return [outcome for outcome, _ in itertools.groupby(self.device.outcomes[self._before :])]


@contextlib.contextmanager
def hanging_frame(site: Site) -> Iterator[None]:
    """While a release that hangs is on trial, a frame waits in it until the release is given up."""
    model = site.device.live.current()
    if site.row.treason != "hang" or site.phases[-1:] != ["trial"] or model is None:
        yield
        return

    def ask() -> None:
        with contextlib.suppress(SelfCheckError):
            model.infer(np.full((SIZE, SIZE, 3), 255, np.uint8))

    thread = threading.Thread(target=ask)
    thread.start()
    deadline_s = time.monotonic() + 60
    while thread.is_alive():
        assert time.monotonic() < deadline_s
        site.device.monotonic_s += 31.0
        site.device.updater.watch(site.device.now)
        thread.join(0.01)
    yield


def nothing(_: Site) -> None:
    """Go on."""


def kill(_: Site) -> None:
    """The process dies right after the phase became durable."""
    raise CrashError


def fill_disk(site: Site) -> None:
    """From now on the disk takes nothing."""
    site.disk_full = True


def free_disk(site: Site) -> None:
    """Somebody made room."""
    site.disk_full = False


def cut_link(site: Site) -> None:
    """The next download breaks in the middle."""
    site.device.store.cut_after_bytes = 100


def into_future(site: Site) -> None:
    """The clock jumps ten years ahead, and the power fails."""
    site.device.clock += YEARS
    site.device.now += YEARS
    raise CrashError


def into_past(site: Site) -> None:
    """The power fails and the clock starts in the past, as one without a battery does."""
    site.device.clock -= YEARS
    site.device.now -= YEARS
    raise CrashError


def right_clock(site: Site) -> None:
    """Somebody sets the clock."""
    site.device.clock = site.publisher.now


def tamper(site: Site) -> None:
    """A bit of the model flips in the bucket."""
    key = next(b.key for b in site.publisher.store.list(TUF_TARGETS) if b.key.endswith("r-2.model-int8.onnx"))
    raw = site.publisher.store.get(key)
    site.publisher.store.put(key, raw[:-1] + bytes([raw[-1] ^ 1]))


def heal(site: Site) -> None:
    """The bucket has the model again."""
    key = next(b.key for b in site.publisher.store.list(TUF_TARGETS) if b.key.endswith("r-2.model-int8.onnx"))
    site.publisher.store.put(key, release_files(0.3)["int8"])


def damage_slot(site: Site) -> None:
    """A bit of the update's slot flips on the disk."""
    slot = load_state(site.device.folder / "updater.json").attempt.slot
    assert slot is not None
    path = site.device.slots.model_path(slot)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def damage_and_restart(site: Site) -> None:
    """The committed slot rots and the agent is restarted."""
    damage_slot(site)
    raise CrashError


def withdraw(site: Site) -> None:
    """The old release is assigned again."""
    site.publisher.assign("r-1")


def withdraw_offline(site: Site) -> None:
    """The download breaks, and before the link is back the old release is assigned again."""
    cut_link(site)
    withdraw(site)


def hide_assignment(site: Site) -> None:
    """Nothing is assigned."""
    site.publisher.store.delete(desired_key(DEVICE))


FINE = ("downloading", "verified", "smoke", "trial", "committed")
BAD = (*FINE[:4], "rolled_back")
UNFIT = (*FINE[:3], "refused")
ROTTEN = "committed restore_failed rolled_back committed"
OTHER = golden_bytes(bias=-0.5)
"""What another model would answer."""
SLEEPER = partial(run_smoke, command=(sys.executable, "-c", "import time; time.sleep(600)"))


@dataclass(frozen=True)
class Row:
    """In this phase this happens; these phases become durable, this is told, this answers frames at the end."""

    at: str
    fault: str
    chain: tuple[str, ...]
    told: tuple[str, ...]
    final: str | None
    happens: Callable[[Site], None] = nothing
    heals: Callable[[Site], None] = nothing
    times: int = 1
    treason: Treason | None = None
    golden: bytes | None = None
    running: RunSettings = field(default_factory=RunSettings)
    sleeps: bool = False
    frames: int = 30
    before: Callable[[Site], None] = nothing


def _row(at: str, fault: str, chain: tuple[str, ...], told: str, final: str | None = "r-2", **more: Any) -> Row:
    return Row(at, fault, chain, tuple(told.split()), final, **more)


HASTY = RunSettings(smoke_timeout_s=0.3)
# fmt: off
TABLE = [
    # phase, what happens, phases that become durable, what is told, what answers at the end
    _row("idle", "fail", (), "", None, before=hide_assignment),
    _row("idle", "kill", ("idle", *FINE), "committed", happens=kill),
    _row("idle", "hang", ("idle", *FINE), "committed", happens=cut_link),
    _row("idle", "disk full", ("idle", *FINE), "postponed committed", happens=fill_disk, heals=free_disk),
    _row("idle", "clock ahead", ("idle", *FINE), "refused committed", happens=into_future, heals=right_clock),
    _row("idle", "clock behind", ("idle", *FINE), "committed", happens=into_past),
    _row("downloading", "fail", FINE, "refused committed", happens=tamper, heals=heal),
    _row("downloading", "kill", FINE, "committed", happens=kill),
    _row("downloading", "hang", FINE, "committed", happens=cut_link),
    _row("downloading", "disk full", FINE, "postponed committed", happens=fill_disk, heals=free_disk),
    _row("downloading", "clock ahead", FINE, "refused committed", happens=into_future, heals=right_clock),
    _row("downloading", "clock behind", FINE, "committed", happens=into_past),
    _row("downloading", "withdrawn", ("downloading", "idle"), "", "r-1", happens=withdraw_offline, heals=withdraw),
    _row("verified", "fail", ("downloading", "verified", *FINE), "committed", happens=damage_slot),
    _row("verified", "kill", FINE, "committed", happens=kill),
    _row("verified", "disk full", FINE, "postponed committed", happens=fill_disk, heals=free_disk),
    _row("verified", "clock ahead", FINE, "committed", happens=into_future),
    _row("verified", "clock behind", FINE, "committed", happens=into_past),
    _row("smoke", "fail", UNFIT, "refused", "r-1", golden=OTHER),
    _row("smoke", "kill", FINE, "committed", happens=kill, times=2),
    _row("smoke", "killed thrice", UNFIT, "refused", "r-1", happens=kill, times=3),
    _row("smoke", "hang", UNFIT, "postponed refused", "r-1", sleeps=True, running=HASTY),
    _row("smoke", "disk full", FINE, "postponed committed", happens=fill_disk, heals=free_disk),
    _row("smoke", "clock ahead", FINE, "committed", happens=into_future),
    _row("smoke", "clock behind", FINE, "committed", happens=into_past),
    _row("trial", "fail", BAD, "rolled_back", "r-1", treason="nan"),
    _row("trial", "kill", FINE, "committed", happens=kill, times=2),
    _row("trial", "killed often", BAD, "rolled_back", "r-1", happens=kill, times=4),
    _row("trial", "hang", BAD, "rolled_back", "r-1", treason="hang"),
    _row("trial", "disk full", FINE, "postponed committed", happens=fill_disk, heals=free_disk),
    _row("trial", "clock ahead", FINE, "committed", happens=into_future),
    _row("trial", "clock behind", FINE, "committed", happens=into_past),
    _row("trial", "withdrawn", BAD, "rolled_back", "r-1", happens=withdraw, frames=0),
    _row("committed", "fail", (*FINE, "idle", *FINE), ROTTEN, happens=damage_and_restart),
    _row("committed", "kill", FINE, "committed", happens=kill),
    _row("committed", "disk full", FINE, "committed postponed", happens=fill_disk, heals=free_disk),
    _row("committed", "clock ahead", FINE, "committed", happens=into_future),
    _row("committed", "clock behind", FINE, "committed", happens=into_past),
    _row("rolled_back", "kill", BAD, "rolled_back", "r-1", treason="nan", happens=kill),
    _row("rolled_back", "disk full", BAD, "rolled_back", "r-1", treason="nan", happens=fill_disk, heals=free_disk),
    _row("rolled_back", "clock ahead", BAD, "rolled_back", "r-1", treason="nan", happens=into_future),
    _row("refused", "kill", UNFIT, "refused", "r-1", golden=OTHER, happens=kill),
    _row("refused", "disk full", UNFIT, "refused", "r-1", golden=OTHER, happens=fill_disk, heals=free_disk),
    _row("refused", "clock behind", UNFIT, "refused", "r-1", golden=OTHER, happens=into_past),
]
# fmt: on


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.at}-{row.fault}".replace(" ", "-"))
def test_an_update_ends_as_the_table_says(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each phase and each misfortune: the durable phases, the report and the model that answers at the end."""
    site = Site(tmp_path, row, monkeypatch)
    if row.sleeps:
        site.device.smoke = SLEEPER
        site.device.restart()
    site.publisher.publish("r-2", bias=0.3, golden=row.golden, treason=row.treason)
    site.publisher.assign("r-2")
    row.before(site)
    site.live_through()
    assert tuple(site.phases) == row.chain
    assert tuple(site.told) == row.told
    assert site.device.release_id == row.final
    site.device.restart()
    site.watch_frames()
    assert site.device.release_id == row.final
    assert tuple(site.told) == row.told
