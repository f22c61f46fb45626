"""`report.html`: one file to look at, without anything to load from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flows.sandbox.journal import MetricNames
from flows.sandbox.plots import plot_curves, plot_field_estimates, plot_labels, plot_over_time, short_release

Json = Mapping[str, Any]

NOTHING = "\N{EN DASH}"
ARM_COLOURS = {"random": "blue", "uncertain": "orange", "dismissed": "purple"}


@dataclass(frozen=True)
class Tile:
    """One number at the head of the page."""

    name: str
    value: str
    note: str
    mood: str = ""
    """`good`, `bad` or nothing."""


@dataclass(frozen=True)
class Part:
    """One part of a stacked bar; `share` of the bar's whole."""

    name: str
    count: int
    share: float
    colour: str


def render_report(report: Json, root: Path) -> str:
    """Render the page; the pictures come from under `root`, one that is missing leaves an empty frame."""
    environment = Environment(
        loader=PackageLoader("flows.sandbox"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, bytes=human_bytes, release=short_release, clock=clock, count=lambda n: f"{n:,}"
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        names=MetricNames(**report["metric"]),
        devices=[device for device in report["devices"] if device["reported"]],
        tiles=headline(report),
        charts={
            "time": _markup(plot_over_time(report)),
            "labels": _markup(plot_labels(report)),
            "field": _markup(plot_field_estimates(report)),
            "curves": _markup(plot_curves(report)),
        },
        captured=_bars(report["devices"], captured_parts),
        frames=_bars(report["devices"], frame_parts),
        picture=lambda entry: data_url(root / entry["picture"]),
        events=[(event, describe_event(event)) for event in report["timeline"]],
        cells=sorted({cell for entry in report["rounds"] for cell in entry["heldout"]}),
    )


def headline(report: Json) -> list[Tile]:
    """What a person in a hurry wants to know."""
    rounds, totals, ledger = report["rounds"], report["totals"], report["ledger"]
    names = MetricNames(**report["metric"])
    lost = totals["frames_lost_at_swap"]
    tiles = [
        Tile("Ledger", "closes ✔" if ledger["closes"] else "open ✘", _ledger_note(ledger), _mood(ledger["closes"])),
        Tile(
            "Frames lost at model swaps",
            str(lost),
            f"{sum(len(d.get('swap_gap_ms', [])) for d in report['devices'])} swaps between two frames",
            _mood(lost == 0),
        ),
        Tile(
            "Bytes uploaded",
            percent(totals["uploaded_share_of_bytes"]),
            f"{human_bytes(totals['bytes_uploaded'])} of {human_bytes(totals['bytes_seen'])} seen",
        ),
    ]
    known = [*_drift_tiles(report["drift"]), *_honesty_tiles(report["coverage"], names)]
    return [*_metric_tiles(rounds, names), *_gap_tiles(report.get("gap")), *tiles, *known] if rounds else tiles


def _metric_tiles(rounds: Sequence[Json], names: MetricNames) -> list[Tile]:
    first, last = rounds[0], rounds[-1]
    before, after, control = first[names.heldout], last[names.heldout], last[names.control]
    ends = short_release(first["release"]), short_release(last["release"])
    tiles = [
        Tile(
            f"Held-out {names.title}",
            f"{percent(before)} → {percent(after)}",
            f"{points(after - before)} from {ends[0]} to {ends[1]}, int8",
            _mood(after > before),
        )
    ]
    if control is not None:
        note = f"the control ends at {percent(control)} with {last['labels']} labels"
        tiles.append(Tile("Against random labels", points(after - control), note, _mood(after > control)))
    return [*tiles, Tile("Labels", f"{last['labels']:,}", f"{first['labels']:,} of them to begin with")]


def _gap_tiles(gap: Json | None) -> list[Tile]:
    if not gap or gap["closed"] is None:
        return []
    note = f"between {percent(gap['seed'])} and {percent(gap['ceiling'])} with the truth of every field frame"
    return [Tile("Of the gap closed", percent(gap["closed"]), note, _mood(gap["closed"] >= 0.6))]


def _drift_tiles(drift: Json | None) -> list[Tile]:
    if drift is None:
        return []
    note = f"of the {100 * drift['cost']:.1f} points that dusk cost {drift['camera']}"
    won = drift["recovered_share"]
    return [Tile("Won back after the drift", percent(won), note, _mood(won is not None and won >= 0.5))]


def _honesty_tiles(coverage: Json, names: MetricNames) -> list[Tile]:
    if not coverage["rounds"]:
        return []
    held, rounds = coverage["contained"], coverage["rounds"]
    return [
        Tile(
            f"Knows its own {names.title}",
            f"{held} of {rounds}",
            "rounds whose 95 % interval holds the truth",
            _mood(2 * held > rounds),
        )
    ]


def captured_parts(device: Json) -> list[Part]:
    """Captures by the arm that kept them; the bar's whole is their sum, for a frame may count twice."""
    captured: Mapping[str, int] = device["captured"]
    whole = sum(captured.values())
    arms = [*ARM_COLOURS, *sorted(set(captured) - set(ARM_COLOURS))]
    counts = {arm: captured.get(arm, 0) for arm in arms}
    return [Part(arm, n, n / whole, ARM_COLOURS.get(arm, "green")) for arm, n in counts.items() if n]


def frame_parts(device: Json) -> list[Part]:
    """Every frame the camera showed, in exactly one part."""
    seen = device["frames_seen"]
    counts = {
        "skipped": (device["frames_skipped"], "muted"),
        "answered and let go": (device["frames_inferred"] - device["selected"], "grid"),
        "in the cloud": (device["acked"], "blue"),
        "waiting in the spool": (device["pending"], "orange"),
        "evicted": (device["evicted"], "purple"),
        "dropped": (sum(device["dropped"].values()), "red"),
    }
    return [Part(name, n, n / seen, colour) for name, (n, colour) in counts.items() if n]


def data_url(path: Path) -> str | None:
    """The JPEG as a `data:` address, None when there is no such file."""
    if not path.is_file():
        return None
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


def percent(share: float | None) -> str:
    """A share as a person reads it; a dash for None."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of two shares."""
    return f"{100 * difference:+.1f} points"


def human_bytes(n: int | None) -> str:
    """A size as a person reads it, in decimal units; a dash for None."""
    if n is None:
        return NOTHING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"


def clock(t_s: float) -> str:
    """Seconds as minutes and seconds, with a sign before the field opened."""
    whole = round(abs(t_s))
    return f"{'-' if t_s < 0 and whole else ''}{whole // 60}:{whole % 60:02d}"


def describe_event(event: Json) -> str:
    """What happened, in words."""
    kind = event["kind"]
    outcome = short_release(event["release"]) if event.get("release") else "its candidate refused"
    since = f", from frame {event['frame']}" if "frame" in event else ""
    texts = {
        "demo_started": "the demo starts",
        "stack_ready": "S3, Prefect and Label Studio are up",
        "field_open": "cameras, agents, users and annotators start",
        "window_opened": f"the cameras look: window {event.get('number')}",
        "drift": f"dusk falls on {event.get('camera')}{since}",
        "link_down": f"the link of {event.get('camera')} goes down",
        "link_up": f"the link of {event.get('camera')} is back",
        "killed": f"kill -9 {event.get('name')}",
        "restarted": f"{event.get('name')} is started again",
        "round_opened": f"round {event.get('number')} begins",
        "round_closed": f"round {event.get('number')} ends with {outcome}",
        "all_updated": f"every agent runs {short_release(event.get('release'))}",
        "world_ended": "the cameras go dark",
        "field_drained": "every spool is empty",
    }
    reasons = (event.get("gate") or {}).get("reasons") or ()
    return "; ".join([texts.get(kind, kind.replace("_", " ")), *reasons])


def _bars(devices: Sequence[Json], parts: Callable[[Json], list[Part]]) -> list[tuple[str, list[Part]]]:
    return [(device["device_id"], parts(device)) for device in devices if device["reported"]]


def _ledger_note(ledger: Json) -> str:
    count = len(ledger["violations"])
    return "every frame, capture, question and verdict" if not count else f"{count} laws broken, listed below"


def _mood(good: bool) -> str:
    return "good" if good else "bad"


def _markup(svg: str | None) -> Markup | None:
    """Our own drawing: every text in it went through the SVG writer's escaping."""
    return Markup(svg) if svg is not None else None
