"""How many threads a model is worth on this device: a few answers with each count, and the smallest that is good.

A thread costs the whole device; a tenth of a frame's time is not worth one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Final

TUNING_S: Final = 2.0
_GOOD_ENOUGH: Final = 1.1
"""A count within this factor of the fastest, with fewer threads, is taken."""
_NOBODY_NOTICES_S: Final = 0.0005
_MIN_ANSWERS: Final = 3
_MAX_ANSWERS: Final = 50


def thread_counts(cpus: int) -> tuple[int, ...]:
    """Return the counts worth trying on so many processors: powers of two up to all of them, at most 16."""
    largest = max(1, min(cpus, 16))
    return tuple(sorted({1 << power for power in range(largest.bit_length()) if 1 << power <= largest} | {largest}))


def decide_threads(median_s: Mapping[int, float]) -> int:
    """Return the smallest count whose median answer is about as fast as the fastest.

    Args:
        median_s: thread count to median seconds an answer; at least one.
    """
    fastest_s = min(median_s.values())
    bound_s = max(_GOOD_ENOUGH * fastest_s, fastest_s + _NOBODY_NOTICES_S)
    return min(count for count, seconds in median_s.items() if seconds <= bound_s)


def measure_median_s(
    answer: Callable[[], object], *, budget_s: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the median seconds of an answer, within about `budget_s` and never fewer than 3 answers."""
    answer()
    ends_s = clock() + budget_s
    taken: list[float] = []
    while len(taken) < _MIN_ANSWERS or (clock() < ends_s and len(taken) < _MAX_ANSWERS):
        start_s = clock()
        answer()
        taken.append(clock() - start_s)
    return median(taken)


def tune_threads(
    load: Callable[[int], Callable[[], object]], *, cpus: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[int, float]:
    """Return how many threads to use, and the median seconds of an answer with them; takes about `TUNING_S`.

    Args:
        load: gives, for a thread count, what answers one frame.
        cpus: processors this process may use.
        clock: monotonic seconds.
    """
    counts = thread_counts(cpus)
    ends_s = clock() + TUNING_S
    median_s: dict[int, float] = {}
    for left, count in zip(range(len(counts), 0, -1), counts, strict=True):
        if median_s and clock() >= ends_s:
            break
        answer = load(count)
        median_s[count] = measure_median_s(answer, budget_s=max(0.0, ends_s - clock()) / left, clock=clock)
    threads = decide_threads(median_s)
    return threads, median_s[threads]
