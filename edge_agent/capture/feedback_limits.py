"""How many verdicts a user and a device may give: what comes in a flood is not obeyed.

Within the limits a verdict is taken. Beyond them it is refused with the time to wait, and a client that waits loses
nothing. A user whose bucket stays empty for long does not wait: until it has filled up by half again, what still comes
within the limits is stored as quarantined, up to a cap, and captures no frame.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from curate.errors import AgentError

MAX_USERS: Final = 1024
"""Users remembered; who spoke longest ago is forgotten first. The device's own bucket bounds them all."""
NOBODY: Final = ""
"""Verdicts without a user share one bucket."""


class FeedbackRefusedError(AgentError):
    """Too many verdicts; the same one may be sent again later."""

    retryable = True

    def __init__(self, scope: str, retry_after_s: float) -> None:
        """`scope` says whose limit it is: `user`, `device`, or `quarantine` for that of quarantined verdicts."""
        super().__init__(
            f"too many verdicts ({scope} limit)",
            hint=f"send it again in {retry_after_s:.0f} s with the same feedback_id",
        )
        self.scope = scope
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class FeedbackLimitsSpec:
    """The limits; a burst is what may come at once after a rest."""

    user_per_minute: float = 60.0
    user_burst: int = 60
    device_per_minute: float = 300.0
    device_burst: int = 300
    hold_after_s: float = 300.0
    """A user who keeps the bucket below its half for so long, after a refusal, is put on hold."""
    max_quarantined: int = 500
    """Quarantined verdicts this process stores."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: one token a verdict. Pure; times are monotonic seconds."""

    per_minute: float
    burst: int
    tokens: float
    at_s: float

    def filled(self, now_s: float) -> Bucket:
        """Return the bucket of that moment."""
        gained = max(0.0, now_s - self.at_s) * self.per_minute / 60.0
        return replace(self, tokens=min(float(self.burst), self.tokens + gained), at_s=now_s)

    def taken(self) -> Bucket:
        """Return the bucket with one token less."""
        return replace(self, tokens=self.tokens - 1.0)

    @property
    def wait_s(self) -> float:
        """Time until it holds a token; 0 when it does."""
        return max(0.0, 1.0 - self.tokens) * 60.0 / self.per_minute


@dataclass(frozen=True, slots=True)
class _User:
    bucket: Bucket
    exhausted_since_s: float | None = None
    """When a verdict was refused for the first time since the bucket was last half full."""


class FeedbackLimits:
    """The buckets of one device. Thread-safe."""

    def __init__(self, spec: FeedbackLimitsSpec, monotonic: Callable[[], float]) -> None:
        """Begin with full buckets."""
        self._spec = spec
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._users: OrderedDict[str, _User] = OrderedDict()
        self._device = Bucket(spec.device_per_minute, spec.device_burst, spec.device_burst, monotonic())
        self._quarantined = 0

    def admit(self, user: str | None) -> bool:
        """Take one verdict of a user; True when it is to be quarantined.

        Raises:
            FeedbackRefusedError: there are too many; nothing may be stored.
        """
        name = user or NOBODY
        with self._lock:
            now_s = self._monotonic()
            known = self._filled(name, now_s)
            device = self._device.filled(now_s)
            if known.bucket.wait_s > 0.0:
                since_s = now_s if known.exhausted_since_s is None else known.exhausted_since_s
                self._store(name, replace(known, exhausted_since_s=since_s))
                raise FeedbackRefusedError("user", known.bucket.wait_s)
            if device.wait_s > 0.0:
                raise FeedbackRefusedError("device", device.wait_s)
            on_hold = known.exhausted_since_s is not None and now_s - known.exhausted_since_s >= self._spec.hold_after_s
            # Also when it is refused below: whoever goes on at the cap must not find a full bucket again.
            self._store(name, replace(known, bucket=known.bucket.taken()))
            if on_hold and self._quarantined >= self._spec.max_quarantined:
                raise FeedbackRefusedError("quarantine", self._spec.hold_after_s)
            self._quarantined += on_hold
            self._device = device.taken()
            return on_hold

    def _filled(self, name: str, now_s: float) -> _User:
        spec = self._spec
        known = self._users.get(name) or _User(Bucket(spec.user_per_minute, spec.user_burst, spec.user_burst, now_s))
        bucket = known.bucket.filled(now_s)
        rested = bucket.tokens >= spec.user_burst / 2
        return _User(bucket, None if rested else known.exhausted_since_s)

    def _store(self, name: str, user: _User) -> None:
        self._users[name] = user
        self._users.move_to_end(name)
        while len(self._users) > MAX_USERS:
            self._users.popitem(last=False)
