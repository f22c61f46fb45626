"""A whole batch: audit and active share together."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curate.errors import SelectionError
from curate.selection.base import CandidatePool, LabelledSet, SampleRole, SelectionPolicy
from curate.selection.batch import select_batch
from curate.selection.estimate.field import estimate_field_accuracy

DIM = 16


def make_pool(bursts: int, frames: int = 5, *, seed: int = 0, random_share: float = 0.4) -> CandidatePool:
    rng = np.random.default_rng(seed)
    n = bursts * frames
    sights = rng.normal(size=(bursts, DIM)).repeat(frames, axis=0)
    return CandidatePool(
        ids=tuple(f"s{i:05d}" for i in range(n)),
        embeddings=(sights + rng.normal(scale=0.02, size=(n, DIM))).astype(np.float32),
        probabilities=rng.dirichlet(np.ones(5), size=bursts).repeat(frames, axis=0).astype(np.float32),
        devices=tuple(f"cam-{i // frames % 3}" for i in range(n)),
        cameras=tuple(f"cam-{i // frames % 3}" for i in range(n)),
        groups=tuple(f"burst-{i // frames}" for i in range(n)),
        random_probability=np.where(rng.random(n) < random_share, 0.05, np.nan),
        feedback=np.zeros(n),
    )


def empty() -> LabelledSet:
    return LabelledSet.empty(DIM)


def test_audit_and_active_share_never_touch() -> None:
    """No active pick shares a burst or a near-duplicate cluster with an audited one: test labels stay unseen."""
    pool = make_pool(80)
    selection = select_batch(pool, empty(), SelectionPolicy(), 60, 0)
    group_of = dict(zip(pool.ids, pool.groups, strict=True))
    by_role = {role: [item for item in selection.items if item.role is role] for role in SampleRole}
    assert selection.per_role == {"active": 48, "audit": 12}
    for key in (lambda item: group_of[item.sample_id], lambda item: item.cluster):
        assert not {key(item) for item in by_role[SampleRole.AUDIT]} & {key(i) for i in by_role[SampleRole.ACTIVE]}


def test_audited_have_a_probability_and_active_have_none() -> None:
    """Only the audit share carries an inclusion probability, random arm times audit draw."""
    selection = select_batch(make_pool(80), empty(), SelectionPolicy(), 60, 0)
    for item in selection.items:
        audited = item.role is SampleRole.AUDIT
        assert (item.inclusion_probability is not None) == audited
        assert not audited or 0 < item.inclusion_probability <= 0.05
        assert item.reasons


def test_roles_are_interleaved() -> None:
    """Any first half of the batch holds about half of each share, so a batch cut short is still a fair one."""
    items = select_batch(make_pool(80), empty(), SelectionPolicy(), 60, 0).items
    assert 5 <= sum(item.role is SampleRole.AUDIT for item in items[:30]) <= 7


def test_a_held_out_burst_or_its_double_is_not_taught() -> None:
    """Captures of a held-out burst, and near-duplicates of a held-out image elsewhere, are never active picks."""
    pool = make_pool(20, random_share=0)
    double = pool.embeddings[[50]]  # burst 10 looks just like the held-out image
    held_out = LabelledSet(
        ("t1", "t2"), np.concatenate([-double, double]), ("burst-3", "elsewhere"), held_out=np.array([True, True])
    )
    policy = SelectionPolicy(audit_share=0, duplicate_cosine=0.98)
    selection = select_batch(pool, held_out, policy, 100, 0)
    groups = {pool.groups[int(item.sample_id[1:])] for item in selection.items}
    assert groups == {f"burst-{i}" for i in range(20)} - {"burst-3", "burst-10"}
    assert "labels unused" in selection.notes[-1]


def test_a_labelled_burst_may_be_allowed_again() -> None:
    """Bursts with training labels are left out by default and let in by policy; held-out ones stay out."""
    pool = make_pool(4, random_share=0)
    known = LabelledSet(("k",), -pool.embeddings[:1], ("burst-0",))
    strict = select_batch(pool, known, SelectionPolicy(audit_share=0), 20, 0)
    loose = select_batch(pool, known, SelectionPolicy(audit_share=0, exclude_labelled_groups=False), 20, 0)
    assert (len(strict.items), len(loose.items)) == (15, 20)


def test_one_burst_is_asked_once_while_others_wait() -> None:
    """A long burst of near-duplicates gets one label and says how many captures it stands for."""
    pool = make_pool(30, random_share=0)
    selection = select_batch(pool, empty(), SelectionPolicy(audit_share=0), 30, 0)
    assert len({pool.groups[int(item.sample_id[1:])] for item in selection.items}) == 30
    assert {item.stands_for for item in selection.items} == {5}


def test_a_dismissed_capture_is_asked_sooner() -> None:
    """Feedback against a confident prediction brings that very capture to the front of its sight."""
    pool = make_pool(30, random_share=0)
    sure = np.tile(np.array([0.97, 0.01, 0.01, 0.005, 0.005], np.float32), (len(pool), 1))
    feedback = np.zeros(len(pool))
    feedback[72] = 0.53
    pool = replace(pool, probabilities=sure, feedback=feedback)
    first = select_batch(pool, empty(), SelectionPolicy(audit_share=0), 5, 0).items[0]
    assert first.sample_id == "s00072"
    assert any("feedback" in reason for reason in first.reasons)


def test_disagreement_counts_as_much_as_the_policy_says() -> None:
    """With all weight on it, what int8 and float disagree on is asked first; with none, or unknown, nothing changes."""
    pool = make_pool(30, random_share=0)
    plain = select_batch(pool, empty(), SelectionPolicy(audit_share=0), 5, 0)
    disagreement = np.where(np.arange(len(pool)) // 5 == 7, 0.9, 0.0)
    compared = replace(pool, disagreement=disagreement)
    assert select_batch(compared, empty(), SelectionPolicy(audit_share=0), 5, 0).items == plain.items
    policy = SelectionPolicy(audit_share=0, disagreement_weight=1.0)
    assert select_batch(compared, empty(), policy, 5, 0).items[0].sample_id in pool.ids[35:40]
    unknown = replace(pool, disagreement=np.full(len(pool), np.nan))
    assert [item.sample_id for item in select_batch(unknown, empty(), policy, 5, 0).items] == [
        item.sample_id for item in plain.items
    ]


def test_training_labels_cover_and_held_out_labels_do_not() -> None:
    """A sight beside a training label is asked last; the same label held out elsewhere does not lower its utility."""
    pool = make_pool(12, 1, random_share=0)
    flat = replace(pool, probabilities=np.full((12, 5), 0.2, np.float32))
    near = flat.embeddings[:1] + 0.15
    policy = SelectionPolicy(audit_share=0, explore_share=0)
    taught = select_batch(flat, LabelledSet(("k",), near, ("x",)), policy, 12, 0)
    tested = select_batch(flat, LabelledSet(("k",), near, ("x",), np.array([True])), policy, 12, 0)
    untouched = select_batch(flat, empty(), policy, 12, 0)
    assert taught.items[-1].sample_id == "s00000"
    assert [item.utility for item in tested.items] == [item.utility for item in untouched.items]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 90), st.floats(0, 1), st.permutations(range(40)))
def test_any_pool_any_order(seed: int, bursts: int, budget: int, share: float, order: list[int]) -> None:
    """Any pool gives distinct ids, at most the budget, finite utilities, and the same answer in any row order."""
    pool = make_pool(bursts, 2, seed=seed % 1000)
    policy = SelectionPolicy(audit_share=share)
    selection = select_batch(pool, empty(), policy, budget, seed)
    rows = [row for row in order if row < len(pool)] + list(range(40, len(pool)))
    assert select_batch(pool.take(rows), empty(), policy, budget, seed) == selection
    ids = [item.sample_id for item in selection.items]
    assert len(ids) == len(set(ids)) <= min(budget, len(pool))
    assert all(np.isfinite(item.utility) for item in selection.items)
    if len(ids) < min(budget, len(pool)):
        assert any("labels unused" in note for note in selection.notes)


def test_different_seeds_audit_different_captures() -> None:
    """The audit really is drawn: another seed gives another draw."""
    pool = make_pool(80)
    draws = {
        tuple(i.sample_id for i in select_batch(pool, empty(), SelectionPolicy(audit_share=1), 20, s).items)
        for s in range(3)
    }
    assert len(draws) == 3


def test_audit_gives_an_unbiased_field_accuracy() -> None:
    """Averaged over draws, the audit's estimate meets the truth although the pool is full of uncertain captures."""
    rng = np.random.default_rng(0)
    pool = make_pool(200, 4, random_share=0.5)
    arm = np.isfinite(pool.random_probability)
    correct = np.where(arm, rng.random(len(pool)) < 0.8, rng.random(len(pool)) < 0.3)
    estimates = []
    for seed in range(40):
        items = [
            item
            for item in select_batch(pool, empty(), SelectionPolicy(audit_share=1), 100, seed).items
            if item.inclusion_probability is not None
        ]
        rows = [int(item.sample_id[1:]) for item in items]
        estimates.append(
            estimate_field_accuracy(
                correct[rows], [item.inclusion_probability for item in items], [pool.groups[row] for row in rows]
            ).estimate
        )
    assert np.mean(estimates) == pytest.approx(correct[arm].mean(), abs=0.015)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("embeddings", 0.0, "direction"),
        ("embeddings", np.inf, "finite"),
        ("probabilities", 3.0, "distribution"),
        ("random_probability", 0.0, "random-arm"),
        ("feedback", np.nan, "feedback"),
    ],
)
def test_a_broken_row_is_rejected_with_its_reason(field: str, value: float, reason: str) -> None:
    """Each kind of nonsense keeps its row out and is named."""
    pool = make_pool(6)
    getattr(pool, field)[7] = value
    selection = select_batch(pool, empty(), SelectionPolicy(), 10, 0)
    assert [(r.sample_id, reason in r.reason) for r in selection.rejected] == [("s00007", True)]


def test_a_pool_of_only_known_samples_selects_nothing() -> None:
    """When everything is labelled already the batch is empty and every row is accounted for."""
    pool = make_pool(3, 1)
    known = LabelledSet(pool.ids, pool.embeddings, pool.groups)
    selection = select_batch(pool, known, SelectionPolicy(), 2, 0)
    assert (selection.items, len(selection.rejected)) == ((), 3)


def test_impossible_requests_are_refused() -> None:
    """A budget below one, a negative seed, another width, repeated ids or ragged columns are SelectionErrors."""
    pool = make_pool(3)
    with pytest.raises(SelectionError, match="budget"):
        select_batch(pool, empty(), SelectionPolicy(), 0, 0)
    with pytest.raises(SelectionError, match="seed"):
        select_batch(pool, empty(), SelectionPolicy(), 1, -1)
    with pytest.raises(SelectionError, match="numbers"):
        select_batch(pool, LabelledSet(("k",), np.ones((1, 3), np.float32), ("g",)), SelectionPolicy(), 1, 0)
    with pytest.raises(SelectionError, match="repeats"):
        pool.take([0, 0])
    with pytest.raises(SelectionError, match="lengths"):
        replace(pool, devices=pool.devices[1:])


def test_policy_refuses_unknown_keys_and_its_digest_follows_its_values() -> None:
    """A typo in the configuration is an error, and two policies share a digest only if they are equal."""
    with pytest.raises(ValidationError):
        SelectionPolicy.model_validate({"audit_shrae": 0.2})
    assert SelectionPolicy().digest() == SelectionPolicy().digest()
    assert SelectionPolicy().digest() != SelectionPolicy(audit_share=0.1).digest()


def test_ten_thousand_distinct_rows_in_seconds() -> None:
    """The demo's largest pool, without a single duplicate to collapse, takes a few seconds of one core at most."""
    pool = make_pool(10_000, 1)
    started = time.process_time()
    selection = select_batch(pool, empty(), SelectionPolicy(), 200, 0)
    assert len(selection.items) == 200
    assert time.process_time() - started < 6  # about 1 s alone; the margin is for a busy machine


def test_a_burst_across_two_groups_is_not_both_audited_and_taught() -> None:
    """Frames of one object that fall into two time blocks are kept apart by time and likeness together."""
    pool = make_pool(80, frames=4)
    halves = tuple(f"block-{i // 2}" for i in range(len(pool)))
    timed = replace(pool, groups=halves, captured_s=np.arange(len(pool), dtype=np.float64))
    selection = select_batch(timed, empty(), SelectionPolicy(scene_gap_s=4.0, duplicate_cosine=1.0), 40, 0)
    burst = {name: number // 4 for number, name in enumerate(pool.ids)}
    audited = {burst[item.sample_id] for item in selection.items if item.role is SampleRole.AUDIT}
    taught = {burst[item.sample_id] for item in selection.items if item.role is SampleRole.ACTIVE}
    assert audited
    assert taught
    assert not audited & taught


def test_a_share_is_explored_at_random_among_distinct_sights() -> None:
    """The explored share is drawn whatever the uncertainty, says so, and never repeats a sight."""
    pool = make_pool(80, random_share=0)
    items = select_batch(pool, empty(), SelectionPolicy(audit_share=0, explore_share=0.5), 40, 0).items
    explored = [item for item in items if any("explored at random" in reason for reason in item.reasons)]
    assert len(explored) == 20
    assert len({item.cluster for item in items}) == 40
    assert 8 <= sum(item in explored for item in items[:20]) <= 12


def test_a_pool_of_random_captures_needs_no_exploring() -> None:
    """The explored share shrinks with the share of captures that the random arm did not keep."""
    policy = SelectionPolicy(audit_share=0, explore_share=0.5)

    def explored(random_share: float) -> int:
        items = select_batch(make_pool(80, random_share=random_share), empty(), policy, 40, 0).items
        return sum(any("explored at random" in reason for reason in item.reasons) for item in items)

    assert explored(1.0) == 0
    assert explored(0.0) == 20
    assert 5 <= explored(0.5) <= 15


def test_what_is_seen_now_outweighs_what_was_seen_long_ago() -> None:
    """With a half-life the strategy asks about recent sights; without one, or without known times, age says nothing."""
    pool = make_pool(80)
    moments = np.where(np.arange(len(pool)) % 2, 0.0, np.nan)  # of a row or two in each sight nobody knows the time
    newer = np.arange(len(pool)) >= len(pool) // 2
    dated = replace(pool, captured_s=moments + 10_000.0 * newer)
    policy = SelectionPolicy(explore_share=0.0, audit_share=0.0, scene_gap_s=0.0)
    recent = {sample for sample, new in zip(pool.ids, newer, strict=True) if new}

    def share(candidates: CandidatePool, half_life_s: float | None) -> float:
        aged = policy.model_copy(update={"half_life_s": half_life_s})
        items = select_batch(candidates, empty(), aged, 20, 0).items
        return sum(item.sample_id in recent for item in items) / len(items)

    assert share(dated, 1000.0) == 1.0
    assert share(dated, None) == share(dated, 1e12)
    assert 0.2 < share(dated, None) < 0.8
    assert share(pool, 1000.0) == share(pool, None)


def test_what_is_seen_now_competes_in_a_pool_too_large_to_weigh() -> None:
    """Where few of the sights can be weighed against each other, the recent ones are among them."""
    pool = make_pool(200)
    newer = np.arange(len(pool)) >= len(pool) * 0.95
    recent = {sample for sample, new in zip(pool.ids, newer, strict=True) if new}
    policy = SelectionPolicy(explore_share=0.0, audit_share=0.0, scene_gap_s=0.0, max_candidates=30, half_life_s=60.0)
    items = select_batch(replace(pool, captured_s=10_000.0 * newer), empty(), policy, 7, 0).items
    assert sum(item.sample_id in recent for item in items) == 7
