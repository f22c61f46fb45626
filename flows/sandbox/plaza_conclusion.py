"""What only the plaza's report tells: precision-recall curves, all measures, and how much of the gap was closed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from statistics import fmean
from typing import Any

from flows.sandbox.heldout import RoundFacts
from flows.sandbox.plots import short_release

Json = dict[str, Any]

CEILING_FILE = "plaza_ceiling.json"
_COLUMNS = ("in the field", "light", "AP50 int8", "AP50 float", "AP50-95", "recall at 1 false box a frame")


def load_ceiling() -> Json | None:
    """Return what the truth of every field frame would give, as `plaza_ceiling.py` measured it; None if unknown."""
    path = files("flows.sandbox").joinpath(CEILING_FILE)
    known: Json | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return known


def conclude(facts: Sequence[RoundFacts]) -> Json:
    """Return the keys `gap`, `curves`, `quality` and `int8` of the report; empty without a round."""
    if not facts:
        return {}
    ceiling = load_ceiling()
    return {
        "gap": describe_gap(facts[0].heldout.mean, facts[-1].heldout.mean, ceiling),
        "curves": describe_curves(facts, ceiling),
        "quality": describe_quality(facts),
        "int8": describe_int8(facts),
    }


def describe_gap(seed: float, last: float, ceiling: Json | None) -> Json:
    """Of the gap between the first release and the ceiling, the share that the last release closed.

    All three are means of the lights the cameras are in when the run ends.
    """
    top = fmean(light["ap50"]["value"] for light in ceiling["quality"].values()) if ceiling else None
    closed = (last - seed) / (top - seed) if top is not None and top > seed else None
    return {"seed": seed, "last": last, "ceiling": top, "closed": closed, "settings": (ceiling or {}).get("settings")}


def describe_curves(facts: Sequence[RoundFacts], ceiling: Json | None) -> Json:
    """By light, the first and the last release and the ceiling, each with its points [recall, precision]."""
    chosen = [facts[place] for place in dict.fromkeys((0, len(facts) - 1))]
    curves: Json = {}
    for light in facts[0].heldout.more["int8"]:
        lines = [_line(short_release(f.in_field.release_id), f.heldout.more["int8"][light]) for f in chosen]
        if ceiling:
            lines.append(_line("truth of every frame", ceiling["quality"][light]))
        curves[light] = lines
    return curves


def describe_quality(facts: Sequence[RoundFacts]) -> Json:
    """All measures of what was in the field after each round, with 95 % intervals over blocks of time."""
    rows = []
    for each in facts:
        for light, measured in each.heldout.more["int8"].items():
            original = each.heldout.more["float"][light]
            cells = (_interval(measured["ap50"]), f"{original['ap50']['value']:.3f}", _interval(measured["ap50_95"]))
            rows.append([short_release(each.in_field.release_id), light, *cells, _interval(measured["recall_at_1fp"])])
    return {"columns": list(_COLUMNS), "rows": rows}


def describe_int8(facts: Sequence[RoundFacts]) -> Json:
    """What int8 costs the last release: AP50 of the int8 file minus AP50 of the float file, by light."""
    int8, original = (facts[-1].heldout.more[name] for name in ("int8", "float"))
    difference = {light: int8[light]["ap50"]["value"] - original[light]["ap50"]["value"] for light in int8}
    return {"release": facts[-1].in_field.release_id, "ap50_minus_float": difference}


def _line(name: str, measured: Json) -> Json:
    return {"name": name, "note": f"AP50 {measured['ap50']['value']:.3f}", "points": measured["curve"]}


def _interval(measured: Json) -> str:
    low, high = measured["ci95"]
    return f"{measured['value']:.3f} [{low:.3f}, {high:.3f}]"
