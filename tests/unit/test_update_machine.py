"""The life of an update as a decision: which phase follows from what, in which order things are done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import AgentError
from edge_agent.models.update_machine import (
    ACTIVE,
    MAX_STARTS,
    Assigned,
    Attempt,
    Damaged,
    Effect,
    Event,
    Failed,
    Fetched,
    Passed,
    Phase,
    Postponed,
    Settled,
    Started,
    Stopped,
    Superseded,
    advance,
    is_refused,
    redo_effects,
)

ASSIGNED = Assigned("r-2", 2, "0" * 64, "b")
EVENTS: list[Event] = [
    ASSIGNED,
    Fetched(),
    Damaged("rot"),
    Started(),
    Postponed("no memory"),
    Passed(),
    Failed("wrong"),
    Stopped(),
    Settled(),
    Superseded("r-3"),
]


def _after(*events: Event) -> Attempt:
    attempt = Attempt()
    for event in events:
        attempt = advance(attempt, event).attempt
    return attempt


TO_TRIAL = (ASSIGNED, Fetched(), Started(), Passed(), Started())


def test_a_good_release_goes_all_the_way() -> None:
    """Every phase follows from the one before, and the end raises the floor's number."""
    phases = [_after(*TO_TRIAL[:count]).phase for count in range(len(TO_TRIAL) + 1)]
    assert phases == [Phase.IDLE, Phase.DOWNLOADING, Phase.VERIFIED, Phase.SMOKE, Phase.TRIAL, Phase.TRIAL]
    end = _after(*TO_TRIAL, Settled())
    assert (end.phase, end.number, end.slot) == (Phase.COMMITTED, 2, "b")


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_whatever_happens_the_laws_of_order_hold(events: list[Event]) -> None:
    """Any sequence of events: what cannot happen is an error and changes nothing; a slot is emptied or kept only after
    the phase is durable; the old model answers before anything is written; starts never pass their bound."""
    attempt = Attempt()
    for event in events:
        try:
            step = advance(attempt, event)
        except AgentError:
            continue
        effects = step.effects
        saved = effects.index(Effect.SAVE)
        assert all(
            effects.index(e) > saved for e in (Effect.KEEP_SLOT, Effect.EMPTY_SLOT, Effect.REPORT) if e in effects
        )
        assert Effect.PLAY_INCUMBENT not in effects or effects.index(Effect.PLAY_INCUMBENT) < saved
        assert step.attempt.starts <= MAX_STARTS
        assert (Effect.KEEP_SLOT in effects) == (step.attempt.phase is Phase.COMMITTED)
        if step.attempt.phase is Phase.COMMITTED:
            assert attempt.phase is Phase.TRIAL
            assert attempt.phase in ACTIVE
        attempt = step.attempt


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_a_trial_only_follows_a_passed_check(events: list[Event]) -> None:
    """No sequence of events brings a release on trial whose check has not passed since it was fetched."""
    attempt, passed = Attempt(), False
    for event in events:
        try:
            attempt = advance(attempt, event).attempt
        except AgentError:
            continue
        passed = (passed or isinstance(event, Passed)) and attempt.phase is not Phase.DOWNLOADING
        assert attempt.phase is not Phase.TRIAL or passed


def test_a_release_over_which_the_agent_dies_is_given_up() -> None:
    """The check and the trial may begin so many times; then the release is refused, or rolled back, with the reason."""
    smoke = _after(ASSIGNED, Fetched(), *[Started()] * MAX_STARTS)
    assert (smoke.phase, smoke.starts) == (Phase.SMOKE, MAX_STARTS)
    refused = advance(smoke, Started()).attempt
    assert refused.phase is Phase.REFUSED
    assert "cut off 3 times" in str(refused.reason)
    trial = _after(*TO_TRIAL, *[Started()] * (MAX_STARTS - 1))
    gone = advance(trial, Started())
    assert gone.attempt.phase is Phase.ROLLED_BACK
    assert "died 3 times" in str(gone.attempt.reason)
    assert gone.effects == (Effect.PLAY_INCUMBENT, Effect.SAVE, Effect.REPORT, Effect.EMPTY_SLOT)


def test_a_check_put_off_keeps_its_reason() -> None:
    """When a check fails for reasons that may pass too often, the last of them is what is told."""
    attempt = _after(ASSIGNED, Fetched(), *[Started(), Postponed("no memory")] * MAX_STARTS, Started())
    assert (attempt.phase, attempt.reason) == (Phase.REFUSED, "no memory")


def test_an_end_in_good_order_is_not_held_against_the_release() -> None:
    """Restarts that somebody asked for never use up a trial's starts."""
    attempt = _after(*TO_TRIAL[:-1], *[Started(), Stopped()] * 20)
    assert (attempt.phase, attempt.starts) == (Phase.TRIAL, 0)


@pytest.mark.parametrize("event", [Failed("wrong"), Superseded("r-3")])
def test_what_was_given_up_waits_for_another_assignment(event: Event) -> None:
    """A release rolled back is refused under the assignment that named it, and under no other."""
    attempt = _after(*TO_TRIAL, event)
    assert is_refused(attempt, "r-2", "0" * 64)
    assert not is_refused(attempt, "r-2", "1" * 64)
    assert not is_refused(attempt, "r-3", "0" * 64)
    assert advance(attempt, ASSIGNED).attempt.phase is Phase.DOWNLOADING


def test_what_a_dead_process_left_undone_can_be_redone() -> None:
    """The phases that end an update name their effects on the disk again; the others have none."""
    assert redo_effects(_after(*TO_TRIAL, Settled())) == (Effect.KEEP_SLOT,)
    assert redo_effects(_after(*TO_TRIAL, Failed("wrong"))) == (Effect.EMPTY_SLOT,)
    assert redo_effects(_after(*TO_TRIAL)) == ()


def test_an_event_of_another_phase_is_an_error() -> None:
    """What cannot have happened is refused by name."""
    with pytest.raises(AgentError, match="idle cannot be settled"):
        advance(Attempt(), Settled())
