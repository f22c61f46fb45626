from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from curate.contracts.capture import Arm
from edge_agent.spool.retention import ORDINARY, PRECIOUS, Held, capture_value, plan_eviction

HELD = st.builds(
    Held,
    sequence=st.integers(1, 200),
    size_bytes=st.integers(1, 500),
    value=st.sampled_from([ORDINARY, PRECIOUS]),
)
WAITING = st.lists(HELD, max_size=20, unique_by=lambda held: held.sequence)


@given(
    waiting=WAITING,
    frozen_bytes=st.integers(0, 2000),
    max_bytes=st.integers(1, 3000),
    incoming_bytes=st.integers(1, 600),
    incoming_value=st.sampled_from([ORDINARY, PRECIOUS]),
)
def test_a_plan_makes_room_and_gives_up_nothing_in_vain(
    waiting: list[Held], frozen_bytes: int, max_bytes: int, incoming_bytes: int, incoming_value: int
) -> None:
    """An admitted newcomer fits, displaces nothing worth more and nothing in vain; a refusal evicts nothing."""
    used = frozen_bytes + sum(held.size_bytes for held in waiting)
    plan = plan_eviction(
        waiting, used_bytes=used, max_bytes=max_bytes, incoming_bytes=incoming_bytes, incoming_value=incoming_value
    )
    by_sequence = {held.sequence: held for held in waiting}
    gone = [by_sequence[sequence] for sequence in plan.evict]
    freed = sum(held.size_bytes for held in gone)
    removable = sum(held.size_bytes for held in waiting if held.value <= incoming_value)
    assert plan.admit == (used - removable + incoming_bytes <= max_bytes)
    if not plan.admit:
        assert plan.evict == ()
        return
    assert used - freed + incoming_bytes <= max_bytes
    assert all(held.value <= incoming_value for held in gone)
    if gone:
        assert used - freed + gone[-1].size_bytes + incoming_bytes > max_bytes


@given(waiting=WAITING.filter(bool), share=st.floats(0.1, 1.0))
def test_the_least_valuable_go_first_and_then_the_oldest(waiting: list[Held], share: float) -> None:
    """What is evicted is a prefix of the order (value, age): nothing kept is worth less or, at equal worth, older."""
    used = sum(held.size_bytes for held in waiting)
    plan = plan_eviction(
        waiting, used_bytes=used, max_bytes=used, incoming_bytes=max(1, int(used * share)), incoming_value=PRECIOUS
    )
    order = [held.sequence for held in sorted(waiting, key=lambda held: (held.value, held.sequence))]
    assert list(plan.evict) == order[: len(plan.evict)]


def test_a_random_or_dismissed_capture_outranks_a_merely_uncertain_one() -> None:
    """One precious arm makes a capture precious, also when the uncertain arm kept it too."""
    assert capture_value([Arm.UNCERTAIN]) == ORDINARY
    assert capture_value([Arm.UNCERTAIN, Arm.RANDOM]) == PRECIOUS
    assert capture_value([Arm.DISMISSED]) == PRECIOUS
