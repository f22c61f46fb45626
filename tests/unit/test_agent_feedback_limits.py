"""A flood of verdicts is not obeyed, and nobody who behaves loses one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contracts.feedback import FeedbackReason, Verdict
from edge_agent.capture.feedback_intake import FeedbackIntake, FeedbackRequest, says_wrong
from edge_agent.capture.feedback_limits import MAX_USERS, FeedbackLimits, FeedbackRefusedError
from edge_agent.config.sections import FeedbackConfig
from edge_agent.models.inference import LoadedModel
from tests.fakes.agent_bench import Bench

SPEC = FeedbackConfig(
    user_per_minute=60.0,
    user_burst=10,
    device_per_minute=600.0,
    device_burst=100,
    hold_after_s=10.0,
    max_quarantined=5,
)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def admitted(limits: FeedbackLimits, user: str | None) -> str:
    """Return what became of one verdict."""
    try:
        return "quarantined" if limits.admit(user) else "taken"
    except FeedbackRefusedError as exc:
        return exc.scope


def test_a_burst_is_taken_and_then_the_rate() -> None:
    """After a rest the burst passes at once, then one a second, and the refusal says how long to wait."""
    clock = Clock()
    limits = FeedbackLimits(SPEC, clock)
    assert [admitted(limits, "ann") for _ in range(12)] == ["taken"] * 10 + ["user"] * 2
    with pytest.raises(FeedbackRefusedError) as refused:
        limits.admit("ann")
    assert refused.value.retryable
    assert refused.value.retry_after_s == pytest.approx(1.0)
    clock.now_s += refused.value.retry_after_s
    assert [admitted(limits, "ann"), admitted(limits, "ann"), admitted(limits, "bob")] == ["taken", "user", "taken"]


def test_one_user_does_not_use_up_anothers_limit_and_the_device_bounds_all() -> None:
    """Each user has an allowance; a thousand names together get the device's, which also bounds what is remembered."""
    limits = FeedbackLimits(SPEC, Clock())
    found = [admitted(limits, f"user-{n}") for n in range(2 * MAX_USERS)]
    assert found == ["taken"] * 100 + ["device"] * (2 * MAX_USERS - 100)
    assert len(limits._users) <= MAX_USERS


def test_whoever_goes_on_is_put_on_hold_until_a_pause() -> None:
    """A user who keeps sending is quarantined after a while, up to the cap; half a bucket later all is well again."""
    clock = Clock()
    limits = FeedbackLimits(SPEC, clock)
    found = []
    for _ in range(80):
        clock.now_s += 0.5
        found.append(admitted(limits, "bot"))
    first = found.index("quarantined")
    assert (first - found.index("user")) * 0.5 >= SPEC.hold_after_s
    assert found[first:].count("quarantined") == 5
    assert found[-1] in {"quarantine", "user"}
    assert admitted(limits, "ann") == "taken"
    clock.now_s += 6.0
    assert admitted(limits, "bot") == "taken"


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.floats(0.0, 5.0), st.sampled_from(["a", "b", None])), max_size=150))
def test_no_pattern_beats_the_limits(steps: list[tuple[float, str | None]]) -> None:
    """Over any stretch no more passes than the burst and the rate allow, for a user and for the device."""
    clock = Clock()
    limits = FeedbackLimits(SPEC, clock)
    passed: dict[str | None, int] = {}
    for pause_s, user in steps:
        clock.now_s += pause_s
        if admitted(limits, user) in {"taken", "quarantined"}:
            passed[user] = passed.get(user, 0) + 1
    elapsed_s = clock.now_s - Clock.now_s
    assert all(count <= SPEC.user_burst + elapsed_s + 1e-6 for count in passed.values())
    assert sum(passed.values()) <= SPEC.device_burst + 10 * elapsed_s


@pytest.mark.parametrize("reason", [*FeedbackReason, None])
@pytest.mark.parametrize("verdict", Verdict)
def test_what_says_wrong(verdict: Verdict, reason: FeedbackReason | None) -> None:
    """A dismissal says that the model erred unless it is for want of interest; a correction always does, a confirmation
    never."""
    expected = {
        Verdict.CONFIRMED: False,
        Verdict.CORRECTED: True,
        Verdict.DISMISSED: reason not in {FeedbackReason.NOT_INTERESTING, FeedbackReason.DUPLICATE},
    }
    assert says_wrong(FeedbackRequest(verdict=verdict, reason=reason)) == expected[verdict]


# -- in the intake ------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path, classifier: LoadedModel) -> Bench:
    return Bench.answering(tmp_path, classifier, frames=60)


def dismissal(**changes: object) -> FeedbackRequest:
    return FeedbackRequest.model_validate({"verdict": "dismissed", "reason": "wrong_class", "user": "bot"} | changes)


@pytest.mark.parametrize("reason", ["not_interesting", "duplicate"])
def test_what_is_not_interesting_is_not_captured(bench: Bench, reason: str) -> None:
    """The verdict is stored alone; a later one that says wrong still finds the frame."""
    assert not bench.intake.receive("boot-1", dismissal(reason=reason)).frame_available
    assert not bench.spool.captures
    assert bench.spool.feedback[0].reason == reason
    assert bench.intake.receive("boot-1", dismissal()).frame_available


def test_a_flood_captures_few_frames_and_loses_nothing(bench: Bench) -> None:
    """Refused verdicts are counted and stored nowhere; quarantined ones say so and capture no frame; a repeated id is
    answered although the bucket is empty."""
    clock, counted = Clock(), list[str]()
    intake = FeedbackIntake(
        bench.spool,
        bench.keeper,
        bench.ring,
        bench.predictions,
        limits=FeedbackLimits(SPEC, clock),
        count=counted.append,
    )
    for number in range(1, 61):
        clock.now_s += 0.7
        try:
            intake.receive(f"boot-{number}", dismissal(feedback_id=f"f-{number}"))
        except FeedbackRefusedError:
            assert bench.spool.find_receipt(f"f-{number}") is None
    stored = bench.spool.feedback
    quarantined = [item for item in stored if item.quarantined]
    assert 0 < len(quarantined) <= SPEC.max_quarantined
    assert not any(item.frame_available for item in quarantined)
    assert len(bench.spool.captures) == len(stored) - len(quarantined)
    assert len(stored) + sum(name.startswith("feedback_refused") for name in counted) == 60
    assert counted.count("feedback_quarantined") == len(quarantined)
    assert admitted(intake._limits, "bot") != "taken"
    assert intake.receive("boot-1", dismissal(feedback_id="f-1")).frame_available
