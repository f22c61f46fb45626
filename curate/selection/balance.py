"""Who gets how much: proportional shares, device quotas, and the greedy engine that honours them."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from curate.selection.base import Float64Array, IntArray, Utilities

T = TypeVar("T")
# Sums of costs such as 0.1 miss their total in the last bits; a budget is not overspent by that.
ROUNDING = 1e-9


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
    utilities: Utilities,
    devices: Sequence[str],
    budget: float,
    quota: float,
    tie_order: IntArray,
    *,
    costs: Float64Array | None = None,
    per_cost: bool = False,
) -> list[Pick]:
    """Pick candidates by falling utility while the budget lasts, at most `quota` a device while others are left.

    `costs` float64 [C] > 0 counts in the unit of budget and quota (default 1 each: min(budget, C) picks). What no
    longer fits is passed over for what still does. `per_cost` ranks by utility over cost instead.

    Lazy greedy (Minoux 1978): a stale utility is an upper bound, so the top of the heap is the best as soon as its
    refreshed utility stays on top. Exact for submodular coverage; with the quota (a partition matroid) the greedy
    choice keeps at least half of the best coverage. `tie_order` int64 [C] breaks equal utilities, lowest first.
    """
    cost = np.ones(len(devices)) if costs is None else costs
    price = cost if per_cost else np.ones(len(devices))
    heap = [(-float(u / price[i]), int(tie_order[i]), i) for i, u in enumerate(utilities.initial)]
    taken: dict[str, float] = dict.fromkeys(devices, 0.0)
    spent = 0.0
    picks: list[Pick] = []
    blocked: list[tuple[float, int, int]] = []
    for limit in (quota, budget):
        heapq.heapify(heap)
        while heap and spent < budget:
            _, tie, candidate = entry = heapq.heappop(heap)
            if spent + cost[candidate] > budget + ROUNDING:
                continue
            if taken[devices[candidate]] + cost[candidate] > limit + ROUNDING:
                blocked.append(entry)
                continue
            utility = utilities.current(candidate)
            fresh = (-float(utility / price[candidate]), tie, candidate)
            if heap and fresh > heap[0]:
                heapq.heappush(heap, fresh)
                continue
            utilities.add(candidate)
            spent += float(cost[candidate])
            taken[devices[candidate]] += float(cost[candidate])
            over_quota = taken[devices[candidate]] > quota + ROUNDING
            picks.append(Pick(candidate, utility, over_quota))
        heap, blocked = blocked, []
    return picks


def pick_within_budget(
    open_utilities: Callable[[], Utilities],
    devices: Sequence[str],
    budget: float,
    quota: float,
    draw_tie_order: Callable[[], IntArray],
    costs: Float64Array,
    *,
    weigh_cost: bool,
) -> list[Pick]:
    """Pick by utility and by utility over cost, and return the batch that is worth more (ties: by utility).

    Either greedy alone can be arbitrarily bad when costs differ; the better of the two is within (1 - 1/e) / 2 of the
    best batch for submodular utilities (budgeted coverage: Khuller, Moss & Naor 1999; the lazy form with this
    guarantee: CELF, Leskovec et al. 2007, section 3). With equal costs both are one, and only one is run.
    `weigh_cost` is False for utilities that say nothing of worth.
    """
    utilities, tie_order = open_utilities(), draw_tie_order()
    plain = pick_greedily(utilities, devices, budget, quota, tie_order, costs=costs)
    if not weigh_cost or not len(costs) or costs.min() == costs.max():
        return plain
    thrifty = pick_greedily(open_utilities(), devices, budget, quota, tie_order, costs=costs, per_cost=True)
    return max((plain, thrifty), key=lambda picks: sum(pick.utility for pick in picks))


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
