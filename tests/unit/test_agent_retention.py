from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from curate.contracts.capture import Arm
from curate.contracts.device_settings import RetentionSpec
from edge_agent.spool.retention import (
    HALF_LIFE_CAPTURES,
    Capacity,
    EvictionPlan,
    Held,
    Ordered,
    Stake,
    choose_to_send,
    plan_eviction,
    weigh,
)

HELD = st.builds(
    Held,
    sequence=st.integers(1, 50_000),
    size_bytes=st.integers(1, 500),
    stake=st.sampled_from(Stake),
    worth=st.floats(0.0, 2.0),
)
WAITING = st.lists(HELD, max_size=25, unique_by=lambda held: held.sequence)
SPEC = st.builds(RetentionSpec, dismissed_floor=st.floats(0, 0.5), random_floor=st.floats(0, 0.5))


def plan(
    waiting: Sequence[Held], incoming: Held, max_bytes: int, spec: RetentionSpec, frozen: Sequence[Held] = ()
) -> EvictionPlan:
    """Plan as the spool does."""
    held_bytes = {stake: sum(h.size_bytes for h in (*waiting, *frozen) if h.stake is stake) for stake in Stake}
    lines = {stake: sorted((h for h in waiting if h.stake is stake), key=lambda h: h.rank) for stake in Stake}
    return plan_eviction(lines, held_bytes, incoming, Capacity.of(max_bytes, spec))


@given(waiting=WAITING, frozen=WAITING, incoming=HELD, max_bytes=st.integers(1, 6000), spec=SPEC)
def test_a_plan_makes_room_and_gives_up_nothing_in_vain(
    waiting: list[Held], frozen: list[Held], incoming: Held, max_bytes: int, spec: RetentionSpec
) -> None:
    """An admitted newcomer fits and the last to go was needed; a refusal gives up nothing; a floor is never cut into
    for another stake, and whoever outranks the newcomer stays, unless the newcomer is owed the room."""
    assume(not {*waiting} & {*frozen})  # a capture is in one of them
    result = plan(waiting, incoming, max_bytes, spec, frozen)
    used = sum(held.size_bytes for held in (*waiting, *frozen))
    freed = sum(held.size_bytes for held in result.evict)
    if not result.admit:
        assert result.evict == ()
        assert used + incoming.size_bytes > max_bytes
        return
    assert set(result.evict) <= set(waiting)
    assert used - freed + incoming.size_bytes <= max_bytes
    if result.evict:
        assert used - freed + result.evict[-1].size_bytes + incoming.size_bytes > max_bytes
    floors = Capacity.of(max_bytes, spec).floors
    left = {s: sum(h.size_bytes for h in {*waiting, *frozen} - set(result.evict) if h.stake is s) for s in Stake}
    before = {s: sum(h.size_bytes for h in {*waiting, *frozen} if h.stake is s) for s in Stake}
    for stake in set(Stake) - {incoming.stake}:
        assert left[stake] >= min(before[stake], floors[stake])
    owed = before[incoming.stake] + incoming.size_bytes <= floors[incoming.stake]
    assert owed or all(held.rank < incoming.rank for held in result.evict)


@given(waiting=WAITING.filter(bool), share=st.floats(0.1, 1.0))
def test_without_floors_the_least_valuable_go_first(waiting: list[Held], share: float) -> None:
    """What is evicted is the front of one order over all stakes: nothing kept ranks lower."""
    used = sum(held.size_bytes for held in waiting)
    incoming = Held(10**9, max(1, int(used * share)), Stake.OTHER, 2.0)
    spec = RetentionSpec(dismissed_floor=0, random_floor=0)
    order = sorted(waiting, key=lambda held: held.rank)
    evicted = plan(waiting, incoming, used, spec).evict
    assert list(evicted) == order[: len(evicted)]
    assert evicted


def flood(stake: Stake, worth: float, *, count: int = 3000) -> Counter[Stake]:
    """Fill a spool of 100 with a third of each stake, pour one stake in, and count what is left."""
    held = [Held(n, 1, stake, 1.0) for n, stake in enumerate([*Stake] * 33)]
    for number in range(1000, 1000 + count):
        newcomer = Held(number, 1, stake, worth)
        result = plan(held, newcomer, 100, RetentionSpec(dismissed_floor=0.2, random_floor=0.2))
        if result.admit:
            held = [*(h for h in held if h not in result.evict), newcomer]
    return Counter(h.stake for h in held)


@pytest.mark.parametrize("worth", [0.01, 2.0])
def test_a_flood_never_pushes_another_stake_below_its_floor(worth: float) -> None:
    """However many captures of one kind come, and however valuable, the floors of random and dismissed hold."""
    assert flood(Stake.OTHER, worth, count=400)[Stake.RANDOM] >= 20
    assert flood(Stake.OTHER, worth, count=400)[Stake.DISMISSED] >= 20
    assert flood(Stake.DISMISSED, worth, count=400)[Stake.RANDOM] >= 20
    assert flood(Stake.RANDOM, worth, count=400)[Stake.DISMISSED] >= 20


def test_who_is_below_the_floor_is_owed_the_room() -> None:
    """In a spool full of more valuable captures a random one still comes in, up to the random arm's floor."""
    held = [Held(n, 1, Stake.OTHER, 1.25) for n in range(100)]
    spec = RetentionSpec(random_floor=0.1, dismissed_floor=0.0)
    for number in range(100, 200):
        newcomer = Held(number, 1, Stake.RANDOM, 0.01)
        result = plan(held, newcomer, 100, spec)
        if result.admit:
            held = [*(h for h in held if h not in result.evict), newcomer]
    assert sum(h.stake is Stake.RANDOM for h in held) == 10


def test_worth_comes_from_arms_and_scores_and_never_from_a_random_picture() -> None:
    """A dismissal is worth more than any score, two reasons more than one; the random arm's are all worth the same,
    dismissed ones too, so that giving some up does not bend its numbers."""
    sure, unsure = {"margin": 0.1}, {"margin": 0.9, "novelty": 0.2}
    assert weigh([Arm.UNCERTAIN], sure)[1] < weigh([Arm.UNCERTAIN], unsure)[1] < weigh([Arm.DISMISSED], sure)[1]
    assert weigh([Arm.UNCERTAIN], sure)[1] < weigh([Arm.UNCERTAIN, Arm.NOVEL], sure)[1]
    random_arm = {weigh([Arm.RANDOM, *more], scores) for more in ([], [Arm.DISMISSED]) for scores in (sure, unsure)}
    assert random_arm == {(Stake.RANDOM, 1.0)}
    assert weigh([Arm.DISMISSED, Arm.UNCERTAIN], unsure)[0] is Stake.DISMISSED


def test_worth_fades_with_age() -> None:
    """After one half-life of captures the older one must have been worth twice as much to stay."""
    old = Held(1, 1, Stake.OTHER, 0.8)
    assert old.rank > Held(HALF_LIFE_CAPTURES, 1, Stake.OTHER, 0.39).rank
    assert old.rank < Held(HALF_LIFE_CAPTURES + 2, 1, Stake.OTHER, 0.4).rank


@given(captures=st.lists(HELD, max_size=200, unique_by=lambda held: held.sequence), seed=st.integers())
def test_an_ordered_line_stays_ordered(captures: list[Held], seed: int) -> None:
    """Whatever is put in, at once or one by one, and taken out, the rest stands in order."""
    line = Ordered(lambda held: held.rank)
    middle = len(captures) // 2
    line.update(captures[:middle])
    for held in captures[middle:]:
        line.update([held])
    gone = random.Random(seed).sample(captures, len(captures) // 3)
    for held in gone:
        line.discard(held)
        line.discard(held)
    assert list(line) == sorted(set(captures) - set(gone), key=lambda held: held.rank)


@given(captures=WAITING, count=st.integers(0, 30), share=st.floats(0, 1))
def test_a_batch_takes_the_most_valuable_and_a_share_of_the_oldest(
    captures: list[Held], count: int, share: float
) -> None:
    """A batch is full when it can be, holds the oldest of all, and of the rest nothing left behind is worth more."""
    ages = sorted(held.sequence for held in captures)
    line = sorted(captures, key=lambda held: held.turn)
    chosen = choose_to_send(line, ages, count=count, oldest_share=share)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(captures))
    if chosen:
        assert chosen[0] == ages[0]
        oldest = set(ages[: max(1, round(count * share))])
        worths = {held.sequence: held.worth for held in captures}
        picked = [worths[n] for n in chosen if n not in oldest]
        left = [worth for n, worth in worths.items() if n not in chosen]
        assert not picked or not left or min(picked) >= max(left)
