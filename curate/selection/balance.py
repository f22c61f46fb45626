"""Who gets how much: proportional shares, device quotas, and the greedy engine that honours them."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from curate.selection.base import IntArray, Utilities

T = TypeVar("T")


@dataclass(frozen=True)
class Pick:
    """One greedy choice: the candidate, its utility when it was taken, and whether it broke its device's quota."""

    candidate: int
    utility: float
    over_quota: bool


def allocate(budget: int, weights: Mapping[str, float], capacities: Mapping[str, int]) -> dict[str, int]:
    """Split the budget over strata in proportion to their weights, within their capacities.

    Every stratum with capacity gets at least one while the budget lasts, because a stratum never asked can never be
    estimated; the rest goes one by one to the stratum furthest below its share (ties by name). The sum is
    min(budget, total capacity). A stratum with capacity needs a positive weight.
    """
    open_strata = sorted(name for name, capacity in capacities.items() if capacity > 0)
    shares = dict.fromkeys(sorted(capacities), 0)
    for _ in range(min(budget, sum(capacities[name] for name in open_strata))):
        free = [name for name in open_strata if shares[name] < capacities[name]]
        neediest = min(free, key=lambda name: (shares[name] > 0, (shares[name] + 0.5) / weights[name], name))
        shares[neediest] += 1
    return shares


def pick_greedily(
    utilities: Utilities, devices: Sequence[str], budget: int, quota: int, tie_order: IntArray
) -> list[Pick]:
    """Pick min(budget, C) candidates by falling utility, at most `quota` a device while others are left.

    Lazy greedy (Minoux 1978): a stale utility is an upper bound, so the top of the heap is the best as soon as its
    refreshed utility stays on top. Exact for submodular coverage; with the quota (a partition matroid) the greedy
    choice keeps at least half of the best coverage. `tie_order` int64 [C] breaks equal utilities, lowest first.
    """
    heap = [(-float(u), int(tie_order[i]), i) for i, u in enumerate(utilities.initial)]
    taken: Counter[str] = Counter()
    picks: list[Pick] = []
    blocked: list[tuple[float, int, int]] = []
    for limit in (quota, budget):
        heapq.heapify(heap)
        while heap and len(picks) < budget:
            _, tie, candidate = entry = heapq.heappop(heap)
            if taken[devices[candidate]] >= limit:
                blocked.append(entry)
                continue
            fresh = (-utilities.current(candidate), tie, candidate)
            if heap and fresh > heap[0]:
                heapq.heappush(heap, fresh)
                continue
            utilities.add(candidate)
            taken[devices[candidate]] += 1
            picks.append(Pick(candidate, -fresh[0], over_quota=taken[devices[candidate]] > quota))
        heap, blocked = blocked, []
    return picks


def trim_evenly(scores: Sequence[float], devices: Sequence[str], limit: int) -> IntArray:
    """Return the rows of at most `limit` candidates, ascending: each device's best first, devices in turn.

    Taking the best overall instead would let one noisy device crowd the others out before any quota is looked at.
    """
    turn: Counter[str] = Counter()
    order: list[tuple[int, float, int]] = []
    for row in np.argsort(-np.asarray(scores), kind="stable").tolist():
        order.append((turn[devices[row]], -float(scores[row]), row))
        turn[devices[row]] += 1
    return np.asarray(sorted(row for *_, row in sorted(order)[:limit]), dtype=np.int64)


def interleave(left: Sequence[T], right: Sequence[T]) -> list[T]:
    """Merge two ranked lists evenly, so that any first part holds both in proportion."""
    places = [((i + 0.5) / len(part), n, item) for n, part in enumerate((left, right)) for i, item in enumerate(part)]
    return [item for *_, item in sorted(places, key=lambda place: place[:2])]
