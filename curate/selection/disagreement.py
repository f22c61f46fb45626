"""Which device's random captures annotators contradict more than the rest of the fleet's, and in which direction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

FALSE_ALARMS = 0.05
"""Chance that any device of a fleet without differences is flagged at one look."""
CONFIDENCE = 0.95
_LEVELS = special.expit(np.linspace(-20.0, 20.0, 401))
"""Where the distribution of a rate is looked at: densely in both tails, which is where small doubts are made."""


@dataclass(frozen=True)
class AuditedAnswer:
    """What a device's model said of a random-arm capture, held against what people settled on.

    `disagreement` in [0, 1]: 0 where they agree. `release` made the answer. Frames of one `burst` are one observation.
    `said` and `truth` are the two classes, None where a frame has no one class.
    """

    device: str
    release: str
    burst: str
    disagreement: float
    said: str | None = None
    truth: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A device's rate in `bursts` observations against the rest of the fleet's, at the device's own mix of releases.

    `low` bounds the rate from below with confidence 0.95 (Clopper-Pearson); `doubt` is how likely a difference of that
    size would be if there was none.
    """

    bursts: int
    rate: float
    low: float
    fleet_rate: float
    doubt: float


@dataclass(frozen=True)
class DeviceFinding:
    """How one device stands. `flip` names the confusion that is most its own, such as "cat said, dog true"."""

    device: str
    audits: int
    comparison: Comparison | None
    """None where no other device has answers of the same releases."""
    flagged: bool
    flip: str | None = None


def watch_devices(answers: Sequence[AuditedAnswer]) -> list[DeviceFinding]:
    """Compare each device with the rest of the fleet, and return the findings by device.

    Only random-arm captures may come in, and all of them that were answered: what was chosen for looking wrong would
    say nothing. A device is flagged when its rate is surely above the rest's, with `FALSE_ALARMS` shared out over the
    devices (Bonferroni), and a confusion is named when the same holds for it, over devices and confusions. A flag says
    that annotators and this device's model see different things: a hard view, another light, or poison. A person has to
    look; nothing is decided by it.
    """
    audits = Counter(answer.device for answer in answers)
    observed, flips = _observe(answers), _find_flips(answers)
    found = []
    for device in sorted(audits):
        comparison = _compare(observed, device)
        flagged = comparison is not None and comparison.doubt < FALSE_ALARMS / len(audits)
        found.append(DeviceFinding(device, audits[device], comparison, flagged, flips.get(device)))
    return found


Observed = dict[str, dict[str, tuple[int, float]]]
"""By release and device: how many bursts were observed, and the sum of their mean disagreements."""


def _observe(answers: Iterable[AuditedAnswer]) -> Observed:
    """Frames of one burst are alike: their mean is one observation."""
    bursts: dict[tuple[str, str, str], list[float]] = {}
    for answer in answers:
        bursts.setdefault((answer.release, answer.device, answer.burst), []).append(answer.disagreement)
    observed: Observed = {}
    for (release, device, _), values in sorted(bursts.items()):
        n, k = observed.setdefault(release, {}).get(device, (0, 0.0))
        observed[release][device] = (n + 1, k + sum(values) / len(values))
    return observed


def _compare(observed: Observed, device: str) -> Comparison | None:
    """Compare one device with the others; None where there is nothing to compare.

    The rest's rate is standardised to the device's own mix of releases, whose answers are not equally good; releases
    that only one side used are left out.
    """
    pairs = []
    for release in observed.values():
        own = release.get(device, (0, 0.0))
        rest = (sum(n for n, _ in release.values()) - own[0], sum(k for _, k in release.values()) - own[1])
        if own[0] and rest[0]:
            pairs.append((own, rest))
    if not pairs:
        return None
    n, k = sum(own[0] for own, _ in pairs), sum(own[1] for own, _ in pairs)
    fleet_rate = sum(own[0] / n * max(rest[1] / rest[0], 0.0) for own, rest in pairs)
    # As many observations as would leave a plain rate as uncertain as this weighted one.
    fleet_n = 1.0 / sum((own[0] / n) ** 2 / rest[0] for own, rest in pairs)
    low = float(special.betaincinv(k, n - k + 1.0, 1.0 - CONFIDENCE)) if k else 0.0
    return Comparison(n, k / n, low, fleet_rate, doubt_above(k, n, fleet_rate * fleet_n, fleet_n))


def doubt_above(k: float, n: float, other_k: float, other_n: float) -> float:
    """Return the one-sided p-value of Fisher's exact test that k of n is a higher rate than other_k of other_n.

    It equals P(X <= Y) for X of Beta(k, n - k + 1) and Y of Beta(other_k + 1, other_n - other_k) (Altham 1969, JRSS B
    31, 261-269), which holds for shares as well as for counts. By the trapezoid rule over Y's quantiles.
    """
    if k <= 0 or other_k >= other_n:
        return 1.0
    y = special.betaincinv(other_k + 1.0, other_n - other_k, _LEVELS)
    return float(min(np.trapezoid(special.betainc(k, n - k + 1.0, y), _LEVELS), 1.0))


def _find_flips(answers: Sequence[AuditedAnswer]) -> dict[str, str]:
    """Name each device's surest confusion, if it has one beyond the fleet's."""
    told = [answer for answer in answers if answer.truth is not None and answer.said is not None]
    confused = Counter((each.truth, each.said, each.device) for each in told if each.truth != each.said)
    suspects: dict[tuple[str | None, str | None], list[str]] = {}
    for truth, said, device in sorted(name for name, count in confused.items() if count > 1):
        suspects.setdefault((truth, said), []).append(device)
    surest: dict[str, tuple[float, str]] = {}
    for (truth, said), devices in suspects.items():
        shares = [replace(each, disagreement=float(each.said == said)) for each in told if each.truth == truth]
        observed = _observe(shares)
        for device in devices:
            found = _compare(observed, device)
            if found is not None and found.doubt < FALSE_ALARMS / len(confused):
                text = f"{truth} taken for {said}: {found.rate:.0%} against {found.fleet_rate:.0%}"
                surest[device] = min(surest.get(device, (1.0, "")), (found.doubt, text))
    return {device: text for device, (_, text) in surest.items()}
