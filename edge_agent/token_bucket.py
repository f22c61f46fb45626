"""An allowance that fills with time: of bytes for uploads, of verdicts for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Fills continuously and never beyond a burst. The rate is given each time, since settings change while it runs."""

    at_s: float
    """When it was looked at last, monotonic."""
    tokens: float = 0.0
    """What may be taken; below 0 it owes."""

    def filled(self, now_s: float, *, per_s: float | None, burst: float) -> TokenBucket:
        """Return the bucket of now; without a rate it is always full."""
        if per_s is None:
            return TokenBucket(now_s, burst)
        gained = max(0.0, now_s - self.at_s) * per_s
        return TokenBucket(now_s, min(burst, self.tokens + gained))

    def charged(self, tokens: float = 1.0) -> TokenBucket:
        """Return the bucket after so much was taken."""
        return replace(self, tokens=self.tokens - tokens)
