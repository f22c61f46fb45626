"""What a person sees of a round in the Prefect UI: a table, a picture and the reasons."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from curate.catalog.models import ModelRow, Round
from flows._field_report import SAVINGS_FACT, describe_field
from flows._stage import stage_task
from flows._trust import trust_rows
from flows._wiring import services
from flows.explain_sheet import sheet_key


@stage_task("publish round report")
def publish_round_artifacts(number: int) -> None:
    """Publish the rounds so far as a table and a picture, and this round's choices with their reasons."""
    catalog = services().catalog
    rounds, models = catalog.rounds(), {model.round_number: model for model in catalog.models()}
    rows = [summarise_round(each, models.get(each.number)) for each in rounds]
    create_table_artifact(key="rounds", table=rows, description="Every turn of the loop so far")
    create_image_artifact(key="rounds-picture", image_url=_as_data_url(draw_rounds(rows)), description="Rounds so far")
    create_markdown_artifact(
        key=f"round-{number}-choices", markdown=_choices(number), description="What was asked, why"
    )
    publish_field_report(number)
    create_table_artifact(key="trust", table=trust_rows(services()), description="Devices: how far each is believed")


def publish_field_report(number: int) -> None:
    """Publish what a round knows of the field by now."""
    catalog = services().catalog
    current = catalog.round(number)
    facts = current.facts if current else {}
    counters = catalog.device_counters().values()
    told = describe_field(number, facts.get("field_accuracy"), counters, facts.get(SAVINGS_FACT))
    create_markdown_artifact(key=f"round-{number}-field", markdown=told, description="How good it was in the field")


def summarise_round(current: Round, model: ModelRow | None) -> dict[str, Any]:
    """One table row: what a person wants to know of a round at a glance."""
    field = current.facts.get("field_accuracy") or {}
    gate = (model.gate if model else None) or {}
    return {
        "round": current.number,
        "phase": current.phase.value,
        "labels": current.facts.get("answered"),
        "field accuracy": field.get("estimate"),
        "95 % from": (field.get("ci95") or [None, None])[0],
        "95 % to": (field.get("ci95") or [None, None])[1],
        "candidate": model.model_id if model else None,
        "release": model.release_id if model else None,
        "gate": "promoted" if gate.get("promote") else "refused" if gate else None,
        "why": "; ".join(gate.get("reasons", [])),
        "int8 parity": model.metrics.get("parity_top1") if model else None,
    }


def draw_rounds(rows: list[dict[str, Any]]) -> bytes:
    """Field accuracy with its interval, round by round, as a PNG."""
    known = [row for row in rows if row["field accuracy"] is not None]
    figure, axes = plt.subplots(figsize=(6, 3), dpi=120)
    if known:
        numbers = [row["round"] for row in known]
        middle = [row["field accuracy"] for row in known]
        below = [row["field accuracy"] - row["95 % from"] for row in known]
        above = [row["95 % to"] - row["field accuracy"] for row in known]
        axes.errorbar(numbers, middle, yerr=[below, above], fmt="o-", capsize=4)
        axes.set_xticks(numbers)
    axes.set(xlabel="round", ylabel="field accuracy (random arm)", ylim=(0, 1), title="Accuracy the fleet really had")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def _as_data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _choices(number: int) -> str:
    rows = services().catalog.selection(number)
    lines = [
        f"# Round {number}: {len(rows)} samples",
        "",
        f"With pictures: `gleaner sheet {number}`, or `{sheet_key(number)}` in the bucket.",
        "",
        "| rank | sample | role | stands for | why |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {r.rank} | {r.sample_id} | {r.role} | {r.stands_for} | {'; '.join(r.reasons)} |" for r in rows]
    return "\n".join(lines)
