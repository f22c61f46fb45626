from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edge_agent.durable import RESERVE_NAME, make_reserve, persist_bytes, write_durably
from edge_agent.ledger import Ledger
from edge_agent.spool.spool import Spool, SpoolLimits
from edge_agent.switches import Switches
from tests.fakes.captures import DEVICE, broken_laws, make_capture, make_jpeg

SIZE = 100_000


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder whose disk has room for nothing but what the reserve holds."""
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    assert make_reserve(state_dir, SIZE)
    real = os.fsync

    def refuse_while_reserved(descriptor: int) -> None:
        if (state_dir / RESERVE_NAME).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_while_reserved)
    return state_dir


def test_the_reserve_takes_real_room_and_is_made_once(tmp_path: Path) -> None:
    """The blocks are the reserve's, not a hole; another call leaves it, another size makes it anew."""
    assert make_reserve(tmp_path, SIZE)
    status = (tmp_path / RESERVE_NAME).stat()
    assert (status.st_size, status.st_blocks * 512 >= SIZE) == (SIZE, True)
    assert make_reserve(tmp_path, SIZE)
    assert (tmp_path / RESERVE_NAME).stat().st_ino == status.st_ino
    assert make_reserve(tmp_path, 2 * SIZE)
    assert (tmp_path / RESERVE_NAME).stat().st_size == 2 * SIZE
    assert [path.name for path in tmp_path.iterdir()] == [RESERVE_NAME]


def test_no_reserve_is_made_where_it_would_take_the_last_room(tmp_path: Path) -> None:
    """It waits until there is room for itself and for what captures must leave free; 0 means none."""
    assert not make_reserve(tmp_path, SIZE, min_free_bytes=1 << 60)
    assert not make_reserve(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
    assert not make_reserve(tmp_path / "missing", SIZE)


def test_state_is_written_on_a_full_disk_with_the_reserves_room(full_disk: Path) -> None:
    """A state file some folders below, and a switch that a person flips, are saved; then the reserve is gone, and made
    again when there is room."""
    persist_bytes(full_disk / "updater.json", b"1")
    assert (full_disk / "updater.json").read_bytes() == b"1"
    assert not (full_disk / RESERVE_NAME).exists()
    assert make_reserve(full_disk, SIZE) is True


def test_a_switch_is_flipped_on_a_full_disk(full_disk: Path) -> None:
    """Whoever says no is heard, also by the next process."""
    Switches(full_disk / "switches.json").flip(capture_allowed=False)
    assert Switches(full_disk / "switches.json").state().capture_allowed is False


def test_a_capture_never_takes_the_reserve(full_disk: Path) -> None:
    """On a full disk captures are dropped and counted, the reserve stays for the counters, and they are saved."""
    (full_disk / RESERVE_NAME).rename(full_disk / "aside")
    spool = Spool.open(full_disk / "spool", SpoolLimits(min_free_bytes=0), Ledger(), device_id=DEVICE, boot_id="boot1")
    (full_disk / "aside").rename(full_disk / RESERVE_NAME)
    jpeg = make_jpeg(1)
    assert not spool.put(make_capture(1, jpeg), jpeg)
    assert (full_disk / RESERVE_NAME).exists()
    assert spool.snapshot().dropped == {"disk_full": 1}
    spool.persist()
    assert not (full_disk / RESERVE_NAME).exists()
    again = Spool.open(full_disk / "spool", SpoolLimits(min_free_bytes=0), Ledger(), device_id=DEVICE, boot_id="boot2")
    assert again.snapshot() == spool.snapshot()
    assert broken_laws(again.snapshot()) == []


def test_a_full_disk_without_a_reserve_refuses_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a reserve, and for what may not use it, the error is the disk's own, and the old content stays."""
    persist_bytes(tmp_path / "file", b"old")

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    for write in (persist_bytes, write_durably):
        with pytest.raises(OSError, match="No space"):
            write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
