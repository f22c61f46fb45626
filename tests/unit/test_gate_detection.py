"""The gate on average precision: how often it errs on bursty video."""

from __future__ import annotations

import numpy as np
import pytest

from curate.metrics.average_precision import DetectionEvidence
from curate.release.gate import GatePolicy, judge_candidate
from curate.selection.estimate.field import estimate_field

BLOCKS = 20


def detectors(rng: np.random.Generator, frames_per_block: int, gains: tuple[float, ...]) -> list[DetectionEvidence]:
    """Detectors of the given skill on the same frames: people stay through a block and stay hard or easy to see."""
    frame: list[int] = []
    found: list[bool] = []
    truths: list[int] = []
    scores: list[list[float]] = [[] for _ in gains]
    for _ in range(BLOCKS):
        people = rng.normal(size=int(rng.poisson(6)))
        for _ in range(frames_per_block):
            false = int(rng.poisson(1))
            seen = 1.0 + people + rng.normal(size=len(people))
            frame += [len(truths)] * (len(people) + false)
            found += [True] * len(people) + [False] * false
            noise = rng.normal(size=false) - 1.0
            for model, gain in enumerate(gains):
                odd = rng.normal(0, 0.4, len(people) + false)
                scores[model] += (np.concatenate([seen + gain, noise]) + odd).tolist()
            truths.append(len(people))
    return [evidence(np.array(frame), np.array(found), np.array(own), np.array(truths)) for own in scores]


def evidence(frame: np.ndarray, found: np.ndarray, scores: np.ndarray, truths: np.ndarray) -> DetectionEvidence:
    shown = np.flatnonzero(scores > -1.2)
    order = shown[np.argsort(-scores[shown], kind="stable")]
    matched = np.repeat(found[None, order], 10, axis=0)
    return DetectionEvidence(frame[order], np.zeros(len(order), np.int64), scores[order], matched, truths[:, None])


def promoted(gain: float, runs: int = 25) -> float:
    rng, count = np.random.default_rng(int(100 * (5 + gain))), 0
    blocks = [f"b{i // 3}" for i in range(3 * BLOCKS)]
    for _ in range(runs):
        incumbent, candidate = detectors(rng, 3, (0.0, gain))
        count += judge_candidate(
            candidate, incumbent, np.ones(60), blocks, GatePolicy(), int8_ratio=0.3, parity=0.99
        ).promote
    return count / runs


@pytest.mark.parametrize(("gain", "at_least", "at_most"), [(-0.6, 0.0, 0.15), (-1.0, 0.0, 0.03), (0.5, 0.9, 1.0)])
def test_operating_characteristic(gain: float, at_least: float, at_most: float) -> None:
    """On sixty frames in twenty blocks a detector clearly worse is refused, one clearly better promoted."""
    assert at_least <= promoted(gain) <= at_most


def test_an_equal_detector_leaves_room_for_error() -> None:
    """The same answers are no loss, yet the interval is not a point."""
    blocks = [f"b{i // 3}" for i in range(60)]
    same = detectors(np.random.default_rng(0), 3, (0.0,))[0]
    decision = judge_candidate(same, same, np.ones(60), blocks, GatePolicy(), int8_ratio=0.3, parity=0.99)
    assert decision.promote
    assert (decision.difference, decision.metric) == (0.0, "AP50")
    assert decision.candidate_value == same.value()
    assert decision.ci95 is not None
    assert decision.ci95[0] < -0.01 < 0.01 < decision.ci95[1]


def test_a_first_detector_has_to_reach_the_floor() -> None:
    """Without an incumbent AP50 itself is held against the minimum, and the file against its limits."""
    first = detectors(np.random.default_rng(1), 3, (0.0,))[0]
    blocks = [f"b{i // 3}" for i in range(60)]
    for floor, parity, right in ((0.4, 0.99, True), (0.99, 0.99, False), (0.4, 0.9, False)):
        policy = GatePolicy(min_first_value=floor)
        decision = judge_candidate(first, None, np.ones(60), blocks, policy, int8_ratio=0.3, parity=parity)
        assert decision.promote is right
        assert decision.difference is None


def test_field_ap_is_covered() -> None:
    """The 95 % interval of the field's AP50 holds the truth in at least 93 % of audits of about sixty frames."""
    rng, hits, runs = np.random.default_rng(3), 0, 60
    truth = np.mean([detectors(rng, 20, (0.0,))[0].value() for _ in range(30)])
    for _ in range(runs):
        audited = detectors(rng, 3, (0.0,))[0]
        estimate = estimate_field(audited, rng.choice([0.02, 0.05], 60), [f"b{i // 3}" for i in range(60)])
        assert estimate is not None
        hits += estimate.ci95[0] <= truth <= estimate.ci95[1]
    assert hits / runs >= 0.93
