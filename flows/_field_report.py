"""What a person reads of the field after a round: the estimate, where it differs, and what choosing spared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from curate.contracts.telemetry import DeviceCounters
from curate.selection.estimate.savings import bytes_saved

TOO_FEW = "too few to tell"


def describe_field(number: int, field: Mapping[str, Any] | None, counters: Iterable[DeviceCounters]) -> str:
    """Return the round's field estimate and slices, and the bytes that were not uploaded, as markdown."""
    lines = [f"# Round {number}: the field", "", *_whole(field), "", *_bytes(counters)]
    slices = (field or {}).get("slices", [])
    if slices:
        lines += ["", "Each interval holds for its own row: of twenty, one is expected to miss.", ""]
        lines += ["| by | which | captures | audits | estimate | 95 % |", "|---|---|---|---|---|---|"]
        lines += [_slice(each) for each in slices]
    return "\n".join(lines)


def _whole(field: Mapping[str, Any] | None) -> list[str]:
    if not field:
        return ["Nothing was audited."]
    lines = [f"{field['metric']} {_value(field)} from {field['n']} audits in {field['bursts']} bursts."]
    plain = field.get("plain")
    if plain and field.get("trust") is not None:
        lines.append(f"From the audits alone: {_value(plain)}.")
    if field.get("unseen_share"):
        lines.append(f"{field['unseen_share']:.0%} of the frames came from devices that have sent no random capture.")
    return lines


def _bytes(counters: Iterable[DeviceCounters]) -> list[str]:
    saved = bytes_saved(counters)
    if saved.share is None:
        return []
    return [f"Uploaded so far: {saved.uploaded / 1e6:.1f} MB, {saved.share:.1%} of what all frames would have been."]


def _slice(each: Mapping[str, Any]) -> str:
    estimate = each["estimate"]
    audits = estimate["n"] if estimate else 0
    low, high = estimate["ci95"] if estimate else (0.0, 1.0)
    value = f"{estimate['estimate']:.3f}" if each["told"] else TOO_FEW
    return f"| {each['by']} | {each['name']} | {each['captures']} | {audits} | {value} | {low:.2f} to {high:.2f} |"


def _value(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["ci95"]
    return f"{estimate['estimate']:.3f} (95 %: {low:.3f} to {high:.3f})"
