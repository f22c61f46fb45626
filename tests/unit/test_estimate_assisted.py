"""Field estimates that lean on a surrogate, on reported frames, and on slices."""

from __future__ import annotations

import importlib.util
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contracts.telemetry import DeviceCounters
from curate.errors import SelectionError
from curate.metrics.correctness import Correctness
from curate.selection.estimate.assisted import AuditedArm, best_trust, estimate_assisted
from curate.selection.estimate.captures import Captures
from curate.selection.estimate.field import FieldEstimate
from curate.selection.estimate.report import Audits, FieldReport, report_field
from curate.selection.estimate.slices import estimate_slices, time_of_day
from curate.selection.estimate.surrogate import Answers, fit_logistic, predict_correctness
from curate.selection.estimate.weighting import FramesTold, frames_between, post_stratify

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def load_benchmark(name: str) -> ModuleType:
    """The simulation that wrote the published table."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def arm(surrogate: list[float], correct: list[float], audited: list[int] | None = None) -> AuditedArm:
    """Captures of equal weight, each a burst of its own; the first ones audited."""
    rows = np.arange(len(correct)) if audited is None else np.array(audited)
    n = len(surrogate)
    drawn = np.full(len(correct), len(correct) / n)
    bursts = tuple(f"b{row}" for row in range(n))
    return AuditedArm(np.full(n, 20.0), bursts, np.array(surrogate), rows, np.array(correct, float), drawn)


def test_a_surrogate_moves_the_estimate_by_what_the_audits_missed() -> None:
    """With full trust the estimate is the audits' share plus the gap between the surrogate's two means."""
    result = estimate_assisted(arm([0.9, 0.5, 0.7, 0.1, 0.1, 0.1], [1, 0, 1]), trust=1.0)
    assert result.estimate == pytest.approx(2 / 3 + (2.4 / 6 - 2.1 / 3))


def test_no_trust_is_the_plain_estimate() -> None:
    """With no trust the audits speak alone."""
    assert estimate_assisted(arm([0.9, 0.5, 0.7, 0.1], [1, 0, 1]), trust=0.0).estimate == pytest.approx(2 / 3)


def test_a_surrogate_that_says_nothing_is_not_trusted() -> None:
    """A constant surrogate gets no trust, and one that knows the answer gets much."""
    rng = np.random.default_rng(0)
    right = (rng.random(80) < 0.7).astype(float)
    assert best_trust(arm([0.7] * 400, right.tolist())) == 0.0
    knowing = np.where(np.concatenate([right, rng.random(320) < 0.7]) > 0, 0.9, 0.2)
    assert best_trust(arm(knowing.tolist(), right.tolist())) > 0.8


def test_a_good_surrogate_narrows_the_interval() -> None:
    """Where the surrogate knows the answer the interval is much narrower than from the audits alone."""
    rng = np.random.default_rng(1)
    right = (rng.random(400) < 0.7).astype(float)
    knowing = arm(np.where(right > 0, 0.95, 0.1).tolist(), right[:60].tolist())
    low, high = estimate_assisted(knowing).ci95
    plain_low, plain_high = estimate_assisted(knowing, trust=0.0).ci95
    assert high - low < 0.7 * (plain_high - plain_low)
    assert low <= right.mean() <= high


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.floats(0.0, 1.0))
def test_estimate_stays_within_its_interval_and_bounds(seed: int, audits: int, accuracy: float) -> None:
    """Whatever the surrogate says, estimate and interval lie in [0, 1], the estimate inside."""
    rng = np.random.default_rng(seed)
    result = estimate_assisted(arm(rng.random(60).tolist(), (rng.random(audits) < accuracy).astype(float).tolist()))
    assert 0 <= result.ci95[0] <= result.estimate + 1e-9
    assert result.estimate - 1e-9 <= result.ci95[1] <= 1


def test_two_bursts_say_nothing() -> None:
    """Two bursts leave no freedom once a trust is fitted."""
    few = AuditedArm(np.ones(4), ("a", "a", "b", "b"), np.full(4, 0.5), np.arange(4), np.ones(4), np.ones(4))
    assert estimate_assisted(few).ci95 == (0.0, 1.0)


@pytest.mark.parametrize("broken", ["drawn", "correct", "surrogate", "weights"])
def test_nonsense_is_refused(broken: str) -> None:
    """A probability of zero, a verdict or a surrogate beyond 1 and a weight of zero raise SelectionError."""
    fields = {"weights": np.ones(3), "surrogate": np.full(3, 0.5), "correct": np.ones(2), "drawn": np.full(2, 0.5)}
    fields[broken] = np.full(len(fields[broken]), {"drawn": 0.0, "weights": 0.0}.get(broken, 1.5))
    with pytest.raises(SelectionError):
        AuditedArm(bursts=("a", "b", "c"), audited=np.array([0, 1]), **fields)


def test_nobody_predicts_its_own_burst() -> None:
    """Changing the answers of one burst does not change what the surrogate says of that burst."""
    rng = np.random.default_rng(2)
    features, bursts = rng.normal(size=(60, 2)), [f"b{row // 3}" for row in range(60)]
    audited = np.arange(0, 60, 2)
    correct = (rng.random(30) < 0.5).astype(float)
    chosen = Answers(rng.normal(size=(20, 2)), (rng.random(20) < 0.5).astype(float))
    flipped = correct.copy()
    flipped[:2] = 1 - flipped[:2]  # rows 0 and 2: burst b0
    before, after = (
        predict_correctness(features, bursts, audited, told, chosen, np.random.default_rng(3))
        for told in (correct, flipped)
    )
    assert np.array_equal(before[:3], after[:3])
    assert not np.array_equal(before[3:], after[3:])


def test_hunted_mistakes_do_not_darken_the_prediction() -> None:
    """Active answers that are all wrong lower the surrogate far less than they would as audits."""
    rng = np.random.default_rng(4)
    features = rng.normal(size=(400, 1))
    correct = np.where(rng.random(80) < 0.8, 1.0, 0.0)
    hunted = Answers(rng.normal(size=(100, 1)), np.zeros(100))
    said = predict_correctness(features, [str(row) for row in range(400)], np.arange(80), correct, hunted, rng)
    assert abs(said.mean() - correct.mean()) < 0.1


def test_logistic_fit_recovers_what_made_the_data() -> None:
    """With many rows the coefficients are those of the model that drew the outcomes."""
    rng = np.random.default_rng(5)
    features = rng.normal(size=(20_000, 2))
    chance = 1 / (1 + np.exp(-(0.5 + features @ [1.0, -2.0])))
    found = fit_logistic(features, (rng.random(20_000) < chance).astype(float))
    assert np.allclose(found, [0.5, 1.0, -2.0], atol=0.1)


@pytest.mark.parametrize("outcome", [[], [1.0, 1.0], [0.0, 0.0]])
def test_logistic_fit_is_finite_without_contrast(outcome: list[float]) -> None:
    """No answers, and answers that all agree, still give finite coefficients."""
    assert np.isfinite(fit_logistic(np.zeros((len(outcome), 3)), np.array(outcome))).all()


def told(*points: tuple[int, int]) -> list[FramesTold]:
    return [FramesTold(NOON + timedelta(minutes=minute), frames) for minute, frames in points]


def test_frames_between_reports_are_shared_out_by_time() -> None:
    """Frames come evenly between two reports, and none are assumed beyond the last."""
    reports = told((0, 100), (10, 200), (20, 600))
    minutes = [NOON + timedelta(minutes=minute) for minute in (5, 15, 60)]
    assert frames_between(reports, minutes[0], minutes[1]) == pytest.approx(250)
    assert frames_between(reports, minutes[1], minutes[2]) == pytest.approx(200)


@pytest.mark.parametrize("points", [[], [(0, 5)], [(0, 100), (10, 50)]])
def test_frames_that_cannot_be_told_are_not_guessed(points: list[tuple[int, int]]) -> None:
    """One report, none, or totals that fall back give None."""
    assert frames_between(told(*points), NOON, NOON + timedelta(minutes=5)) is None


def test_unchanged_frames_count_for_the_random_arm() -> None:
    """Frames that the scene gate skipped were open to the random arm; frames without a model were not."""
    counters = DeviceCounters(frames_inferred=10, frames_skipped={"unchanged": 30, "no_model": 5}, frames_seen=45)
    assert FramesTold.of(NOON, counters).frames == 40


def test_a_cut_link_does_not_make_a_camera_count_less() -> None:
    """After post-stratification each device weighs what it saw, whatever reached the bucket."""
    weighted = post_stratify(np.full(5, 50.0), ["a", "a", "a", "a", "b"], {"a": 300.0, "b": 300.0, "c": 200.0})
    assert weighted.weights.tolist() == [75.0] * 4 + [300.0]
    assert weighted.unseen_share == pytest.approx(0.25)


def test_one_silent_device_leaves_the_weights_alone() -> None:
    """When a device with captures has not told its frames, told and estimated totals are not mixed."""
    weights = np.array([50.0, 20.0])
    assert post_stratify(weights, ["a", "b"], {"a": 300.0, "b": None}).weights.tolist() == weights.tolist()


def test_captures_that_came_before_their_heartbeat_leave_the_weights_alone() -> None:
    """A link that was cut in between must not stop a round: the device has not told of these frames yet."""
    weights = np.array([50.0, 20.0])
    assert post_stratify(weights, ["a", "b"], {"a": 0.0, "b": 300.0}).weights.tolist() == weights.tolist()


def test_small_slices_are_too_few_to_tell() -> None:
    """A slice tells only with bursts enough and an interval narrow enough to mean something."""
    answers = {
        "wide": FieldEstimate(0.5, (0.1, 0.9), 8, 8),
        "few": FieldEstimate(0.9, (0.8, 0.95), 40, 4),
        "good": FieldEstimate(0.9, (0.8, 0.95), 40, 20),
        "none": None,
    }
    names = sorted(answers)
    found = estimate_slices({"device": names}, lambda rows: answers[names[int(np.flatnonzero(rows)[0])]])
    assert {each.name: each.told for each in found} == {"wide": False, "few": False, "good": True, "none": False}


def test_a_day_has_four_quarters() -> None:
    """Times fall into quarters of the UTC day."""
    assert {time_of_day(NOON + timedelta(hours=hour)) for hour in range(24)} == {
        "00-06 h UTC",
        "06-12 h UTC",
        "12-18 h UTC",
        "18-24 h UTC",
    }


def whole_report(confident: bool, audits: int = 60) -> FieldReport:
    """A report on two devices, one of them good and one bad."""
    rng = np.random.default_rng(6)
    n = 200
    good = np.arange(n) % 2 == 0
    confidence = np.where(good, 0.9, 0.6)
    captures = Captures(
        devices=tuple(np.where(good, "a", "b").tolist()),
        cameras=("front",) * n,
        at=(NOON,) * n,
        bursts=tuple(str(row) for row in range(n)),
        confidence=confidence if confident else None,
        classes=("shirt",) * n if confident else None,
        objected=np.zeros(n, np.bool_),
    )
    rows = rng.permutation(n)[:audits]
    correct = (rng.random(audits) < np.where(good, 0.95, 0.5)[rows]).astype(np.float64)
    judged = Audits(rows, Correctness(correct), np.full(audits, audits / n))
    report = report_field(captures, np.full(n, 0.05), judged, None, {"a": 3000.0, "b": 1000.0}, seed=0)
    assert report is not None
    return report


def test_a_report_weighs_devices_by_what_they_saw() -> None:
    """A device that saw three quarters of the frames makes three quarters of the estimate; slices tell them apart."""
    report = whole_report(confident=True)
    slices = {each.name: each.estimate for each in report.slices if each.by == "device"}
    assert slices["a"] is not None
    assert slices["b"] is not None
    assert slices["a"].estimate > slices["b"].estimate
    assert report.plain.estimate == pytest.approx(0.84, abs=0.07)
    assert report.trust is not None


@pytest.mark.parametrize(("confident", "audits"), [(False, 60), (True, 10)])
def test_without_a_confidence_or_audits_the_audits_speak_alone(confident: bool, audits: int) -> None:
    """Kinds without a confidence, and few audits, get the plain estimate."""
    report = whole_report(confident, audits)
    assert report.estimate == report.plain
    assert report.trust is None
    assert report.to_json()["estimate"] == report.plain.estimate


def test_coverage_and_gain_by_simulation() -> None:
    """With bursts alike and half of the cameras failing halfway, 95 % intervals cover 93 % and the error shrinks."""
    benchmark = load_benchmark("estimates")
    scores = benchmark.score_world(benchmark.World("small", fall=2.0, frames=700, cameras=3), runs=150, seed=1)
    assert scores["assisted"].coverage >= 0.93
    assert scores["plain"].coverage >= 0.93
    assert scores["assisted"].rmse < scores["plain"].rmse
    assert abs(scores["assisted"].bias) < 0.02
