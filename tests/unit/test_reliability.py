"""What dismissals are worth: learned from annotators, shrunk to the fleet, and nothing from who abuses them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.selection.reliability import Beta, JudgedDismissal, learn_fleet, learn_reliability

COUNTS = st.tuples(st.integers(0, 80), st.floats(0, 1)).map(lambda pair: (pair[0], round(pair[0] * pair[1])))


def judged(device: str, n: int, right: int, user: str | None = None, first: int = 0) -> list[JudgedDismissal]:
    """So many claims, each of another frame, the first of them right."""
    return [JudgedDismissal(device, user, f"{device}-{first + i}", i < right) for i in range(n)]


def test_without_a_verdict_a_dismissal_is_worth_half() -> None:
    """Nothing judged means even odds, with an interval that says how little is known."""
    standing = learn_reliability([], 0.5).of("new", "somebody")
    assert standing.weight == standing.evidence == pytest.approx(0.5)
    assert standing.low < 0.25
    assert standing.high > 0.75
    assert not standing.throttled


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), COUNTS, min_size=1))
def test_weights_are_between_the_fleet_and_the_own_record(counts: dict[str, tuple[int, int]]) -> None:
    """Each posterior mean lies between the prior's and the device's own rate, inside its interval, in [0, 1]."""
    claims = [claim for name, (n, k) in counts.items() for claim in judged(name, n, k)]
    learned = learn_reliability(claims, 0.5)
    assert 0.05 <= learned.fleet.mean <= 0.95
    assert 2.0 <= learned.fleet.strength <= 20.0
    for name, (n, k) in counts.items():
        standing = learned.of(name)
        own = k / n if n else learned.fleet.mean
        low, high = sorted((own, learned.fleet.mean))
        assert low - 1e-9 <= standing.weight <= high + 1e-9
        assert 0 <= standing.low <= standing.high <= 1
        assert standing.evidence in (0.0, standing.weight)


def test_ninety_percent_intervals_hold() -> None:
    """Over many simulated fleets the two bounds together enclose the true rates in about nine of ten cases."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(40):
        rates = rng.beta(3, 3, 15)
        sizes = rng.integers(0, 50, 15)
        claims = [
            claim
            for number, (rate, n) in enumerate(zip(rates, sizes, strict=True))
            for claim in judged(str(number), int(n), int(rng.binomial(n, rate)))
        ]
        learned = learn_reliability(claims, 0.5)
        held += [learned.of(str(i)).low <= rate <= learned.of(str(i)).high for i, rate in enumerate(rates)]
    assert 0.85 <= np.mean(held) <= 0.95


def test_the_fleets_spread_decides_how_much_is_borrowed() -> None:
    """Devices that are all alike lend each other much, devices that differ little."""
    alike = learn_fleet([(40, 20)] * 8)
    unlike = learn_fleet([(40, 2), (40, 38)] * 4)
    assert alike.mean == pytest.approx(unlike.mean, abs=0.02)
    assert alike.strength > 3 * unlike.strength


def test_one_device_cannot_outvote_the_fleet() -> None:
    """Three thousand mistaken dismissals of one device leave a new one's at a third, where pooling would say 3 %."""
    assert learn_fleet([*[(30, 18)] * 6, (3000, 0)]).mean > 0.33


def test_who_dismisses_what_is_right_is_throttled() -> None:
    """A device whose 40 dismissals were all mistaken adds nothing, whoever is named; honest ones keep their weight."""
    honest = [claim for name in "abc" for claim in judged(name, 30, 17, "ann")]
    learned = learn_reliability([*honest, *judged("bad", 40, 0, "eve")], 0.5)
    assert list(learned.throttled) == ["bad"]
    for user in (None, "eve", "made-up"):
        assert learned.of("bad", user).evidence == 0.0
    assert learned.of("a", "ann").evidence > 0.5
    assert learned.of("bad").high < learned.floor


def test_a_few_mistakes_throttle_nobody() -> None:
    """Five mistaken dismissals lower a weight, but are no proof."""
    honest = [claim for name in "abc" for claim in judged(name, 30, 17)]
    standing = learn_reliability([*honest, *judged("new", 5, 0)], 0.5).of("new")
    assert not standing.throttled
    assert 0 < standing.weight < 0.45


def test_a_good_model_makes_nobody_an_abuser() -> None:
    """Where everybody's dismissals are mostly mistaken, because little is wrong, their weight falls and none is out."""
    learned = learn_reliability([claim for name in "abcde" for claim in judged(name, 60, 6)], 0.5)
    assert learned.throttled == {}
    assert learned.of("a").weight == pytest.approx(0.11, abs=0.04)


def test_throttling_can_be_switched_off() -> None:
    """With a floor of nothing the weight still falls, and that is all."""
    standing = learn_reliability([*judged("good", 30, 20), *judged("bad", 60, 0)], 0.0).of("bad")
    assert not standing.throttled
    assert standing.weight < 0.05


def test_one_person_of_a_device_can_be_out() -> None:
    """Who abuses a shared device is not believed, while the others on it are."""
    shared = [*judged("cam", 40, 30, "ann"), *judged("cam", 40, 0, "eve", first=100)]
    learned = learn_reliability([*shared, *judged("other", 40, 24, "bob")], 0.5)
    assert list(learned.throttled) == ["cam/eve"]
    assert learned.of("cam", "eve").evidence == 0.0
    assert learned.of("cam", "ann").weight > 0.6


def test_the_only_person_of_a_device_is_the_device() -> None:
    """With one person both standings are the same."""
    learned = learn_reliability([*judged("cam", 12, 9, "ann"), *judged("other", 20, 8, "bob")], 0.5)
    assert learned.of("cam", "ann").weight == pytest.approx(learned.of("cam").weight)
    assert learned.of("cam", "ann").high == pytest.approx(learned.of("cam").high)


def test_made_up_people_are_worth_no_more_than_their_device() -> None:
    """A new name on a device with a bad record starts from that record, not from the fleet's."""
    learned = learn_reliability([*judged("bad", 15, 1, "eve"), *judged("good", 30, 24, "ann")], 0.5)
    assert learned.of("bad", "stranger").weight <= learned.of("bad").weight + 1e-9
    assert learned.of("good", "stranger").weight > learned.of("bad", "stranger").weight


def test_repeating_a_claim_proves_nothing() -> None:
    """The same frame dismissed a hundred times, under as many names, counts once for the device."""
    once = learn_reliability(judged("cam", 1, 1), 0.5)
    claim = judged("cam", 1, 1)[0]
    often = [JudgedDismissal("cam", f"user-{i}", claim.claim, right=True) for i in range(100)]
    assert learn_reliability([*often, *often], 0.5).of("cam").weight == pytest.approx(once.of("cam").weight)


def test_an_order_says_nothing() -> None:
    """Shuffled verdicts teach the same."""
    claims = [*judged("a", 20, 11, "x"), *judged("b", 9, 2, "y"), *judged("a", 5, 0, "z", first=50)]
    shuffled = [claims[i] for i in np.random.default_rng(1).permutation(len(claims))]
    assert learn_reliability(shuffled, 0.5) == learn_reliability(claims, 0.5)


def test_a_belief_is_updated_by_counting() -> None:
    """Beta(2, 3) after four right of five is Beta(6, 4), whose median is where half the mass lies."""
    belief = Beta(2, 3).updated(5, 4)
    assert (belief.alpha, belief.beta, belief.mean) == (6, 4, 0.6)
    draws = np.random.default_rng(0).beta(6, 4, 20_000)
    assert np.mean(draws < belief.quantile(0.5)) == pytest.approx(0.5, abs=0.015)
