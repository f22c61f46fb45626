"""Pictures that nobody honest would send: refused in words, in bounded memory, and the camera goes on (P2)."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from edge_agent.cameras.base import (
    Frame,
    Skipped,
    SkipReason,
    UndecodableError,
    decode_image,
)
from edge_agent.cameras.folder import FollowedFolder, LoopedFolder
from edge_agent.config.cameras import FolderCameraConfig
from tests.fakes.hostile_images import damaged, encoded, monsters
from tests.fakes.memory import MIB, peak_memory
from tests.fakes.nightly import Tell, cases

# Pillow warns about damage that it can live with; nobody reads that on a camera.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

MAX_PIXELS = 1_000_000
DAMAGED = cases(thin=2000, full=100_000)


def decode_all(pictures: Iterable[tuple[str, bytes]]) -> Counter[str]:
    """Decode each; nothing but the one error may come out."""
    outcomes: Counter[str] = Counter()
    for name, raw in pictures:
        try:
            pixels = decode_image(raw, max_pixels=MAX_PIXELS)
        except UndecodableError as exc:
            outcomes["refused" if len(str(exc)) < 600 else "refused by repeating it"] += 1
        except BaseException as exc:
            exc.add_note(name)
            raise
        else:
            assert pixels.dtype == np.uint8, name
            assert pixels.ndim == 3, name
            assert pixels.shape[2] == 3, name
            assert pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS, name
            outcomes["decoded"] += 1
    return outcomes


def test_no_picture_brings_the_decoder_down(tell: Tell) -> None:
    """Bombs, polyglots and thousands of damaged pictures become pixels within the limit, or are refused as undecodable;
    at its peak that takes little memory."""
    made, hurt = list(monsters()), list(damaged(random.Random(5), DAMAGED))
    with peak_memory() as peak:
        by_hand = decode_all(made)
        by_chance = decode_all(hurt)
    tell(f"pictures: by hand {dict(by_hand)}, damaged {dict(by_chance)}, {peak.grown_bytes / MIB:.0f} MiB at the peak")
    assert set(by_hand) == set(by_chance) == {"refused", "decoded"}
    assert by_hand["refused"] >= 20
    assert by_chance["refused"] > DAMAGED / 3
    assert peak.grown_bytes < 64 * MIB


def test_a_followed_folder_of_monsters_skips_them_and_goes_on(tmp_path: Path) -> None:
    """Every hostile file is one skipped frame; good pictures between them arrive, in order."""
    camera = FollowedFolder(FolderCameraConfig(camera_id="front", path=tmp_path, max_image_pixels=MAX_PIXELS))
    good, number, frames, skipped = encoded("PNG"), 0, 0, 0
    for name, raw in [("good", good), *monsters(), *damaged(random.Random(6), 50)]:
        for content in (raw, good):
            number += 1
            write(tmp_path, f"{number}.png", content)
            event = next_event(camera)
            frames += isinstance(event, Frame)
            skipped += isinstance(event, Skipped)
            assert event is not None, name
            if content is good:
                assert isinstance(event, Frame), name
                assert event.index == number, name
            elif isinstance(event, Skipped):
                assert (event.reason, event.count) == (SkipReason.UNDECODABLE, 1), name
    assert frames + skipped == number
    assert skipped > 30


def write(folder: Path, name: str, content: bytes) -> None:
    """Rename a picture into place, as a camera does."""
    (folder / "writing").write_bytes(content)
    (folder / "writing").replace(folder / name)


def next_event(camera: FollowedFolder) -> Frame | Skipped | None:
    """The folder may have to be listed once more: its time has a grain."""
    return next((event for _ in range(3) if (event := camera.poll()) is not None), None)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop", "huge", "names"])
def test_what_is_no_picture_file_neither_stops_nor_fills_the_camera(tmp_path: Path, kind: str) -> None:
    """A folder, a pipe nobody writes to, a device, a link to itself, a file of gigabytes, names beyond reason: skipped
    or unseen, at once, in little memory; the next picture arrives."""
    camera = FollowedFolder(FolderCameraConfig(camera_id="front", path=tmp_path, max_image_pixels=MAX_PIXELS))
    write(tmp_path, "1.png", encoded("PNG"))
    assert isinstance(camera.poll(), Frame)
    place(tmp_path, kind)
    with peak_memory() as peak:
        for _ in range(10):
            assert not isinstance(camera.poll(), Frame)
    write(tmp_path, "9.png", encoded("PNG"))
    events = [camera.poll() for _ in range(10)]
    assert [event.index for event in events if isinstance(event, Frame)] == [9]
    assert peak.grown_bytes < 64 * MIB


def place(folder: Path, kind: str) -> None:
    """Put the thing there."""
    path = folder / "2.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(50 * 1024**3)
    else:
        for name in ("\u0663.png", "-3.png", "3" * 19 + ".png", "0x3.png", "3.png.exe", "1e3.png", " 3.png", "3.gif"):
            (folder / name).write_bytes(encoded("PNG"))


def test_a_looped_folder_of_monsters_plays_what_can_be_played(tmp_path: Path) -> None:
    """Played over and over, each hostile file is one skipped frame a turn, and the good one is shown."""
    for number, (_, raw) in enumerate(monsters()):
        (tmp_path / f"{number:03d}.png").write_bytes(raw)
    (tmp_path / "999.png").write_bytes(encoded("PNG"))
    os.mkfifo(tmp_path / "500.png")
    now_s = 0.0
    config = FolderCameraConfig(camera_id="front", path=tmp_path, fps=10, max_image_pixels=MAX_PIXELS)
    camera = LoopedFolder(config, monotonic=lambda: now_s)
    events = []
    for _ in range(2 * len(list(tmp_path.iterdir()))):
        now_s += 0.1
        events.append(camera.poll())
    assert sum(isinstance(event, Frame) for event in events) >= 2
    assert sum(isinstance(event, Skipped) for event in events) > 30
