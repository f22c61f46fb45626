"""How long to wait after a failure. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

_MAX_DOUBLINGS = 30  # keeps 2**n a small number however long the link is down


@dataclass(frozen=True)
class BackoffPolicy:
    """Exponential waits for what may pass, one slow wait for what will not pass by itself."""

    base_s: float = 0.5
    cap_s: float = 60.0
    refused_s: float = 300.0
    """Wait after a failure that trying again does not cure, such as denied access: a person may cure it."""


def decide_delay_s(policy: BackoffPolicy, *, failures: int, retryable: bool, rng: random.Random) -> float:
    """Return the seconds to wait after `failures` failures in a row.

    Retryable: uniform in [0, min(cap, base * 2**(failures - 1))], the "full jitter" of M. Brooker,
    "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): after an outage a fleet comes back
    spread out instead of all at once. Otherwise `refused_s`.
    """
    if not retryable:
        return policy.refused_s
    doublings = min(max(failures - 1, 0), _MAX_DOUBLINGS)
    return rng.uniform(0.0, min(policy.cap_s, policy.base_s * 2.0**doublings))
