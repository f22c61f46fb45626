"""Why a frame was kept, or was not: the numbers of a decision become words for whoever asks. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from curate.contracts.capture import Arm, ArmOutcome
from edge_agent.capture.budget_arm import ArmTrace
from edge_agent.capture.frame_ring import LivePrediction
from edge_agent.capture.policy import CaptureDecision
from edge_agent.capture.scene_gate import GateLook


def explain_prediction(prediction: LivePrediction) -> dict[str, Any]:
    """Return what decided about a prediction's frame, arm by arm, as JSON values.

    An arm with a budget tells its score, the threshold of that moment, what the budget owed and the frames it had to
    rest; a number that is missing or infinite is null, and `why` says what it means.
    """
    decision = prediction.decision
    return {
        "prediction_id": prediction.prediction_id,
        "camera_id": prediction.camera_id,
        "release_id": prediction.release_id,
        "kept": decision.kept,
        "inclusion_probability": decision.inclusion_probability,
        "arms": [_explain_arm(outcome, decision) for outcome in decision.outcomes],
        "reasons": list(decision.reasons),
        "reused_from": prediction.reused_from,
        "scene_gate": None if prediction.look is None else _explain_look(prediction.look, prediction.reused_from),
        "scores": dict(prediction.answer.scores),
    }


def _explain_arm(outcome: ArmOutcome, decision: CaptureDecision) -> dict[str, Any]:
    told: dict[str, Any] = {"arm": outcome.arm.value, "kept": outcome.kept, "probability": outcome.probability}
    trace = next((trace for trace in decision.traces if trace.arm is outcome.arm), None)
    if trace is not None:
        return told | _describe_trace(trace)
    return told | {"why": _WORDS[outcome.arm](outcome, decision)}


def _describe_trace(trace: ArmTrace) -> dict[str, Any]:
    return {
        "why": trace.explain(),
        "score_name": trace.score_name,
        "score": trace.score,
        "threshold": _finite(trace.threshold),
        "budget_fraction": trace.budget_fraction,
        "budget_owed": trace.credit,
        "cooldown_frames_left": trace.resting_frames,
    }


def _explain_look(look: GateLook, reused_from: str | None) -> dict[str, Any]:
    return {
        "why": _explain_gate(look, reused_from),
        "unchanged": look.unchanged,
        "forced": look.forced,
        "change": _finite(look.change),
        "threshold": look.threshold,
    }


def _explain_gate(look: GateLook, reused_from: str | None) -> str:
    if not math.isfinite(look.change):
        return "there was no answer to compare with"
    if reused_from is not None:
        return "nothing had changed, so the last answer stands for it"
    if look.forced:
        return "nothing had changed, and it was answered all the same to measure the gate"
    if look.unchanged:
        return "nothing had changed, and it was answered all the same because the random arm drew it"
    if look.change < look.threshold:
        return "nothing had changed, and the last answer was too old to stand for it"
    return "it had changed"


def _explain_random(outcome: ArmOutcome, _decision: CaptureDecision) -> str:
    drawn = "drawn" if outcome.kept else "not drawn"
    return f"{drawn}, as {outcome.probability:.2%} of all frames are"


def _explain_dismissed(outcome: ArmOutcome, decision: CaptureDecision) -> str:
    return "; ".join(decision.notes) if outcome.kept else "nobody has said that it is wrong"


def _explain_unasked(outcome: ArmOutcome, _decision: CaptureDecision) -> str:
    return f"the {outcome.arm.value} arm left no trace"


_WORDS: Final[Mapping[Arm, Callable[[ArmOutcome, CaptureDecision], str]]] = {
    Arm.RANDOM: _explain_random,
    Arm.DISMISSED: _explain_dismissed,
    Arm.UNCERTAIN: _explain_unasked,
    Arm.NOVEL: _explain_unasked,
    Arm.TEMPORAL: _explain_unasked,
}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
