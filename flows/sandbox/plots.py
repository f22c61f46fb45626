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


def plot_accuracy_over_time(report: Json) -> str | None:
    """True accuracy per camera, a panel each; None when nobody saw a prediction."""
    cameras = report["accuracy_over_time"]
    return _draw(lambda figure: _cameras(figure, report), (10.0, 2.05 * len(cameras) + 0.5)) if cameras else None


def plot_labels_against_accuracy(report: Json) -> str:
    """Held-out accuracy of what is in the field against labels spent, beside the random control."""
    return _draw(lambda figure: _labels(figure.subplots(), report["rounds"]), (5.6, 3.5))


def plot_field_estimates(report: Json) -> str | None:
    """The product's own estimate with its interval beside the truth; None while no round has one."""
    judged = [entry for entry in report["rounds"] if entry["field_accuracy"]]
    return _draw(lambda figure: _estimates(figure.subplots(), judged), (5.6, 3.5)) if judged else None


def _cameras(figure: Figure, report: Json) -> None:
    cameras: dict[str, Any] = report["accuracy_over_time"]
    grid = figure.subplots(len(cameras), 1, sharex=True, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid[:, 0])
    end_s = max(point[0] for camera in cameras.values() for point in camera["points"])
    lowest = min(point[1] for camera in cameras.values() for point in camera["points"])
    for axes, (name, camera) in zip(panels, cameras.items(), strict=True):
        _mark_releases(axes, camera["releases"])
        if camera["dusk_from_s"] is not None:
            _mark_interval(axes, camera["dusk_from_s"], end_s, PURPLE, "dusk")
        for down_s, up_s in link_intervals(report["timeline"], name, end_s):
            _mark_interval(axes, down_s, up_s, ORANGE, "link down")
        times, accuracy = [p[0] for p in camera["points"]], [p[1] for p in camera["points"]]
        axes.plot(times, accuracy, color=BLUE, linewidth=1.8, solid_joinstyle="round")
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


def _labels(axes: Axes, rounds: Sequence[Json]) -> None:
    labels = [entry["labels"] for entry in rounds]
    product = [entry["heldout_accuracy_int8"] for entry in rounds]
    control = [entry["control_random_accuracy"] for entry in rounds]
    axes.plot(labels, control, "s--", color=ORANGE, linewidth=1.6, markersize=5, label="random uploads labelled")
    axes.plot(labels, product, "o-", color=BLUE, linewidth=2.2, markersize=6, label="Gleaner's choice labelled")
    for x, ours, theirs in zip(labels, product, control, strict=True):
        above = ours >= theirs
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
    axes.set(xlabel="labels people gave, in all", ylabel="held-out accuracy, int8")
    _legend_above(axes)


def _estimates(axes: Axes, rounds: Sequence[Json]) -> None:
    places = list(range(len(rounds)))
    middle = [entry["field_accuracy"]["estimate"] for entry in rounds]
    bounds = [entry["field_accuracy"]["ci95"] for entry in rounds]
    errors = [[m - low for m, (low, _) in zip(middle, bounds, strict=True)]]
    errors.append([high - m for m, (_, high) in zip(middle, bounds, strict=True)])
    axes.errorbar(
        places, middle, yerr=errors, fmt="o", color=BLUE, capsize=6, linewidth=2, markersize=7, label="estimate, 95 %"
    )
    truth = [(x, entry["oracle_accuracy"]) for x, entry in enumerate(rounds) if entry["oracle_accuracy"] is not None]
    xs, ys = [x + 0.09 for x, _ in truth], [y for _, y in truth]
    axes.plot(xs, ys, linestyle="none", marker="D", color=RED, markersize=6, label="truth, every frame")
    names = [
        f"round {entry['number']}: {short_release(entry['field_accuracy']['release'])}\n"
        f"{entry['field_accuracy']['n']} audits"
        for entry in rounds
    ]
    axes.set_xticks(places, names)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.margins(y=0.25)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("field accuracy")
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
