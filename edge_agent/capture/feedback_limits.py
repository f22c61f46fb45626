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
from edge_agent.config.sections import FeedbackConfig
from edge_agent.token_bucket import TokenBucket

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
class _User:
    bucket: TokenBucket
    """One token a verdict."""
    exhausted_since_s: float | None = None
    """When a verdict was refused for the first time since the bucket was last half full."""


class FeedbackLimits:
    """The buckets of one device. Thread-safe."""

    def __init__(self, limits: FeedbackConfig, monotonic: Callable[[], float]) -> None:
        """Begin with full buckets."""
        self._limits = limits
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._users: OrderedDict[str, _User] = OrderedDict()
        self._device = TokenBucket(monotonic(), limits.device_burst)
        self._quarantined = 0

    def admit(self, user: str | None) -> bool:
        """Take one verdict of a user; True when it is to be quarantined.

        Raises:
            FeedbackRefusedError: there are too many; nothing may be stored.
        """
        name = user or NOBODY
        with self._lock:
            now_s = self._monotonic()
            limits = self._limits
            known = self._filled(name, now_s)
            device = self._device.filled(now_s, per_s=limits.device_per_minute / 60.0, burst=limits.device_burst)
            if (wait_s := _wait_s(known.bucket, limits.user_per_minute)) > 0.0:
                since_s = now_s if known.exhausted_since_s is None else known.exhausted_since_s
                self._store(name, replace(known, exhausted_since_s=since_s))
                raise FeedbackRefusedError("user", wait_s)
            if (wait_s := _wait_s(device, limits.device_per_minute)) > 0.0:
                raise FeedbackRefusedError("device", wait_s)
            on_hold = known.exhausted_since_s is not None and now_s - known.exhausted_since_s >= limits.hold_after_s
            # Also when it is refused below: whoever goes on at the cap must not find a full bucket again.
            self._store(name, replace(known, bucket=known.bucket.charged()))
            if on_hold and self._quarantined >= limits.max_quarantined:
                raise FeedbackRefusedError("quarantine", limits.hold_after_s)
            self._quarantined += on_hold
            self._device = device.charged()
            return on_hold

    def _filled(self, name: str, now_s: float) -> _User:
        limits = self._limits
        known = self._users.get(name) or _User(TokenBucket(now_s, limits.user_burst))
        bucket = known.bucket.filled(now_s, per_s=limits.user_per_minute / 60.0, burst=limits.user_burst)
        rested = bucket.tokens >= limits.user_burst / 2
        return _User(bucket, None if rested else known.exhausted_since_s)

    def _store(self, name: str, user: _User) -> None:
        self._users[name] = user
        self._users.move_to_end(name)
        while len(self._users) > MAX_USERS:
            self._users.popitem(last=False)


def _wait_s(bucket: TokenBucket, per_minute: float) -> float:
    """Return the time until it holds a token; 0 when it does."""
    return max(0.0, 1.0 - bucket.tokens) * 60.0 / per_minute
