"""The report's charts: matplotlib figures as SVG text whose colours the page's style sheet decides, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from flows.sandbox.journal import MetricNames

Json = Mapping[str, Any]

# Okabe and Ito's colour-blind safe palette; the page gives each name a value for light and one for dark.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"
INK, MUTED, GRID = "#101112", "#707172", "#d0d1d2"
_VARIABLES = {
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    RED: "red",
    PURPLE: "purple",
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
}
_LINES = ((ORANGE, "--"), (BLUE, "-"), (GREEN, ":"))
_RANDOM = "as many at random labelled"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gleaner",
    "font.size": 10.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def plot_over_time(report: Json) -> str | None:
    """The true metric per camera, a panel each; None when nobody saw a prediction."""
    cameras = {name: camera for name, camera in report["over_time"].items() if camera["points"]}
    size = (10.0, 2.05 * len(cameras) + 0.5)
    return _draw(lambda figure: _cameras(figure, cameras, report["timeline"]), size) if cameras else None


def plot_labels(report: Json) -> str:
    """Held-out metric of what is in the field against labels spent, beside the random control."""
    names = MetricNames(**report["metric"])
    ceiling = (report.get("gap") or {}).get("ceiling")
    return _draw(lambda figure: _labels(figure.subplots(), report["rounds"], names, ceiling), (5.6, 3.5))


def plot_field_estimates(report: Json) -> str | None:
    """The product's own estimate with its interval beside the truth; None while no round has one."""
    names = MetricNames(**report["metric"])
    judged = [entry for entry in report["rounds"] if entry[names.field]]
    return _draw(lambda figure: _estimates(figure.subplots(), judged, names), (5.6, 3.5)) if judged else None


def plot_curves(report: Json) -> str | None:
    """Precision against recall on held-out frames, a panel for each light; None where the kind has no such curves."""
    curves = report.get("curves") or {}
    return _draw(lambda figure: _curves(figure, curves), (10.0, 3.8)) if curves else None


def _curves(figure: Figure, curves: Mapping[str, Sequence[Json]]) -> None:
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (cell, lines) in zip(panels, curves.items(), strict=True):
        for line, (colour, style) in zip(lines, _LINES, strict=False):
            recall, precision = [p[0] for p in line["points"]], [p[1] for p in line["points"]]
            axes.plot(recall, precision, style, color=colour, linewidth=1.8, label=f"{line['name']}: {line['note']}")
        axes.set(xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        axes.set_title(cell, loc="left", fontsize=10, fontweight="bold")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.legend(loc="lower left")
    panels[0].set_ylabel("precision")


def _cameras(figure: Figure, cameras: Mapping[str, Any], timeline: Sequence[Json]) -> None:
    grid = figure.subplots(len(cameras), 1, sharex=True, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid[:, 0])
    end_s = max(point[0] for camera in cameras.values() for point in camera["points"])
    lowest = min(point[1] for camera in cameras.values() for point in camera["points"])
    for axes, (name, camera) in zip(panels, cameras.items(), strict=True):
        _mark_releases(axes, camera["releases"])
        if camera["dusk_from_s"] is not None:
            _mark_interval(axes, camera["dusk_from_s"], end_s, PURPLE, "dusk")
        for down_s, up_s in link_intervals(timeline, name, end_s):
            _mark_interval(axes, down_s, up_s, ORANGE, "link down")
        times, values = [p[0] for p in camera["points"]], [p[1] for p in camera["points"]]
        axes.plot(times, values, color=BLUE, linewidth=1.8, solid_joinstyle="round")
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontweight="bold")
        axes.set_ylim(max(0.0, lowest - 0.06), 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    panels[-1].set_xlim(0.0, end_s)
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda t_s, _: f"{t_s // 60:.0f}:{t_s % 60:02.0f}"))
    panels[-1].xaxis.set_major_locator(MaxNLocator(10, steps=[1, 3, 6, 10]))
    panels[-1].set_xlabel("minutes since the field opened")


def link_intervals(timeline: Sequence[Json], camera: str, end_s: float) -> list[tuple[float, float]]:
    """When the camera's link was down, in seconds; one that never came back ends at `end_s`."""
    down: float | None = None
    found = []
    for event in timeline:
        if event.get("camera") != camera:
            continue
        if event["kind"] == "link_down":
            down = event["t_s"]
        elif event["kind"] == "link_up" and down is not None:
            found.append((down, event["t_s"]))
            down = None
    return [*found, (down, end_s)] if down is not None else found


def _mark_releases(axes: Axes, starts: Mapping[str, float]) -> None:
    for release, at_s in starts.items():
        axes.axvline(at_s, color=GREEN, linewidth=1.2, linestyle=(0, (4, 2)))
        _name_line(axes, at_s, 0.05, short_release(release), GREEN)


def _mark_interval(axes: Axes, start_s: float, end_s: float, colour: str, name: str) -> None:
    axes.axvspan(start_s, end_s, color=colour, alpha=0.16, linewidth=0)
    _name_line(axes, start_s, 0.83, name, colour)


def _name_line(axes: Axes, at_s: float, height: float, name: str, colour: str) -> None:
    """Write right of the moment; `height` is a share of the panel's."""
    axes.annotate(
        name,
        (at_s, height),
        (5, 0),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        color=colour,
        fontsize=9,
    )


def short_release(release: str | None) -> str:
    """`r0002-a1b2c3` as `r2`: what fits beside a line."""
    match = re.match(r"r0*(\d+)-", release or "")
    return f"r{match[1]}" if match else release or "none"


def _labels(axes: Axes, rounds: Sequence[Json], names: MetricNames, ceiling: float | None) -> None:
    labels = [entry["labels"] for entry in rounds]
    product = [entry[names.heldout] for entry in rounds]
    known = [
        (x, entry[names.control]) for x, entry in zip(labels, rounds, strict=True) if entry[names.control] is not None
    ]
    if ceiling is not None:
        axes.axhline(ceiling, color=GREEN, linewidth=1.4, linestyle=(0, (4, 2)), label="the truth of every field frame")
    axes.plot(*zip(*known, strict=True), "s--", color=ORANGE, linewidth=1.6, markersize=5, label=_RANDOM)
    axes.plot(labels, product, "o-", color=BLUE, linewidth=2.2, markersize=6, label="Gleaner's choice labelled")
    control = dict(known)
    for x, ours in zip(labels, product, strict=True):
        above = ours >= control.get(x, ours)
        axes.annotate(
            f"{100 * ours:.1f}",
            (x, ours),
            (0, 8 if above else -9),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            color=BLUE,
            fontweight="bold",
        )
    axes.set_xticks(labels)
    axes.margins(x=0.1, y=0.25)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="labels people gave, in all", ylabel=f"held-out {names.title}, int8")
    _legend_above(axes)


def _estimates(axes: Axes, rounds: Sequence[Json], known: MetricNames) -> None:
    places = list(range(len(rounds)))
    middle = [entry[known.field]["estimate"] for entry in rounds]
    bounds = [entry[known.field]["ci95"] for entry in rounds]
    errors = [[m - low for m, (low, _) in zip(middle, bounds, strict=True)]]
    errors.append([high - m for m, (_, high) in zip(middle, bounds, strict=True)])
    axes.errorbar(
        places, middle, yerr=errors, fmt="o", color=BLUE, capsize=6, linewidth=2, markersize=7, label="estimate, 95 %"
    )
    truth = [(x, entry[known.oracle]) for x, entry in enumerate(rounds) if entry[known.oracle] is not None]
    xs, ys = [x + 0.09 for x, _ in truth], [y for _, y in truth]
    axes.plot(xs, ys, linestyle="none", marker="D", color=RED, markersize=6, label="truth, every frame")
    names = [
        f"round {entry['number']}: {short_release(entry[known.field]['release'])}\n{entry[known.field]['n']} audits"
        for entry in rounds
    ]
    axes.set_xticks(places, names)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.margins(y=0.25)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(f"{known.title} in the field")
    _legend_above(axes)


def _legend_above(axes: Axes) -> None:
    """Where no data can be."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _draw(paint: Callable[[Figure], None], size_inches: tuple[float, float]) -> str:
    """Let `paint` fill a figure and return it as an SVG element that scales with its place on the page."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size_inches, layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue())


def _inline(svg: str) -> str:
    """Make the document an element of the page: the page's colours and font, no size, style or ids of its own."""
    svg = svg[svg.index("<svg") :]
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    head, rest = svg.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest
