"""What a person reads of the field after a round: the estimate, where it differs, and what choosing spared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from curate.contracts.telemetry import DeviceCounters
from curate.selection.estimate.savings import bytes_saved

TOO_FEW = "too few to tell"
SAVINGS_FACT = "labels_saved"
"""Under this name a round keeps how many labels choosing has saved."""


def describe_field(
    number: int,
    field: Mapping[str, Any] | None,
    counters: Iterable[DeviceCounters],
    savings: Mapping[str, Any] | None = None,
) -> str:
    """Return the round's field estimate and slices, and the labels and bytes that choosing saved, as markdown.

    `savings` is what `measure-savings` noted, None while it has not run.
    """
    lines = [f"# Round {number}: the field", "", *_whole(field), "", _labels(number, savings), "", *_bytes(counters)]
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


def _labels(number: int, savings: Mapping[str, Any] | None) -> str:
    if savings is None:
        return f"Labels saved: not measured yet; `gleaner savings {number}` trains the control."
    return describe_savings(savings)


def describe_savings(savings: Mapping[str, Any]) -> str:
    """Say how many labels choosing has saved, or why that cannot be told."""
    if savings["share"] is None:
        return f"Labels saved: {TOO_FEW}. {savings['why'].capitalize()}."
    low, high = savings["ci95"]
    return (
        f"Labels saved against random: {1 - savings['share']:.0%} (95 %: {1 - high:.0%} to {1 - low:.0%}), to be as"
        f" good as a control that was taught with the {savings['control_labels']} explored labels alone, on"
        f" {savings['frames']} audits. How another training, or another draw of random labels, would have come out"
        " is not in the interval."
    )


def _bytes(counters: Iterable[DeviceCounters]) -> list[str]:
    saved = bytes_saved(counters)
    if saved.share is None:
        return []
    everything = f"{saved.uploaded / 1e6:.1f} of {saved.all_frames / 1e6:.1f} MB that all frames would have been"
    return [f"Bytes saved: {1 - saved.share:.1%}. Uploaded so far: {everything}, {saved.share:.1%}."]


def _slice(each: Mapping[str, Any]) -> str:
    estimate = each["estimate"]
    audits = estimate["n"] if estimate else 0
    low, high = estimate["ci95"] if estimate else (0.0, 1.0)
    value = f"{estimate['estimate']:.3f}" if each["told"] else TOO_FEW
    return f"| {each['by']} | {each['name']} | {each['captures']} | {audits} | {value} | {low:.2f} to {high:.2f} |"


def _value(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["ci95"]
    return f"{estimate['estimate']:.3f} (95 %: {low:.3f} to {high:.3f})"
