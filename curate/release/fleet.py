"""What an operator should know about one device, in words. Pure."""

from __future__ import annotations

from curate.contracts.telemetry import FINE_OUTCOMES, ReportedState


def describe_problems(state: ReportedState, newest: str | None) -> list[str]:
    """Return what is wrong by the device's own word; `newest` is the release it should run, None before the first."""
    last = state.updates[-1] if state.updates else None
    found = [f"{last.outcome}: {last.detail}"] if last and last.outcome not in FINE_OUTCOMES else []
    if newest is not None and state.release_id != newest:
        found.append(f"not on {newest}")
    if state.quarantined:
        found.append(f"{state.quarantined} file(s) in quarantine")
    if state.limits and state.limits.held_back:
        held = ", ".join(f"{count} by {reason}" for reason, count in sorted(state.limits.held_back.items()))
        found.append(f"captures held back: {held}")
    return found
