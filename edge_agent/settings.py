"""What the agent follows now: its own file, with what the newest accepted assignment put in its place.

Parts of the agent ask for `current()` at each turn instead of being told, so that a change needs no restart.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from curate.contracts.device_settings import (
    BandwidthSpec,
    DeviceSettings,
    PrivacySpec,
    RetentionSpec,
    SceneGateSpec,
)


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """Every section, filled in."""

    scene_gate: SceneGateSpec
    privacy: tuple[PrivacySpec, ...]
    """The device's own, and the assignment's when it has one: each of them has to allow a capture, and each blacks out
    its own regions, so an assignment can only forbid more."""
    bandwidth: BandwidthSpec
    retention: RetentionSpec

    def overlaid(self, change: DeviceSettings) -> EffectiveSettings:
        """Return these settings with the sections of `change` in their place, and its privacy beside ours."""
        return EffectiveSettings(
            scene_gate=change.scene_gate or self.scene_gate,
            privacy=self.privacy if change.privacy is None else (*self.privacy, change.privacy),
            bandwidth=change.bandwidth or self.bandwidth,
            retention=change.retention or self.retention,
        )


class LiveSettings:
    """Thread-safe holder of the settings followed now."""

    def __init__(self, own: EffectiveSettings, *, is_complete: bool = True) -> None:
        """`own` is what the device's file says. Not `is_complete`: what an assignment adds to it has yet to be told."""
        self._lock = threading.Lock()
        self._own = own
        self._current = own
        self._is_complete = is_complete

    @property
    def is_complete(self) -> bool:
        """Whether it is known what the assignment says, if there is one; what it forbids is not known before."""
        with self._lock:
            return self._is_complete

    def current(self) -> EffectiveSettings:
        """Return the settings to follow from now on."""
        with self._lock:
            return self._current

    def follow(self, change: DeviceSettings) -> None:
        """Follow what an assignment says; each one starts from the device's own file."""
        with self._lock:
            self._current = self._own.overlaid(change)
            self._is_complete = True
