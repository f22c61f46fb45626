"""How much the spool may hold, and when a batch is closed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpoolLimits:
    """Bounds of the spool and of its batches."""

    max_bytes: int = 512 * 1024 * 1024
    """Sum of the capture files."""
    min_free_bytes: int = 32 * 1024 * 1024
    """Room left on the disk for what makes room again (freezing, acknowledging) and for the rest of the agent."""
    max_feedback: int = 10_000
    """Feedback waiting on the device; more is refused."""
    batch_max_captures: int = 32
    batch_max_feedback: int = 256
    batch_max_age_s: float = 10.0
    """A batch is frozen when something has waited this long, full or not."""
    batch_oldest_share: float = 0.25
    """Of a batch, for what has waited longest; the rest is for the most valuable."""
    max_batches: int = 16
    """Frozen batches without an acknowledgement; what is frozen cannot be evicted."""
