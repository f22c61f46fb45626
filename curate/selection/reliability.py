"""What a dismissal is worth: learned for each device and person from what annotators said of what they dismissed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from scipy.special import betaincinv, betaln

from curate.selection.base import Float64Array

FLEET_MEANS: Final[Float64Array] = np.linspace(0.05, 0.95, 37, dtype=np.float64)
FLEET_STRENGTHS: Final[Float64Array] = np.geomspace(2.0, 20.0, 16, dtype=np.float64)
"""Bounds of the fleet's prior: never so sure that a device's own 20 verdicts count less than it, never without weight.
With nothing judged yet its mean is 0.5, about what imperfect people's dismissals of an average model are worth."""
CREDIBILITY = 0.95

S = TypeVar("S", bound=Hashable)
User = tuple[str, str]
"""Device and person: a name is only what the app on that device says."""


@dataclass(frozen=True)
class JudgedDismissal:
    """A dismissal whose sample annotators have answered. `claim` names what was called wrong: a frame, or a box."""

    device: str
    user: str | None
    claim: Hashable
    right: bool
    """The annotators' answer differs from the prediction, too."""


@dataclass(frozen=True)
class Standing:
    """What dismissals of one source are worth.

    `weight` is the posterior mean of P(prediction wrong | dismissed), `low` and `high` bound it from one side each with
    probability 0.95; `right` of `judged` claims were right. The dismissals of a `throttled` source are evidence of
    nothing.
    """

    judged: int
    right: int
    weight: float
    low: float
    high: float
    throttled: bool = False

    @property
    def evidence(self) -> float:
        """What a dismissal adds to a selection, in [0, 1]."""
        return 0.0 if self.throttled else self.weight


@dataclass(frozen=True)
class Beta:
    """A belief about a rate."""

    alpha: float
    beta: float

    @property
    def mean(self) -> float:
        """The expected rate."""
        return self.alpha / self.strength

    @property
    def strength(self) -> float:
        """How many observations it is worth."""
        return self.alpha + self.beta

    def updated(self, judged: float, right: float) -> Beta:
        """The belief after so many observations."""
        return Beta(self.alpha + right, self.beta + judged - right)

    def quantile(self, level: float) -> float:
        """The rate below which the true one lies with that probability."""
        return float(betaincinv(self.alpha, self.beta, level))


@dataclass(frozen=True)
class Reliability:
    """What the dismissals of a fleet are worth. `fleet` is what is believed of a device nobody has judged."""

    fleet: Beta
    floor: float
    """A source that is surely right less often than this is throttled."""
    devices: Mapping[str, Standing]
    users: Mapping[User, Standing]
    strangers: Mapping[str, Standing]
    """What a person without a record is worth on a device with one."""

    def of(self, device: str, user: str | None = None) -> Standing:
        """Return the standing of a person on a device, or of the device where no person is named."""
        if device not in self.devices:
            return _standing(self.fleet, 0, 0, self.floor)
        if user is None:
            return self.devices[device]
        return self.users.get((device, user), self.strangers[device])

    @property
    def throttled(self) -> dict[str, Standing]:
        """The devices and `device/person`s that are not believed, by name."""
        found = {name: standing for name, standing in self.devices.items() if standing.throttled}
        people = {user: standing for user, standing in self.users.items() if user[0] not in found}
        found |= {"/".join(user): standing for user, standing in people.items() if standing.throttled}
        return dict(sorted(found.items()))


def learn_reliability(judged: Iterable[JudgedDismissal], throttle_below: float) -> Reliability:
    """Learn what the dismissals of each device, and of each person on it, are worth.

    Each source's rate of right dismissals has a Beta posterior (Beta-Bernoulli). A device's prior is the fleet's
    (`learn_fleet`); a person's has the mean of what the others on the device have shown, shrunk to the fleet, and the
    fleet's strength. So a device cannot make up people to be believed more than it is, and of a device with one person
    both are the same. A claim counts once for a device and once for a person, however often it was made.

    Throttled is a source whose 95 % upper bound lies below `throttle_below` times the fleet's mean: it is measured
    against the others, because with a good model even honest dismissals are mostly mistaken, and their weight says so
    already. Who is on a throttled device is throttled, too. `throttle_below` 0 throttles nobody.
    """
    claims = set(judged)
    by_device = _tally((each.device, each.claim, each.right) for each in claims)
    by_user = _tally(((each.device, each.user), each.claim, each.right) for each in claims if each.user is not None)
    fleet = learn_fleet(list(by_device.values()))
    floor = throttle_below * fleet.mean
    devices = {name: _standing(fleet, *counts, floor) for name, counts in by_device.items()}
    users: dict[User, Standing] = {}
    for (device, user), (n, k) in by_user.items():
        all_n, all_k = by_device[device]
        prior = _prior_of_person(fleet, all_n - n, all_k - k)
        users[device, user] = _standing(prior, n, k, floor, within=devices[device])
    strangers = {
        device: _standing(_prior_of_person(fleet, *counts), 0, 0, floor, within=devices[device])
        for device, counts in by_device.items()
    }
    return Reliability(fleet, floor, devices, users, strangers)


def learn_fleet(counts: Sequence[tuple[int, int]]) -> Beta:
    """Learn how rates are spread over devices, from (observations, successes) of each: an empirical-Bayes prior.

    Marginal likelihood of the beta-binomial model on a bounded grid of mean and strength (the sum of both parameters,
    in even steps of its logarithm), of which the posterior mean is taken: with a handful of devices the maximum lies on
    a border (Gelman et al., Bayesian Data Analysis, 3rd edition, section 5.3, where the hyperprior is unbounded). A
    device counts through its likelihood: one that says much does not outvote the others.
    """
    mean, strength = np.meshgrid(FLEET_MEANS, FLEET_STRENGTHS, indexing="ij")
    alpha, beta = mean * strength, (1.0 - mean) * strength
    log_likelihood = np.zeros_like(alpha)
    for (n, k), devices in Counter(counts).items():
        log_likelihood += devices * (betaln(alpha + k, beta + n - k) - betaln(alpha, beta))
    belief = np.exp(log_likelihood - log_likelihood.max())
    belief /= belief.sum()
    m, s = float((belief * mean).sum()), float(np.exp((belief * np.log(strength)).sum()))
    return Beta(m * s, (1.0 - m) * s)


def _prior_of_person(fleet: Beta, n: int, k: int) -> Beta:
    """What is believed of a person of whose device the others made n claims, k of them right."""
    mean = fleet.updated(n, k).mean
    return Beta(mean * fleet.strength, (1.0 - mean) * fleet.strength)


def _standing(prior: Beta, n: int, k: int, floor: float, *, within: Standing | None = None) -> Standing:
    belief = prior.updated(n, k)
    high = belief.quantile(CREDIBILITY)
    distrusted = high < floor or (within is not None and within.throttled)
    return Standing(n, k, belief.mean, belief.quantile(1.0 - CREDIBILITY), high, distrusted)


def _tally(claims: Iterable[tuple[S, Hashable, bool]]) -> dict[S, tuple[int, int]]:
    """Count distinct claims and right ones by source."""
    right_of = {(source, claim): right for source, claim, right in claims}
    made = Counter(source for source, _ in right_of)
    right = Counter(source for (source, _), was_right in right_of.items() if was_right)
    return {source: (made[source], right[source]) for source in sorted(made, key=repr)}
