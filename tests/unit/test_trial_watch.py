"""When a release on trial is kept and when it is given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.models.trial_watch import Seen, TrialRules, TrialWatch, Verdict

RULES = TrialRules(window_s=60.0, window_frames=200, max_latency_s=0.5, hang_s=10.0)
GOOD = Seen(0.01, input_moved=True, output_moved=True)
BAD = Seen(0.01, problem="nan")


def _watch(*seen: Seen, rules: TrialRules = RULES, incumbent_p50_s: float | None = None) -> TrialWatch:
    watch = TrialWatch(rules, started_s=0.0, incumbent_p50_s=incumbent_p50_s)
    for one in seen:
        watch.note(one)
    return watch


def test_time_and_frames_must_both_pass() -> None:
    """A release is kept when both windows are over, not before."""
    assert _watch(*[GOOD] * 200).judge(59.0).verdict is Verdict.GO_ON
    assert _watch(*[GOOD] * 199).judge(61.0).verdict is Verdict.GO_ON
    assert _watch(*[GOOD] * 200).judge(60.0).verdict is Verdict.KEEP


def test_a_camera_that_sees_little_ends_its_trial_all_the_same() -> None:
    """Where frames are rare ten windows of time are enough, but never without a single answer."""
    assert _watch(GOOD).judge(600.0).verdict is Verdict.KEEP
    assert _watch().judge(10_000.0).verdict is Verdict.GO_ON


def test_without_windows_there_is_no_trial() -> None:
    """Zero seconds and zero frames keep a release at once."""
    assert _watch(rules=TrialRules(window_s=0.0, window_frames=0)).judge(0.0).verdict is Verdict.KEEP


@given(good=st.integers(0, 300), bad=st.integers(0, 100))
def test_bad_answers_are_borne_up_to_their_share(good: int, bad: int) -> None:
    """A release is given up exactly when bad answers are at least five and more than a tenth."""
    judgement = _watch(*[GOOD] * good, *[BAD] * bad).judge(1.0)
    expected = Verdict.GIVE_UP if bad >= 5 and bad > 0.1 * (good + bad) else Verdict.GO_ON
    assert judgement.verdict is expected
    assert expected is Verdict.GO_ON or judgement.reason == f"{bad} of {good + bad} answers are none, the last: nan"


def test_an_answer_that_never_changes_is_noticed() -> None:
    """Thirty equal answers to frames that differ give a release up; equal answers to a still scene do not."""
    stuck = Seen(0.01, input_moved=True, output_moved=False)
    still = Seen(0.01, input_moved=False, output_moved=False)
    assert _watch(*[stuck] * 29).judge(1.0).verdict is Verdict.GO_ON
    assert "stayed the same over 30 frames" in _watch(*[stuck] * 30).judge(1.0).reason
    assert _watch(*[still] * 1000).judge(1.0).verdict is Verdict.GO_ON
    assert _watch(*[stuck] * 29, GOOD, *[stuck] * 29).judge(1.0).verdict is Verdict.GO_ON


@pytest.mark.parametrize(
    ("latency_s", "incumbent_p50_s", "reason"),
    [
        (0.6, None, "more than 0.500 s"),
        (0.45, 0.1, "the old model took 0.100 s"),
        (0.35, 0.1, ""),
        (0.019, 0.001, ""),
        (0.45, None, ""),
    ],
    ids=["over its bound", "much slower", "a little slower", "slower and fast all the same", "nothing to compare with"],
)
def test_a_slow_release_is_given_up(latency_s: float, incumbent_p50_s: float | None, reason: str) -> None:
    """The median answer has a bound, and another set by the old model where the difference can be felt."""
    seen = [Seen(latency_s, input_moved=True)] * 20
    judgement = _watch(*seen, incumbent_p50_s=incumbent_p50_s).judge(1.0)
    assert (judgement.verdict is Verdict.GIVE_UP) == bool(reason)
    assert reason in judgement.reason
    assert _watch(*seen[1:], incumbent_p50_s=incumbent_p50_s).judge(1.0).verdict is Verdict.GO_ON


def test_a_busy_device_is_not_the_release_s_fault() -> None:
    """Slowness against the old model counts only if the old model, asked again now, is still faster."""
    watch = _watch(*[Seen(0.45, input_moved=True)] * 20, incumbent_p50_s=0.1)
    assert watch.judge(1.0).compares
    watch.note_incumbent(0.3)
    assert watch.judge(1.0).verdict is Verdict.GO_ON


def test_a_frame_without_an_answer_is_a_hang() -> None:
    """A frame that waits too long gives the release up, whatever was answered before."""
    watch = _watch(*[GOOD] * 500)
    assert watch.judge(100.0, waiting_since_s=91.0).verdict is Verdict.KEEP
    assert "no answer for 10 s" in watch.judge(100.0, waiting_since_s=90.0).reason
