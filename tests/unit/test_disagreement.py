"""Which device annotators contradict more than the others, from random-arm captures only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from curate.selection.disagreement import AuditedAnswer, DeviceFinding, doubt_above, watch_devices


def audits(
    device: str, wrong: list[float], release: str = "r1", burst: str | None = None, **classes: str
) -> list[AuditedAnswer]:
    """One answer for each number, by default each in a burst of its own."""
    return [
        AuditedAnswer(device, release, burst or f"{device}-{release}-{i}", value, **classes)
        for i, value in enumerate(wrong)
    ]


def mixed(device: str, n: int, share: float, release: str = "r1") -> list[AuditedAnswer]:
    """So many audits, that share of them contradicted."""
    return audits(device, [float(i < round(n * share)) for i in range(n)], release)


def by_device(found: list[DeviceFinding]) -> dict[str, DeviceFinding]:
    return {each.device: each for each in found}


TABLE = st.tuples(st.integers(1, 200), st.floats(0, 1)).map(lambda pair: (pair[0], round(pair[0] * pair[1])))


@given(TABLE, TABLE)
def test_the_doubt_is_fishers(mine: tuple[int, int], others: tuple[int, int]) -> None:
    """For whole counts the doubt is the p-value of Fisher's exact test, far out in its tail as well."""
    (n, k), (other_n, other_k) = mine, others
    expected = fisher_exact([[k, n - k], [other_k, other_n - other_k]], alternative="greater").pvalue
    assert doubt_above(k, n, other_k, other_n) == pytest.approx(expected, rel=0.02, abs=1e-8)


def test_a_device_that_is_contradicted_more_is_flagged() -> None:
    """Half wrong among devices at a tenth is flagged, with its rate, a lower bound and the others' rate."""
    found = by_device(watch_devices([*mixed("a", 40, 0.1), *mixed("b", 40, 0.1), *mixed("odd", 30, 0.5)]))
    assert [name for name, each in found.items() if each.flagged] == ["odd"]
    comparison = found["odd"].comparison
    assert comparison is not None
    assert comparison.rate == 0.5
    assert comparison.fleet_rate == pytest.approx(0.1)
    assert 0.3 < comparison.low < 0.5
    assert comparison.doubt < 0.001


def test_honest_fleets_are_left_in_peace() -> None:
    """Among fleets without differences hardly one in twenty has a flag."""
    rng = np.random.default_rng(0)
    flagged = 0
    for _ in range(300):
        answers = [a for device in "abcde" for a in audits(device, (rng.random(25) < 0.2).astype(float).tolist())]
        flagged += any(found.flagged for found in watch_devices(answers))
    assert flagged / 300 <= 0.07


def test_frames_of_one_burst_are_one_observation() -> None:
    """Thirty contradicted frames of a single burst prove nothing; thirty bursts do."""
    others = [*mixed("a", 40, 0.1), *mixed("b", 40, 0.1)]
    one = by_device(watch_devices([*others, *audits("odd", [1.0] * 30, burst="same")]))["odd"]
    many = by_device(watch_devices([*others, *audits("odd", [1.0] * 30)]))["odd"]
    assert (one.flagged, many.flagged) == (False, True)
    assert one.audits == 30
    assert one.comparison is not None
    assert one.comparison.bursts == 1


def test_an_old_release_is_compared_with_itself() -> None:
    """A device that was there only while the model was bad is not blamed for it."""
    old = [*mixed("early", 30, 0.5, "r1"), *mixed("a", 30, 0.5, "r1")]
    new = [*mixed("a", 60, 0.05, "r2"), *mixed("b", 60, 0.05, "r2")]
    found = by_device(watch_devices([*old, *new]))
    assert not found["early"].flagged
    assert found["early"].comparison is not None
    assert found["early"].comparison.fleet_rate == pytest.approx(0.5)


def test_alone_there_is_nothing_to_compare() -> None:
    """A single device, or one with releases of its own, has no finding but its count."""
    assert watch_devices(mixed("only", 20, 0.9)) == [DeviceFinding("only", 20, None, flagged=False)]
    assert watch_devices([]) == []


def test_a_flipped_class_is_named() -> None:
    """Where one device's cats are taken for dogs and nobody else's are, the confusion is named with both rates."""
    right = [a for name in ("a", "b", "odd") for a in audits(name, [0.0] * 30, said="cat", truth="cat")]
    flipped = [AuditedAnswer("odd", "r1", f"flip-{i}", 1.0, "dog", "cat") for i in range(12)]
    found = by_device(watch_devices([*right, *flipped]))
    assert found["odd"].flip == "cat taken for dog: 29% against 0%"
    assert found["a"].flip is None


def test_a_confusion_that_everybody_has_is_not_named() -> None:
    """What the model mixes up everywhere is the model's, not a device's."""
    answers = [
        AuditedAnswer(name, "r1", f"{name}-{i}", float(i < 8), "dog" if i < 8 else "cat", "cat")
        for name in "abc"
        for i in range(30)
    ]
    assert all(found.flip is None and not found.flagged for found in watch_devices(answers))


def test_shares_of_a_frame_count_as_shares() -> None:
    """Frames of boxes are wrong by degrees, and the rate is their mean."""
    found = by_device(watch_devices([*audits("a", [0.25] * 20), *audits("b", [0.75] * 20)]))
    assert found["b"].comparison is not None
    assert found["b"].comparison.rate == pytest.approx(0.75)
    assert found["b"].flagged
