"""How long to wait after a failure, by what failed. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

from curate.errors import AccessDeniedError, BlobRefusedError, ClockSkewError, Error

_MAX_DOUBLINGS = 30  # keeps 2**n a small number however long the link is down
_SPREAD = 0.25


class Failure(Enum):
    """What a failure is about."""

    NETWORK = "network"
    """It passes by itself."""
    CLOCK = "clock"
    """The answer told the right time: the next try is signed with it."""
    AUTH = "auth"
    """Nothing passes until a person has changed something."""
    POISON = "poison"
    """One blob is refused for what it is; others pass."""
    OTHER = "other"
    """Trying again does not cure it, and nobody knows what does."""


@dataclass(frozen=True)
class BackoffPolicy:
    """Exponential waits for what may pass, one slow wait for what will not pass by itself."""

    base_s: float = 0.5
    cap_s: float = 60.0
    refused_s: float = 300.0
    """Longest wait after a failure that trying again does not cure, such as denied access: a person may cure it."""
    poison_s: float = 60.0
    """Longest wait before a refused blob is tried again."""


_KINDS: tuple[tuple[type[Error], Failure], ...] = (
    (ClockSkewError, Failure.CLOCK),
    (AccessDeniedError, Failure.AUTH),
    (BlobRefusedError, Failure.POISON),
)


def classify(error: Error) -> Failure:
    """Return what the failure is about."""
    found = next((failure for kind, failure in _KINDS if isinstance(error, kind)), None)
    return found or (Failure.NETWORK if error.retryable else Failure.OTHER)


def decide_delay_s(policy: BackoffPolicy, *, failures: int, retryable: bool, rng: random.Random) -> float:
    """Return the seconds to wait after `failures` failures in a row.

    Retryable: uniform in [0, min(cap, base * 2**(failures - 1))], the "full jitter" of M. Brooker,
    "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): after an outage a fleet comes back
    spread out instead of all at once. Otherwise nearly `refused_s`.
    """
    if not retryable:
        return policy.refused_s * (1.0 - _SPREAD * rng.random())
    doublings = min(max(failures - 1, 0), _MAX_DOUBLINGS)
    return rng.uniform(0.0, min(policy.cap_s, policy.base_s * 2.0**doublings))


def decide_wait_s(policy: BackoffPolicy, error: Error, *, failures: int, rng: random.Random) -> float:
    """Return the seconds to wait after the `failures`-th failure in a row, by what this one is about.

    A passing fault and a clock that was just put right are tried soon, then ever more rarely; a refused blob within
    `poison_s`; what a person must cure after about `refused_s`.
    """
    failure = classify(error)
    if failure is Failure.POISON:
        return rng.uniform(0.5, 1.0) * policy.poison_s
    retryable = failure in {Failure.NETWORK, Failure.CLOCK}
    return decide_delay_s(policy, failures=failures, retryable=retryable, rng=rng)


def jittered_s(interval_s: float, rng: random.Random) -> float:
    """Return an interval of a poll, spread so that a fleet that started together does not ask together."""
    return interval_s * rng.uniform(1.0 - _SPREAD, 1.0 + _SPREAD)
