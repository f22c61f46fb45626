"""How far each device and person can be believed, by what annotators have said so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from curate.catalog.models import IMPORTED, DeviceRow, FeedbackRow, Sample, SampleStatus
from curate.catalog.splits import assign_groups
from curate.catalog.verdicts import is_contradicted, score_prediction
from curate.contracts.prediction import ClassificationPrediction
from curate.errors import CatalogError
from curate.selection.base import SelectionPolicy
from curate.selection.disagreement import AuditedAnswer, DeviceFinding, watch_devices
from curate.selection.reliability import JudgedDismissal, Reliability, Standing, learn_reliability
from flows._labels import agreed_labels
from flows._wiring import Services


class Sent(Protocol):
    """Which capture of which device."""

    @property
    def sample_id(self) -> str:
        """The capture's id."""

    @property
    def device_id(self) -> str:
        """Who sent it."""


@dataclass(frozen=True, eq=False)
class FleetTrust:
    """What a selection needs to know of who sent what."""

    reliability: Reliability
    objections: Mapping[str, tuple[FeedbackRow, ...]]
    """By sample: the verdicts that call its prediction wrong."""
    answers: tuple[AuditedAnswer, ...]
    """Audits that people have answered."""
    devices: Mapping[str, DeviceRow]
    policy: SelectionPolicy

    def evidence(self, samples: Sequence[Sent]) -> NDArray[np.float64]:
        """Return how strongly people's verdicts say that each prediction is wrong, in [0, 1]: float64 [N]."""
        return np.array([max((s.evidence for s in self._standings(each)), default=0.0) for each in samples], np.float64)

    def sites(self, samples: Sequence[Sent]) -> NDArray[np.int64] | None:
        """Return the number of each sample's site, -1 where it is not known: int64 [N]; None where none is."""
        sites = {name: row.site for name, row in self.devices.items() if row.site is not None}
        numbers = {site: number for number, site in enumerate(sorted(set(sites.values())))}
        if not numbers:
            return None
        return np.array([numbers.get(sites.get(each.device_id, ""), -1) for each in samples], np.int64)

    def probation(self, samples: Sequence[Sent]) -> NDArray[np.bool_] | None:
        """Return which samples are of devices on probation, bool [N]; None where nobody is proven to compare with."""
        if not (proven := self.proven):
            return None
        free = {*proven, IMPORTED}
        return np.array([each.device_id not in free for each in samples], np.bool_)

    @property
    def proven(self) -> frozenset[str]:
        """Devices with enough answered audits."""
        audits = Counter(answer.device for answer in self.answers)
        return frozenset(name for name in self.devices if audits[name] >= self.policy.probation_labels)

    def explain(self, sample: Sent | None) -> str | None:
        """Say what the dismissals of a sample are worth, None where there are none."""
        standings = [] if sample is None else self._standings(sample)
        if not standings or sample is None:
            return None
        best = max(standings, key=lambda standing: (standing.evidence, standing.weight))
        said = describe_standing(best)
        return f"{sample.device_id}'s dismissal counts for nothing: {said}" if best.throttled else f"dismissals: {said}"

    def _standings(self, sample: Sent) -> list[Standing]:
        verdicts = self.objections.get(sample.sample_id, ())
        return [self.reliability.of(verdict.device_id, verdict.user) for verdict in verdicts]


def describe_standing(standing: Standing) -> str:
    """Say in words what a source's dismissals are worth."""
    heard = f"{standing.right} of {standing.judged} judged were right" if standing.judged else "none was judged yet"
    return f"right {standing.weight:.0%} of the time ({standing.low:.0%} to {standing.high:.0%}; {heard})"


def read_trust(wired: Services) -> FleetTrust:
    """Learn from every answered sample of the devices that count."""
    labelled = [each for each in wired.catalog.samples(status=SampleStatus.LABELLED) if each.prediction is not None]
    labels = agreed_labels(wired, [each.sample_id for each in labelled])
    scores = {each.sample_id: _score(wired, each, labels.get(each.sample_id)) for each in labelled}
    judged = [each for each in labelled if scores[each.sample_id] is not None]
    objections = {
        sample_id: tuple(row for row in rows if row.says_wrong)
        for sample_id, rows in wired.catalog.feedback_by_sample().items()
    }
    policy = wired.settings.selection
    claims = [claim for each in judged for claim in _judge(wired, each, labels[each.sample_id], objections)]
    return FleetTrust(
        learn_reliability(claims, policy.throttle_below),
        objections,
        tuple(_audited(wired, judged, labels, scores)),
        {each.device_id: each for each in wired.catalog.devices()},
        policy,
    )


def trust_rows(wired: Services) -> list[dict[str, Any]]:
    """One row a device, those that need a look first."""
    trust = read_trust(wired)
    findings = {found.device: found for found in watch_devices(trust.answers)}
    rows = [_row(trust, name, findings.get(name)) for name in trust.devices]
    return sorted(rows, key=lambda row: (row["look"] == "", row["device"]))


def _score(wired: Services, sample: Sample, label: Mapping[str, Any] | None) -> float | None:
    """Return how right the device's answer was, None where that cannot be told."""
    if sample.prediction is None or label is None:
        return None
    try:
        return score_prediction(sample.prediction, label, wired.settings.labels.class_names)
    except CatalogError:  # an answer of a release that knew other classes says nothing about who sent it
        return None


def _judge(
    wired: Services, sample: Sample, label: Mapping[str, Any], objections: Mapping[str, tuple[FeedbackRow, ...]]
) -> list[JudgedDismissal]:
    """Hold what people called wrong against what annotators answered; a box that is not there says nothing."""
    names, judged = wired.settings.labels.class_names, []
    if sample.prediction is None:
        return []
    for verdict in objections.get(sample.sample_id, ()):
        right = is_contradicted(sample.prediction, verdict.box_id, label, names)
        if right is not None:
            claim = (sample.sample_id, verdict.box_id)
            judged.append(JudgedDismissal(sample.device_id, verdict.user, claim, right))
    return judged


def _audited(
    wired: Services,
    samples: Sequence[Sample],
    labels: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, float | None],
) -> list[AuditedAnswer]:
    """What devices answered to the audits among the samples."""
    audits = wired.catalog.audited()
    bursts = assign_groups(samples, {}, wired.settings.split.block_s)
    names = wired.settings.labels.class_names
    answers = []
    for sample in samples:
        said, score = sample.prediction, scores[sample.sample_id]
        if sample.sample_id in audits and score is not None:
            answers.append(
                AuditedAnswer(
                    device=sample.device_id,
                    release=sample.release_id or "",
                    burst=bursts[sample.sample_id],
                    disagreement=1.0 - score,
                    said=names[said.class_index] if isinstance(said, ClassificationPrediction) else None,
                    truth=labels[sample.sample_id].get("class"),
                )
            )
    return answers


def _row(trust: FleetTrust, name: str, found: DeviceFinding | None) -> dict[str, Any]:
    device, standing = trust.devices[name], trust.reliability.of(name)
    compared = found.comparison if found else None
    persons = [user for user in trust.reliability.throttled if user.startswith(f"{name}/")]
    notes = [
        "unlearned" if device.unlearned_at else "",
        "annotators contradict it more than the others" if found and found.flagged else "",
        (found.flip or "") if found else "",
        "its dismissals count for nothing" if standing.throttled else "",
        f"not believed: {', '.join(persons)}" if persons else "",
    ]
    return {
        "device": name,
        "site": device.site,
        "dismissals right": f"{standing.right} of {standing.judged}",
        "worth": round(standing.evidence, 2),
        "90 %": f"{standing.low:.2f} to {standing.high:.2f}",
        "audits": found.audits if found else 0,
        "in bursts": compared.bursts if compared else None,
        "contradicted": round(compared.rate, 2) if compared else None,
        "at least": round(compared.low, 2) if compared else None,
        "others": round(compared.fleet_rate, 2) if compared else None,
        "probation": "" if name in trust.proven else "yes",
        "look": "; ".join(note for note in notes if note),
    }
