"""What may be kept at all, and what is blacked out of it before anything reaches the disk or a screen.

Whoever forbids wins: the switch on the device, the windows and regions of its own file, and those of the assignment
all have to allow. While the time is not known no window is open; while it is not known what is assigned, nothing is
kept or shown. When the redactor fails, the picture is not kept.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curate.contracts.device_settings import PrivacySpec, RedactionRegion
from curate.errors import ConfigError
from edge_agent.cameras.base import Pixels, UndecodableError, decode_image, encode_jpeg
from edge_agent.errors import RedactionError
from edge_agent.settings import LiveSettings
from edge_agent.switches import Switches
from edge_agent.time_windows import is_open

Redactor: TypeAlias = Callable[[str, Pixels], Pixels]
"""Takes the camera's name and RGB pixels, uint8 [H, W, 3]; returns pixels of the same shape."""

_MAX_MASKS: Final = 32
_RIM_PIXELS: Final = 3
"""A region's edge is drawn this thick, so that no rounding leaves a line of it uncovered."""


class PrivacyGuard:
    """Decides about keeping and redacts pictures, by the settings of the moment. Thread-safe."""

    def __init__(
        self,
        settings: LiveSettings,
        switches: Switches,
        *,
        redactor: Redactor | None = None,
        jpeg_quality: int = 95,
        max_pixels: int = 25_000_000,
        is_time_known: Callable[[], bool] = lambda: True,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`redactor` sees the picture after the regions were blacked out. `wall_clock` is the time windows go by, which
        is not a camera's own: that one may stand in 1970."""
        self._settings = settings
        self._switches = switches
        self._redactor = redactor
        self._jpeg_quality = jpeg_quality
        self._max_pixels = max_pixels
        self._is_time_known = is_time_known
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._masks: dict[tuple[tuple[RedactionRegion, ...], int, int], NDArray[np.bool_]] = {}

    def may_keep(self) -> bool:
        """Say whether a capture may be kept at this moment."""
        if self.waits_for_assignment or self.waits_for_time or not self._switches.state().capture_allowed:
            return False
        privacy = self._settings.current().privacy
        return not _has_windows(privacy) or may_keep(privacy, self._wall_clock())

    @property
    def waits_for_assignment(self) -> bool:
        """Whether nothing is kept or shown because nobody knows what the assignment wants blacked out."""
        return not self._settings.is_complete

    @property
    def waits_for_time(self) -> bool:
        """Whether nothing is kept because there are windows, and nobody knows whether one of them is open."""
        return _has_windows(self._settings.current().privacy) and not self._is_time_known()

    def redact(self, camera_id: str, pixels: Pixels) -> Pixels:
        """Return the picture as it may be kept, RGB uint8 [H, W, 3]; the given one is left as it is.

        Raises:
            RedactionError: the redactor failed, or the regions are not known; the picture must not be kept or shown.
        """
        regions = self._regions(camera_id)
        if regions:
            pixels = pixels.copy()
            pixels[self._mask(regions, *pixels.shape[:2])] = 0
        return pixels if self._redactor is None else _run(self._redactor, camera_id, pixels)

    def redact_encoded(self, camera_id: str, encoded: bytes) -> bytes:
        """Return an encoded picture as it may be shown: PNG or JPEG in, the same or a new JPEG out.

        Raises:
            RedactionError: it could not be redacted.
        """
        if self._redactor is None and not self._regions(camera_id):
            return encoded
        try:
            pixels = decode_image(encoded, max_pixels=self._max_pixels)
            return encode_jpeg(self.redact(camera_id, pixels), quality=self._jpeg_quality)
        except (UndecodableError, OSError) as exc:
            raise RedactionError(f"the picture cannot be redacted: {exc}") from exc

    def _regions(self, camera_id: str) -> tuple[RedactionRegion, ...]:
        if self.waits_for_assignment:  # asked first: whoever completes the settings has changed them before
            raise RedactionError("what is assigned to this device cannot be read, and may want parts blacked out")
        return select_regions(self._settings.current().privacy, camera_id)

    def _mask(self, regions: tuple[RedactionRegion, ...], height: int, width: int) -> NDArray[np.bool_]:
        key = (regions, height, width)
        with self._lock:
            if (mask := self._masks.get(key)) is None:
                if len(self._masks) >= _MAX_MASKS:
                    self._masks.clear()
                mask = self._masks[key] = rasterise(regions, height, width)
            return mask


def _has_windows(privacy: Iterable[PrivacySpec]) -> bool:
    return any(spec.windows for spec in privacy)


def may_keep(privacy: Iterable[PrivacySpec], now: datetime) -> bool:
    """Say whether every one of them is open at this moment; one without windows always is."""
    return all(is_open(spec.windows, now) for spec in privacy)


def select_regions(privacy: Iterable[PrivacySpec], camera_id: str) -> tuple[RedactionRegion, ...]:
    """Return the regions of one camera, from all of them."""
    return tuple(region for spec in privacy for region in spec.regions if region.camera_id in (None, camera_id))


def rasterise(regions: Iterable[RedactionRegion], height: int, width: int) -> NDArray[np.bool_]:
    """Return which pixels the regions touch, bool [height, width]; rather one pixel too many than one too few."""
    from PIL import ImageDraw  # noqa: PLC0415 - with its fonts 2 MiB, and most cameras have no regions

    rims = Image.new("L", (width, height))
    draw = ImageDraw.Draw(rims)
    inside = np.zeros((height, width), np.bool_)
    for region in regions:
        outline = [(x * width, y * height) for x, y in (*region.points, region.points[0])]
        inside |= _surrounded(outline, height, width)
        draw.line(outline, fill=1, width=_RIM_PIXELS, joint="curve")
    return inside | np.asarray(rims, dtype=np.bool_)


def _surrounded(outline: Sequence[tuple[float, float]], height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels whose centre a closed line goes around, bool [height, width].

    By the nonzero winding number rule (ISO 32000-1, section 8.5.3.3.2): Pillow's own polygons are hollow where a line
    that crosses itself goes around twice.
    """
    turns = np.zeros((height, width + 1), np.int8)
    for (x_from, y_from), (x_to, y_to) in pairwise(outline):
        low, high = sorted((y_from, y_to))
        rows = np.arange(math.ceil(low - 0.5), math.ceil(high - 0.5))
        if rows.size:
            crossings = x_from + (rows + 0.5 - y_from) * ((x_to - x_from) / (y_to - y_from))
            columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.intp)
            turns[rows, columns] += 1 if y_to > y_from else -1
    np.cumsum(turns, axis=1, dtype=np.int8, out=turns)
    return np.not_equal(turns[:, :width], 0)


def load_redactor(path: str) -> Redactor:
    """Import `package.module:function`.

    Raises:
        ConfigError: there is no such module or function.
    """
    module_name, _, name = path.partition(":")
    hint = "privacy.redactor is package.module:function, installed beside the agent."
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ConfigError(f"privacy.redactor {path} cannot be imported: {exc}", hint=hint) from exc
    if not callable(found):
        raise ConfigError(f"privacy.redactor {path} is no function", hint=hint)
    redactor: Redactor = found
    return redactor


def _run(redactor: Redactor, camera_id: str, pixels: Pixels) -> Pixels:
    shape = pixels.shape
    try:
        # A copy: one that changes its input and then fails must not reach into the frame.
        redacted = np.asarray(redactor(camera_id, pixels.copy()))
    # Somebody else's code: whatever it raises, the picture is not kept.
    except Exception as exc:
        raise RedactionError(f"the redactor failed: {type(exc).__name__}: {exc}") from exc
    if redacted.shape != shape or redacted.dtype != np.uint8:
        raise RedactionError(f"the redactor returned {redacted.dtype} {redacted.shape}, not uint8 {shape}")
    return redacted
