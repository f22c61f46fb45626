"""Privacy: whoever forbids wins, regions are black before anything is kept, and a failed redactor keeps nothing."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.contracts.device_settings import (
    BandwidthSpec,
    DeviceSettings,
    PrivacySpec,
    RedactionRegion,
    RetentionSpec,
    SceneGateSpec,
    TimeWindow,
)
from curate.errors import ConfigError
from edge_agent.cameras.base import Pixels, decode_image, encode_jpeg
from edge_agent.clock import Clock
from edge_agent.errors import RedactionError
from edge_agent.privacy import PrivacyGuard, Redactor, load_redactor, rasterise
from edge_agent.settings import EffectiveSettings, LiveSettings
from edge_agent.switches import Switches

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
MORNING = TimeWindow(start="06:00", end="12:30")
AFTERNOON = TimeWindow(start="11:30", end="20:00")
EVENING = TimeWindow(start="18:00", end="20:00")
CORNER = RedactionRegion(points=((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.5)))


def live(own: PrivacySpec, assigned: PrivacySpec | None = None) -> LiveSettings:
    """Return what a device follows: its own file's privacy and perhaps an assignment's."""
    settings = LiveSettings(EffectiveSettings(SceneGateSpec(), (own,), BandwidthSpec(), RetentionSpec()))
    if assigned is not None:
        settings.follow(DeviceSettings(privacy=assigned))
    return settings


class Noon:
    """A clock that stands, at noon to begin with."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def guard(
    folder: Path, own: PrivacySpec, assigned: PrivacySpec | None = None, redactor: Redactor | None = None
) -> PrivacyGuard:
    """Return a guard at noon whose switches stand as they come."""
    return PrivacyGuard(live(own, assigned), Switches(folder / "switches.json"), redactor=redactor, wall_clock=Noon())


def white(height: int = 20, width: int = 40) -> Pixels:
    return np.full((height, width, 3), 255, np.uint8)


@pytest.mark.parametrize(
    ("own", "assigned", "allowed"),
    [
        ((), None, True),
        ((MORNING,), None, True),
        ((EVENING,), None, False),
        ((MORNING,), (AFTERNOON,), True),
        ((MORNING,), (EVENING,), False),
        ((EVENING,), (AFTERNOON,), False),
        ((EVENING,), (), False),
        ((), (EVENING,), False),
        ((EVENING, MORNING), (), True),
    ],
)
def test_both_schedules_have_to_be_open(
    tmp_path: Path, own: tuple[TimeWindow, ...], assigned: tuple[TimeWindow, ...] | None, allowed: bool
) -> None:
    """A capture is allowed only when the device's own windows and those of the assignment are open."""
    change = None if assigned is None else PrivacySpec(windows=assigned)
    assert guard(tmp_path, PrivacySpec(windows=own), change).may_keep() is allowed


def test_an_assignment_only_adds(tmp_path: Path) -> None:
    """Each assignment starts from the device's own file: what one forbade the next may allow, the file's stays."""
    settings = live(PrivacySpec(windows=(MORNING,)), PrivacySpec(windows=(EVENING,)))
    clock = Noon()
    guarded = PrivacyGuard(settings, Switches(tmp_path / "switches.json"), wall_clock=clock)
    assert not guarded.may_keep()
    settings.follow(DeviceSettings())
    assert guarded.may_keep()
    clock.now = NOON.replace(hour=19)
    assert not guarded.may_keep()


def test_without_the_time_no_window_is_open(tmp_path: Path) -> None:
    """A camera that does not know the time keeps nothing where hours are set, by whomever, and says why; where none
    are set it keeps all."""
    known, clock = [False], Noon()
    own, both = live(PrivacySpec()), live(PrivacySpec(), PrivacySpec(windows=(MORNING,)))
    free, bound = (
        PrivacyGuard(settings, Switches(tmp_path / "switches.json"), is_time_known=lambda: known[0], wall_clock=clock)
        for settings in (own, both)
    )
    assert (free.may_keep(), free.waits_for_time) == (True, False)
    assert (bound.may_keep(), bound.waits_for_time) == (False, True)
    known[0] = True
    assert (bound.may_keep(), bound.waits_for_time) == (True, False)
    clock.now = NOON.replace(hour=19)
    assert not bound.may_keep()


@pytest.mark.parametrize(("window", "allowed"), [(MORNING, True), (EVENING, False)])
def test_windows_go_by_the_time_that_the_bucket_told(tmp_path: Path, window: TimeWindow, allowed: bool) -> None:
    """Where the machine's own clock stands in 1970, a window is open when the bucket says so."""
    clock = Clock(system=lambda: 100.0, monotonic=lambda: 50.0, is_kept=lambda: False)
    guarded = PrivacyGuard(
        live(PrivacySpec(windows=(window,))),
        Switches(tmp_path / "switches.json"),
        is_time_known=clock.is_known,
        wall_clock=clock.now,
    )
    assert not guarded.may_keep()
    clock.learn(NOON, sent_s=50.0, received_s=50.0)
    assert guarded.may_keep() is allowed


def test_nothing_is_kept_or_shown_before_it_is_known_what_is_assigned(tmp_path: Path) -> None:
    """While nobody knows whether an assignment names regions, no capture is allowed and no picture is handed out; from
    the moment it is known both follow it."""
    settings = LiveSettings(live(PrivacySpec()).current(), is_complete=False)
    guarded = PrivacyGuard(settings, Switches(tmp_path / "switches.json"))
    assert (guarded.may_keep(), guarded.waits_for_assignment) == (False, True)
    with pytest.raises(RedactionError, match="assigned"):
        guarded.redact("front", white())
    with pytest.raises(RedactionError, match="assigned"):
        guarded.redact_encoded("front", encode_jpeg(white(), quality=95))
    settings.follow(DeviceSettings(privacy=PrivacySpec(regions=(CORNER,))))
    assert (guarded.may_keep(), guarded.waits_for_assignment) == (True, False)
    assert guarded.redact("front", white())[0, 0].tolist() == [0, 0, 0]


def test_the_switch_stops_everything(tmp_path: Path) -> None:
    """With the switch off nothing may be kept, at once and after a restart; an unreadable switch counts as off."""
    switches = Switches(tmp_path / "switches.json")
    guarded = PrivacyGuard(live(PrivacySpec()), switches, wall_clock=Noon())
    assert guarded.may_keep()
    switches.flip(capture_allowed=False)
    assert not guarded.may_keep()
    assert not guard(tmp_path, PrivacySpec()).may_keep()
    (tmp_path / "switches.json").write_bytes(b"{")
    assert not guard(tmp_path, PrivacySpec()).may_keep()


def test_regions_add_up_and_know_their_camera(tmp_path: Path) -> None:
    """The device's and the assignment's regions are black, other cameras' are not, and the frame itself stays."""
    other = RedactionRegion(camera_id="back", points=((0.5, 0.5), (1.0, 0.5), (1.0, 1.0), (0.5, 1.0)))
    guarded = guard(tmp_path, PrivacySpec(regions=(CORNER,)), PrivacySpec(regions=(other,)))
    frame = white()
    front, back = guarded.redact("front", frame), guarded.redact("back", frame)
    assert frame.min() == 255
    assert (front[:10, :20].max(), front[13:, :].min(), front[:, 23:].min()) == (0, 255, 255)
    assert (back[:10, :20].max(), back[10:, 20:].max(), back[13:, :17].min()) == (0, 0, 255)
    assert guarded.redact("front", white(11, 7))[:5, :3].max() == 0


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    corners=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=3),
)
def test_no_pixel_inside_is_left(height: int, width: int, corners: list[tuple[float, float]]) -> None:
    """Every pixel whose centre lies in a triangle is covered, however small or thin it is."""
    mask = rasterise([RedactionRegion(points=tuple(corners))], height, width)
    ys, xs = np.mgrid[:height, :width] + 0.5
    points = [(x * width, y * height) for x, y in corners]

    def side(a: tuple[float, float], b: tuple[float, float]) -> np.ndarray:
        return (b[0] - a[0]) * (ys - a[1]) - (b[1] - a[1]) * (xs - a[0])

    sides = np.stack([side(points[n], points[(n + 1) % 3]) for n in range(3)])
    inside = (sides > 1e-6).all(axis=0) | (sides < -1e-6).all(axis=0)
    assert mask.shape == (height, width)
    assert not (inside & ~mask).any()


def test_a_line_that_crosses_itself_leaves_no_hole() -> None:
    """A star drawn in one line is black all over, its middle too, which the line goes around twice."""
    tips = [(0.5 + 0.4 * math.sin(0.8 * math.pi * n), 0.5 - 0.4 * math.cos(0.8 * math.pi * n)) for n in range(5)]
    mask = rasterise([RedactionRegion(points=tuple(tips))], 200, 200)
    assert mask[83:117, 83:117].all()
    assert not mask[:15].any()
    assert not mask[50:60, :40].any()


def test_the_redactor_comes_after_the_regions(tmp_path: Path) -> None:
    """A redactor sees what the regions left, gets the camera's name, and its picture is what is kept."""
    seen: list[tuple[str, int]] = []

    def halve(camera_id: str, pixels: Pixels) -> Pixels:
        seen.append((camera_id, int(pixels[0, 0, 0])))
        return pixels // 2

    kept = guard(tmp_path, PrivacySpec(regions=(CORNER,)), redactor=halve).redact("front", white())
    assert (seen, int(kept[0, 0, 0]), int(kept[-1, -1, 0])) == ([("front", 0)], 0, 127)


@pytest.mark.parametrize("result", [ValueError("no face found"), "text", np.zeros((2, 2, 3), np.uint8), None])
def test_a_redactor_that_fails_keeps_nothing(tmp_path: Path, result: object) -> None:
    """One that raises, or returns what is no picture of that size, is a RedactionError."""

    def broken(camera_id: str, pixels: Pixels) -> Pixels:
        pixels[:] = 7
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[return-value]

    frame = white()
    guarded = guard(tmp_path, PrivacySpec(), redactor=broken)
    with pytest.raises(RedactionError):
        guarded.redact("front", frame)
    with pytest.raises(RedactionError):
        guarded.redact_encoded("front", encode_jpeg(frame, quality=90))
    assert frame.min() == 255


def test_what_is_shown_is_redacted_too(tmp_path: Path) -> None:
    """An encoded frame is shown with its regions black; without any it is passed on byte for byte."""
    encoded = encode_jpeg(white(), quality=95)
    shown = guard(tmp_path, PrivacySpec(regions=(CORNER,))).redact_encoded("front", encoded)
    assert decode_image(shown, max_pixels=10_000)[:8, :16].max() < 20
    assert guard(tmp_path, PrivacySpec()).redact_encoded("front", encoded) is encoded
    with pytest.raises(RedactionError):
        guard(tmp_path, PrivacySpec(regions=(CORNER,))).redact_encoded("front", encoded[:50])


def test_a_redactor_is_found_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """`package.module:function` is imported; what is missing or no function is a ConfigError with a hint."""
    module = ModuleType("site_redactor")
    module.blur = lambda camera_id, pixels: pixels  # type: ignore[attr-defined]
    module.level = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "site_redactor", module)
    assert load_redactor("site_redactor:blur")("front", white()).shape == (20, 40, 3)
    for path in ("site_redactor:level", "site_redactor:absent", "no_such_module:blur"):
        with pytest.raises(ConfigError) as caught:
            load_redactor(path)
        assert caught.value.hint
