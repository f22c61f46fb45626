"""What keeps a device from filling the training set: quotas that bind devices, sites and newcomers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.selection.balance import Quota, pick_greedily
from curate.selection.base import CandidatePool, LabelledSet, Selection, SelectionPolicy
from curate.selection.batch import select_batch
from curate.selection.query import FixedUtilities

DIM = 16


def make_pool(sights: int, devices: int = 4, *, copies: int = 2, seed: int = 0) -> CandidatePool:
    """Distinct sights of a few copies each, dealt out to devices."""
    rng = np.random.default_rng(seed)
    n = sights * copies
    of_device = [f"cam-{i // copies % devices}" for i in range(n)]
    looks = rng.normal(size=(sights, DIM)).repeat(copies, axis=0)
    return CandidatePool(
        ids=tuple(f"s{i:05d}" for i in range(n)),
        embeddings=(looks + rng.normal(scale=0.01, size=(n, DIM))).astype(np.float32),
        probabilities=rng.dirichlet(np.ones(5), size=sights).repeat(copies, axis=0).astype(np.float32),
        devices=tuple(of_device),
        cameras=tuple(of_device),
        groups=tuple(f"burst-{i // copies}" for i in range(n)),
        random_probability=np.full(n, np.nan),
    )


def choose(pool: CandidatePool, budget: int, **policy: object) -> Selection:
    values = {"audit_share": 0.0, "max_device_share": 1.0, **policy}
    return select_batch(pool, LabelledSet.empty(DIM), SelectionPolicy.model_validate(values), budget, 0)


def newcomers(pool: CandidatePool, *names: str) -> CandidatePool:
    """The pool with these devices on probation."""
    return replace(pool, probation=np.isin(np.array(pool.devices), names))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 30), st.integers(0, 8))
def test_a_firm_quota_never_gives_way(seed: int, n: int, budget: int, limit: int) -> None:
    """Whatever the utilities, a firm part never takes more than its limit, and the free rest fills the budget."""
    rng = np.random.default_rng(seed)
    bound = rng.random(n) < 0.5
    quotas = [
        Quota("firm", [True if each else None for each in bound], limit, firm=True),
        Quota("giving", rng.integers(0, 2, n).tolist(), 1),
    ]
    picks = pick_greedily(FixedUtilities(rng.random(n)), quotas, budget, np.arange(n))
    taken = sum(bool(bound[pick.candidate]) for pick in picks)
    assert taken <= limit
    assert len(picks) == min(budget, int((~bound).sum()) + min(limit, int(bound.sum())))


def test_a_large_fleet_bounds_each_device_tighter() -> None:
    """Without a number of its own the quota is three equal shares, between a tenth and six tenths."""
    policy = SelectionPolicy()
    assert [policy.device_share(devices) for devices in (1, 3, 10, 1000)] == [0.6, 0.6, 0.3, 0.1]
    pool = make_pool(400, 20)
    crowded = replace(pool, devices=tuple(name if i // 2 % 2 else "cam-0" for i, name in enumerate(pool.devices)))
    assert len(set(crowded.devices)) == 11
    chosen = choose(crowded, 44, max_device_share=None, strategy="random", explore_share=0.0)
    assert chosen.per_device["cam-0"] == 12  # three elevenths


def test_devices_on_probation_share_one_quota() -> None:
    """Three newcomers with most of the pool get a fifth together, though each could have had more."""
    pool = newcomers(make_pool(200, 4), "cam-1", "cam-2", "cam-3")
    taken = choose(pool, 40, max_probation_share=0.2).per_device
    assert sum(taken.get(name, 0) for name in ("cam-1", "cam-2", "cam-3")) <= 10
    assert taken["cam-0"] >= 30


@pytest.mark.parametrize("copies", [1, 3])
def test_probation_holds_when_everything_else_has_run_out(copies: int) -> None:
    """The budget is left unspent, aloud, rather than given to newcomers; copies do not slip in either."""
    pool = newcomers(make_pool(60, 3, copies=copies), "cam-1", "cam-2")
    selection = choose(pool, 90, max_probation_share=0.1, explore_share=0.0)
    taken = selection.per_device
    assert taken["cam-0"] == min(20 * copies, 81)
    assert taken.get("cam-1", 0) + taken.get("cam-2", 0) == 9
    assert any("probation" in note for note in selection.notes)


def test_many_newcomers_do_not_fill_the_short_list() -> None:
    """Thirty newcomers in a pool too large to compare take their fifth, and the others the rest of the budget."""
    pool = newcomers(make_pool(640, 32, copies=1), *(f"cam-{number}" for number in range(2, 32)))
    selection = choose(pool, 40, max_candidates=50, explore_share=0.0)
    assert len(selection.items) == 40
    assert sum(item.device in {"cam-0", "cam-1"} for item in selection.items) >= 32


def test_nothing_or_everything_for_newcomers() -> None:
    """A share of 0 shuts newcomers out, a share of 1 lifts the quota."""
    pool = newcomers(make_pool(60, 3), "cam-1")
    assert "cam-1" not in choose(pool, 30, max_probation_share=0.0).per_device
    free = choose(pool, 30, max_probation_share=1.0)
    assert free.items == choose(replace(pool, probation=None), 30).items


def test_copies_from_a_newcomer_do_not_hold_a_sight_back() -> None:
    """A sight that a proven device saw, too, is asked through that device's capture, however unsure the copy looks."""
    pool = make_pool(20, 1, copies=2)
    devices = tuple("cam-0" if row % 2 else "new" for row in range(len(pool)))
    unsure = np.where(np.arange(len(pool)) % 2, 0.2, 0.9)
    pool = replace(pool, probabilities=None, uncertainty=unsure, devices=devices)
    selection = choose(newcomers(pool, "new"), 20, max_probation_share=0.1, explore_share=0.0)
    assert selection.per_device == {"cam-0": 20}


def test_a_site_is_bound_as_a_whole() -> None:
    """Two devices at one site share its quota; devices without a site are bound by their own alone."""
    pool = make_pool(200, 4)
    site_of = {"cam-0": 0, "cam-1": 0, "cam-2": 1, "cam-3": -1}
    pool = replace(pool, sites=np.array([site_of[name] for name in pool.devices]))
    free = choose(pool, 40, explore_share=0.0).per_device
    bound = choose(pool, 40, max_site_share=0.2, explore_share=0.0).per_device
    assert free["cam-0"] + free["cam-1"] > 8
    assert bound["cam-0"] + bound["cam-1"] == bound["cam-2"] == 8
    assert bound["cam-3"] == 24


def poisoned(pool_size: int = 2000, share: float = 0.01) -> CandidatePool:
    """A pool of which one device's crafted samples are a share: each a sight of its own, and looking very unsure."""
    pool, count = make_pool(pool_size, 9, copies=1, seed=3), round(pool_size * share)
    rng = np.random.default_rng(4)
    probabilities = pool.probabilities
    assert probabilities is not None
    sure = 0.9 * np.eye(5, dtype=np.float32)[probabilities.argmax(axis=1)] + 0.1 * probabilities
    crafted = np.full((count, 5), 0.2, np.float32)
    return CandidatePool(
        ids=(*pool.ids, *(f"poison-{i:03d}" for i in range(count))),
        embeddings=np.concatenate([pool.embeddings, rng.normal(size=(count, DIM)).astype(np.float32)]),
        probabilities=np.concatenate([sure.astype(np.float32), crafted]),
        devices=(*pool.devices, *["thief"] * count),
        cameras=(*pool.cameras, *["thief"] * count),
        groups=(*pool.groups, *(f"crafted-{i}" for i in range(count))),
        random_probability=np.full(pool_size + count, np.nan),
        feedback=np.concatenate([np.zeros(pool_size), np.full(count, 0.5)]),
    )


def test_a_hundredth_of_poison_stays_small() -> None:
    """One new device, 1 % crafted and all dismissed: most of it would be labelled; with the defence a tenth at most."""
    pool, policy = poisoned(), {"strategy": "margin", "explore_share": 0.0}
    open_door = Counter(choose(pool, 100, max_probation_share=1.0, **policy).per_device)["thief"]
    unbelieved = replace(newcomers(pool, "thief"), feedback=np.zeros(len(pool)))
    defended = Counter(choose(unbelieved, 100, max_probation_share=0.1, **policy).per_device)["thief"]
    assert open_door == 20
    assert defended <= 10
