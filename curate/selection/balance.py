"""Who gets how much: proportional shares, quotas, and the greedy engine that honours them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from curate.selection.base import Float64Array, IntArray
from curate.selection.query import Utilities

T = TypeVar("T")
# Sums of costs such as 0.1 miss their total in the last bits; a budget is not overspent by that.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Pick:
    """One greedy choice: the candidate, its utility when it was taken, and the quotas that gave way for it."""

    candidate: int
    utility: float
    over_quota: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Quota:
    """At most `limit` of the budget for any one part; `part` [C] says which part (device, class, hour) each is of.

    What is of part None is free. A `firm` quota never gives way, even if the budget is not spent.
    """

    name: str
    part: Sequence[Hashable | None]
    limit: float
    firm: bool = False


def allocate(budget: int, weights: Mapping[str, float], capacities: Mapping[str, int]) -> dict[str, int]:
    """Split the budget over strata in proportion to their weights, within their capacities.

    Every stratum with capacity gets at least one while the budget lasts, because a stratum never asked can never be
    estimated; the rest goes one by one to the stratum furthest below its share (ties by name). The sum is
    min(budget, total capacity). A stratum with capacity needs a positive weight.
    """
    open_strata = sorted(name for name, capacity in capacities.items() if capacity > 0)
    shares = dict.fromkeys(sorted(capacities), 0)
    queue = [(False, 0.5 / weights[name], name) for name in open_strata]
    heapq.heapify(queue)
    for _ in range(min(budget, sum(capacities[name] for name in open_strata))):
        *_, neediest = heapq.heappop(queue)
        shares[neediest] += 1
        if shares[neediest] < capacities[neediest]:
            heapq.heappush(queue, (True, (shares[neediest] + 0.5) / weights[neediest], neediest))
    return shares


def pick_greedily(
    utilities: Utilities,
    quotas: Sequence[Quota],
    budget: float,
    tie_order: IntArray,
    *,
    costs: Float64Array | None = None,
    per_cost: bool = False,
) -> list[Pick]:
    """Pick candidates by falling utility while the budget lasts, within the quotas while that is possible.

    `costs` float64 [C] > 0 counts in the unit of budget and quotas (default 1 each: min(budget, C) picks). What no
    longer fits is passed over for what still does. `per_cost` ranks by utility over cost instead. Where the quotas do
    not let the budget be spent the last of them gives way, then the one before; firm ones stay.

    Lazy greedy (Minoux 1978): a stale utility is an upper bound, so the top of the heap is the best as soon as its
    refreshed utility stays on top. Exact for submodular coverage; within p quotas (partition matroids) the greedy
    choice keeps at least 1 / (p + 1) of the best coverage (Fisher, Nemhauser & Wolsey 1978). `tie_order` int64 [C]
    breaks equal utilities, lowest first.
    """
    initial = np.asarray(utilities.initial, np.float64)
    cost = [1.0] * len(initial) if costs is None else costs.tolist()
    price = costs if per_cost and costs is not None else np.ones(len(initial))
    queue = _Queue(-initial / price, tie_order)
    taken: list[dict[Hashable | None, float]] = [{} for _ in quotas]
    spent = 0.0
    picks: list[Pick] = []
    for active in range(len(quotas), -1, -1):
        while queue and spent < budget:
            _, tie, candidate = entry = queue.pop()
            if spent + cost[candidate] > budget + ROUNDING:
                continue
            over = _exceeded(quotas, taken, candidate, cost[candidate])
            if any(quota < active or quotas[quota].firm for quota in over):
                queue.set_aside(entry)
                continue
            utility = utilities.current(candidate)
            if queue.push_if_later((-float(utility / price[candidate]), tie, candidate)):
                continue
            utilities.add(candidate)
            spent += cost[candidate]
            for quota, sums in zip(quotas, taken, strict=True):
                sums[quota.part[candidate]] = sums.get(quota.part[candidate], 0.0) + cost[candidate]
            picks.append(Pick(candidate, utility, tuple(quotas[i].name for i in over)))
        queue.resume()
    return picks


def _exceeded(
    quotas: Sequence[Quota], taken: Sequence[Mapping[Hashable | None, float]], candidate: int, cost: float
) -> list[int]:
    """Return which quotas the candidate would exceed."""
    return [
        number
        for number, (quota, sums) in enumerate(zip(quotas, taken, strict=True))
        if quota.part[candidate] is not None and sums.get(quota.part[candidate], 0.0) + cost > quota.limit + ROUNDING
    ]


class _Queue:
    """Candidates by rising key, ties by their order: sorted once, with a heap for the few whose key has changed."""

    def __init__(self, keys: Float64Array, ties: IntArray) -> None:
        self._keys, self._ties = keys, ties
        self._order = np.lexsort((ties, keys))
        self._next = 0
        self._heap: list[tuple[float, int, int]] = []
        self._aside: list[tuple[float, int, int]] = []
        self._head = self._sorted_head()

    def __bool__(self) -> bool:
        return self._head is not None or bool(self._heap)

    def pop(self) -> tuple[float, int, int]:
        """Take out the first entry: key, tie, candidate."""
        if self._head is None or (self._heap and self._heap[0] < self._head):
            return heapq.heappop(self._heap)
        first, self._next = self._head, self._next + 1
        self._head = self._sorted_head()
        return first

    def push_if_later(self, entry: tuple[float, int, int]) -> bool:
        """Put the entry back if another comes before it."""
        later = (self._head is not None and self._head < entry) or bool(self._heap and self._heap[0] < entry)
        if later:
            heapq.heappush(self._heap, entry)
        return later

    def set_aside(self, entry: tuple[float, int, int]) -> None:
        """Keep an entry that may not be taken now."""
        self._aside.append(entry)

    def resume(self) -> None:
        """Bring back what was set aside."""
        self._heap += self._aside
        self._aside = []
        heapq.heapify(self._heap)

    def _sorted_head(self) -> tuple[float, int, int] | None:
        if self._next == len(self._order):
            return None
        row = int(self._order[self._next])
        return float(self._keys[row]), int(self._ties[row]), row


def pick_within_budget(
    open_utilities: Callable[[], Utilities],
    quotas: Sequence[Quota],
    budget: float,
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
    plain = pick_greedily(utilities, quotas, budget, tie_order, costs=costs)
    if not weigh_cost or not len(costs) or costs.min() == costs.max():
        return plain
    thrifty = pick_greedily(open_utilities(), quotas, budget, tie_order, costs=costs, per_cost=True)
    return max((plain, thrifty), key=lambda picks: sum(pick.utility for pick in picks))


def trim_evenly(scores: Float64Array, devices: IntArray, limit: int) -> IntArray:
    """Return the rows of at most `limit` candidates, ascending: each device's best first, devices in turn.

    `scores` float64 [C], `devices` int64 [C]. Taking the best overall instead would let one noisy device crowd the
    others out before any quota is looked at.
    """
    if len(scores) <= limit:
        return np.arange(len(scores))
    by_device = np.lexsort((-scores, devices))
    starts = np.flatnonzero(np.diff(devices[by_device], prepend=-1))
    turn = np.empty(len(scores), np.int64)
    turn[by_device] = np.arange(len(scores)) - np.repeat(starts, np.diff(starts, append=len(scores)))
    return np.sort(np.lexsort((-scores, turn))[:limit])


def interleave(left: Sequence[T], right: Sequence[T]) -> list[T]:
    """Merge two ranked lists evenly, so that any first part holds both in proportion."""
    places = [((i + 0.5) / len(part), n, item) for n, part in enumerate((left, right)) for i, item in enumerate(part)]
    return [item for *_, item in sorted(places, key=lambda place: place[:2])]
