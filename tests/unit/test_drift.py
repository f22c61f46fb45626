"""Watching a camera for a change of its world."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import SelectionError
from curate.selection.drift.martingale import POWERS, RARE, conformal_p_values, gather_evidence
from curate.selection.drift.watch import DriftPolicy, Sights, pick_representatives, split_reference, watch_camera

MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = DriftPolicy(spacing_s=900, min_reference=40)


def sights(count: int, *, changed_from: int | None = None, seed: int = 0) -> Sights:
    """Independent captures, one in 15 minutes; from a row on the embeddings lie elsewhere."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 8)) + 3
    if changed_from is not None:
        vectors[changed_from:, 0] += 8
    at = tuple(MIDNIGHT + timedelta(minutes=15 * row) for row in range(count))
    return Sights(vectors.astype(np.float32), rng.random(count), at)


def test_p_values_are_uniform_without_a_change() -> None:
    """Exchangeable scores give p-values spread evenly over (0, 1), ties included."""
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 5, 3000).astype(np.float64)
    p_values = conformal_p_values(scores[:100], ["day"] * 100, scores[100:], ["day"] * 2900, rng)
    counts = np.histogram(p_values, bins=10, range=(0, 1))[0]
    assert counts.sum() == 2900
    assert (abs(counts - 290) < 70).all()


def test_kinds_are_ranked_among_themselves() -> None:
    """A score that is high by day and usual at night has a small p-value only by day."""
    rng = np.random.default_rng(2)
    calibration = np.concatenate([rng.random(50), rng.random(50) + 10])
    kinds = ["day"] * 50 + ["night"] * 50
    by_day, at_night = conformal_p_values(calibration, kinds, np.array([10.5, 10.5]), ["day", "night"], rng)
    assert by_day < 0.02
    assert at_night > 0.1


def test_every_bet_is_worth_one_on_average() -> None:
    """Over uniform p-values the first bets pay 1 on average, so nothing is gained by betting alone."""
    grid = ((np.arange(100_000) + 0.5) / 100_000)[:, None]
    paid = np.array([gather_evidence(p[None, :], np.array([True]), 10.0).gathered[0] for p in grid[::100]])
    assert paid.mean() == pytest.approx(1.0, abs=0.02)


def test_no_single_capture_raises_the_alarm() -> None:
    """The rarest capture pays a bounded sum: a scene has to last before it counts as a change."""
    once = gather_evidence(np.full((1, 4), 1e-9), np.array([True] * 4), POLICY.threshold)
    most = max(power * RARE ** (power - 1) / (1 - (1 - power) * RARE**power) for power in POWERS)
    assert once.gathered[0] <= most
    assert once.alarm is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_sum_is_shiryaev_and_roberts(seed: int) -> None:
    """What is gathered follows R_n = (R_{n-1} + 1) e_n, bet by bet."""
    p_values = np.random.default_rng(seed).random((20, 1))
    sums = np.zeros(len(POWERS))
    for p, gathered in zip(p_values[:, 0], gather_evidence(p_values, np.array([False]), 1e9).gathered, strict=True):
        bets = [k * max(p, RARE) ** (k - 1) / (1 - (1 - k) * RARE**k) for k in POWERS]
        sums = (sums + 1) * np.array(bets)
        assert gathered == pytest.approx(sums.mean())


def test_a_change_is_seen_within_hours() -> None:
    """Embeddings that move far raise the alarm within 20 captures, and not before they move."""
    found = watch_camera(sights(400, changed_from=300), 200, POLICY, seed=0)
    assert found.since is not None
    assert MIDNIGHT + timedelta(minutes=15 * 300) <= found.since <= MIDNIGHT + timedelta(minutes=15 * 320)
    assert found.alarm
    assert found.evidence >= 1


def test_doubt_alone_is_a_change() -> None:
    """A model that becomes unsure raises the alarm though its embeddings stay."""
    still = sights(500)
    doubts = still.scores.copy()
    doubts[300:] = 0.95 + 0.05 * doubts[300:]
    assert watch_camera(Sights(still.embeddings, doubts, still.at), 200, POLICY, seed=0).alarm


def test_false_alarms_are_rare() -> None:
    """Of 40 independent camera-fortnights without a change at most 3 raise an alarm."""
    alarms = sum(watch_camera(sights(200 + 1344, seed=run), 200, POLICY, seed=run).alarm for run in range(40))
    assert alarms <= 3


def test_the_answer_depends_on_the_seed_alone() -> None:
    """The same captures and the same seed give the same finding."""
    first, second = (watch_camera(sights(300, seed=3), 100, POLICY, seed=5) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("count", "reference", "told"), [(0, 0, False), (30, 30, False), (100, 100, True)])
def test_too_little_is_not_told(count: int, reference: int, told: bool) -> None:
    """Without a reference nothing is told, and with nothing after it there is no evidence."""
    found = watch_camera(sights(count), reference, POLICY, seed=0)
    assert (found.told, found.alarm, found.evidence) == (told, False, 0.0)


def test_a_burst_is_one_observation() -> None:
    """Of all captures in one block of time the first stands for the rest, in order of time."""
    at = [MIDNIGHT + timedelta(seconds=s) for s in (1000, 10, 5, 950, 2000)]
    assert pick_representatives(at, 900.0) == [2, 3, 4]


def test_the_reference_grows_until_it_is_large_enough() -> None:
    """What came before the release is the reference, and if that is little, the first captures after it, too."""
    at = [MIDNIGHT + timedelta(minutes=15 * row) for row in range(100)]
    assert split_reference(at, at[60], POLICY) == 60
    assert split_reference(at, at[10], POLICY) == 40
    assert split_reference(at[:20], at[10], POLICY) == 20


def test_a_month_bounds_the_false_alarms() -> None:
    """The bar is the number of captures in which the policy allows one false alarm."""
    assert DriftPolicy(spacing_s=3600, false_alarms_per_month=0.5).threshold == 1440


def test_numbers_that_are_none_are_refused() -> None:
    """NaN in an embedding or a ragged column raises SelectionError."""
    good = sights(5)
    with pytest.raises(SelectionError):
        Sights(np.full((5, 8), np.nan, np.float32), good.scores, good.at)
    with pytest.raises(SelectionError):
        Sights(good.embeddings, good.scores[:3], good.at)
