"""What the runs say, as tables and a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from edge_agent.bench.command import replace_table
from label_choosers import DEFAULT, OURS, PEERS, RANDOM, UNAUDITED
from label_race import (
    BUDGETS,
    Curves,
    Estimate,
    mean_gain,
    mean_ranks,
    paired_mean,
    resample,
    share_of_labels,
    worst_against_random,
)
from label_worlds import Rows

Record = Mapping[str, Any]
BARS: Final = {"digits": 0.45, "digits, camera-like": 0.20}
PLOT: Final = "labels.png"
TICKS: Final = (10, 20, 30, 50, 100, 200, 300)
STYLES: Final = (
    ("#0072b2", "-", "o"),
    ("#56b4e9", "-", "s"),
    ("#101112", "--", ""),
    ("#e69f00", "-.", "^"),
    ("#009e73", ":", "v"),
    ("#d55e00", "-.", "D"),
    ("#cc79a7", ":", "P"),
    ("#8c6d00", "--", "X"),
    ("#707172", "-.", "*"),
)
"""Okabe and Ito's colours and two more; dashes and marks tell them apart without colour."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A method and random on the seeds that both have run; `draws` resamples those."""

    curves: Curves
    random: Curves
    draws: Rows

    @property
    def share(self) -> Estimate:
        """Labels needed, as a share of random's."""
        return share_of_labels(self.curves, self.random, BUDGETS, self.draws)

    @property
    def gain(self) -> Estimate:
        """Accuracy above random's, averaged over the budgets."""
        return mean_gain(self.curves, self.random, BUDGETS, self.draws)


@dataclass(frozen=True, eq=False)
class Found:
    """The curves of one world, by method and seed; a dear method may have fewer seeds than others."""

    name: str
    runs: Mapping[str, Mapping[int, Sequence[float]]]

    @property
    def seeds(self) -> int:
        """How many seeds random has."""
        return len(self.runs.get(RANDOM, ()))

    @property
    def lowest(self) -> float:
        """Random's mean accuracy at the start, where all begin."""
        return float(np.mean([run[0] for run in self.runs[RANDOM].values()]))

    def pair(self, method: str, against: Found | None = None) -> Pair | None:
        """Return a method and the random runs of this or another set, of the seeds that both have; None without any."""
        random = (against or self).runs.get(RANDOM, {})
        seeds = sorted(set(self.runs.get(method, {})) & set(random))
        if not seeds:
            return None
        return Pair(
            np.array([self.runs[method][seed] for seed in seeds]),
            np.array([random[seed] for seed in seeds]),
            resample(len(seeds), np.random.default_rng(0)),
        )

    def areas(self) -> dict[str, Curves]:
        """Return each method's area for each of the seeds that all have, [seeds]."""
        seeds = sorted(set.intersection(*(set(runs) for runs in self.runs.values())))
        return {name: np.trapezoid([runs[seed] for seed in seeds], BUDGETS, axis=1) for name, runs in self.runs.items()}


def write_report(path: Path, records: Sequence[Record]) -> None:
    """Put the tables between the marks of the document, and the plot beside it."""
    raced = _raced(records)
    parts = []
    if raced:
        parts += [_shares(raced), _gains(raced), _worst(raced)]
        plot_curves(raced).savefig(path.with_name(PLOT), dpi=110, metadata={"Software": None})
        parts.append(f"![Accuracy against labels, a panel a world]({PLOT})\n")
    parts += [_variants(records, "policies", "other settings", raced), _variants(records, "ablation", "removed", raced)]
    parts += [_plaza(records), _poison(records), _speed(records)]
    path.write_text(replace_table(path.read_text("utf-8"), "\n".join(part for part in parts if part)), "utf-8")


def gather(records: Iterable[Record], which: str) -> list[Found]:
    """Return the curves of a set by world; of runs of one seed the newest counts."""
    by_world: dict[str, dict[str, dict[int, Sequence[float]]]] = {}
    for record in records:
        if record["set"] == which:
            of_method = by_world.setdefault(record["world"], {}).setdefault(record["method"], {})
            of_method[record["seed"]] = record["accuracy"]
    return [Found(name, methods) for name, methods in by_world.items()]


def _raced(records: Iterable[Record]) -> list[Found]:
    """Return the worlds of the race in which there is something to hold the methods against."""
    return [found for found in gather(records, "race") if found.seeds]


def _shares(raced: Sequence[Found]) -> str:
    rows = [["bar", *(f"{BARS[found.name]:.2f}" if found.name in BARS else "" for found in raced)]]
    for method in _methods(raced):
        rows.append([method, *(_cell(found.pair(method), _share) for found in raced)])
    return _table(["share of random's 300 labels", *(_title(found) for found in raced)], rows)


def _gains(raced: Sequence[Found]) -> str:
    means = {method: [pair.gain.value for found in raced if (pair := found.pair(method))] for method in _methods(raced)}
    places = mean_ranks({found.name: areas for found in raced if (areas := found.areas())})
    rows = []
    for method in sorted(means, key=lambda name: (-len(means[name]), -float(np.mean(means[name])))):
        cells = [_cell(found.pair(method), _gain) for found in raced]
        mean = f"{100 * np.mean(means[method]):+.2f}" if len(means[method]) == len(raced) else ""
        rows.append([method, *cells, mean, f"{places[method]:.2f}" if method in places else ""])
    head = ["points above random, mean over 10 to 300 labels", *(found.name for found in raced), "all", "mean rank"]
    return _table(head, rows)


def _worst(raced: Sequence[Found]) -> str:
    methods = [method for method in _methods(raced) if method != RANDOM]
    rows = [[method, *(_cell(found.pair(method), _lowest) for found in raced)] for method in methods]
    return _table(["worst budget, points against random", *(found.name for found in raced)], rows)


def _variants(records: Sequence[Record], which: str, title: str, raced: Sequence[Found]) -> str:
    """Tell how variants of the policy do against the race's random on the same seeds."""
    against = {found.name: found for found in raced}
    found = [each for each in gather(records, which) if each.name in against]
    if not found:
        return ""
    rows = []
    for method in _methods(found):
        pairs = [each.pair(method, against[each.name]) for each in found]
        rows.append([method, *(cell for pair in pairs for cell in (_cell(pair, _share), _cell(pair, _gain)))])
    titles = [cell for each in found for cell in (f"{each.name} ({_most_seeds(each)} seeds): share", "points")]
    return _table([title, *titles], rows)


def _most_seeds(found: Found) -> int:
    return max(len(runs) for runs in found.runs.values())


def _plaza(records: Sequence[Record]) -> str:
    """Tell random's AP50 at each budget, and what the others have more on the same seeds."""
    found = [each for each in gather(records, "plaza") if each.seeds]
    if not found:
        return ""
    (plaza,) = found
    budgets = next(record["budgets"] for record in records if record["set"] == "plaza")
    own = np.array(list(plaza.runs[RANDOM].values()))
    rows = [[f"{RANDOM}: AP50", str(plaza.seeds), *(f"{100 * value:.1f}" for value in _with_mean(own).mean(axis=0))]]
    for method in plaza.runs:
        pair = plaza.pair(method)
        if pair is not None and method != RANDOM:
            gains = _with_mean(pair.curves - pair.random)
            rows.append([method, str(len(gains)), *(_paired(gains[:, column]) for column in range(gains.shape[1]))])
    return _table(["the plaza: points of AP50 above random", "seeds", *(f"{n} frames" for n in budgets), "mean"], rows)


def _with_mean(curves: Curves) -> Curves:
    """Return the curves [seeds, budgets] with their mean as one more column."""
    return np.column_stack([curves, curves.mean(axis=1)])


def _paired(differences: Curves) -> str:
    about = paired_mean(differences)
    half = "" if np.isinf(about.high) else f" ± {100 * (about.high - about.value):.1f}"
    return f"{100 * about.value:+.1f}{half}"


def _poison(records: Sequence[Record]) -> str:
    shares: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record["set"] == "poison":
            shares.setdefault(record["method"], {}).setdefault(record["world"], []).append(record["taught"])
    if not shares:
        return ""
    crafts = list(next(iter(shares.values())))
    rows = [[name, *(_spread(of_craft[craft]) for craft in crafts)] for name, of_craft in shares.items()]
    return _table(["share of crafted captures among those taught", *crafts], rows)


def _speed(records: Sequence[Record]) -> str:
    runs = {record["method"]: record for record in records if record["set"] == "speed"}
    if DEFAULT not in runs:
        return ""
    own = runs[DEFAULT]["processor_s"]
    rows = []
    for name, run in runs.items():
        if "failed" in run:
            rows.append([name, run["failed"], "", "", ""])
        else:
            cells = (f"{run['processor_s']:.1f}", f"{run['clock_s']:.1f}", f"{run['peak_gib']:.2f}")
            rows.append([name, *cells, f"{run['processor_s'] / own:.2f}"])
    return _table(["one choice of 200 from 50,000 x 64", "processor s", "clock s", "peak GiB", "ratio"], rows)


def plot_curves(raced: Sequence[Found]) -> Figure:
    """Draw mean accuracy against labels, a panel a world; bands of 95 % around Gleaner and random only."""
    columns = min(2, len(raced))
    lines = -(-len(raced) // columns)
    with mpl.rc_context({"font.size": 10.0, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.6 * columns, 3.9 * lines + 0.9), layout="constrained")
        panels = list(figure.subplots(lines, columns, squeeze=False).flat)
        styles = dict(zip(_methods(raced), STYLES, strict=False))
        shown: dict[str, Artist] = {}
        for axes, found in zip(panels, raced, strict=False):
            _panel(axes, found, styles)
            handles, names = axes.get_legend_handles_labels()
            shown |= dict(zip(names, handles, strict=True))
        for axes in panels[len(raced) :]:
            axes.set_visible(False)
        figure.legend(shown.values(), shown, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _panel(axes: Axes, found: Found, styles: Mapping[str, tuple[str, str, str]]) -> None:
    for name, (colour, dashes, mark) in styles.items():
        pair = found.pair(name)
        if pair is None:
            continue
        own = name in (DEFAULT, UNAUDITED)
        axes.plot(BUDGETS, pair.curves.mean(axis=0), dashes, color=colour, marker=mark, markersize=3.5,
                  linewidth=2.2 if own else 1.3, markevery=2, label=name, zorder=3 if own else 2)  # fmt: skip
        if name in (DEFAULT, RANDOM):
            low, high = np.quantile(pair.curves[pair.draws].mean(axis=1), [0.025, 0.975], axis=0)
            axes.fill_between(BUDGETS, low, high, color=colour, alpha=0.18, linewidth=0)
        if name == RANDOM:
            axes.axhline(pair.random[:, -1].mean(), color="#707172", linewidth=0.8)
    axes.set_title(_title(found), loc="left", fontsize=10, fontweight="bold")
    axes.set(xlabel="labels", ylabel="accuracy", xscale="log", xlim=(BUDGETS[0], BUDGETS[-1]))
    axes.set_xticks(TICKS, [str(labels) for labels in TICKS])
    axes.minorticks_off()
    axes.set_ylim(bottom=found.lowest - 0.02)
    axes.grid(color="#d0d1d2", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _cell(pair: Pair | None, tell: Callable[[Pair], str]) -> str:
    return "" if pair is None else tell(pair)


def _share(pair: Pair) -> str:
    share = pair.share
    if len(pair.curves) == 1:
        return _or_more(share.value)
    return f"{_or_more(share.value)} ({_or_more(share.low)} to {_or_more(share.high)})"


def _gain(pair: Pair) -> str:
    gain = pair.gain
    if len(pair.curves) == 1:
        return f"{100 * gain.value:+.1f}"
    return f"{100 * gain.value:+.1f} ± {50 * (gain.high - gain.low):.1f}"


def _lowest(pair: Pair) -> str:
    worst = worst_against_random(pair.curves, pair.random, BUDGETS, pair.draws)
    return f"{100 * worst.difference:+.1f} at {worst.budget}{' **!**' if worst.beyond_noise else ''}"


def _or_more(share: float) -> str:
    return f"{share:.2f}" if np.isfinite(share) else "> 1"


def _spread(shares: Sequence[float]) -> str:
    if len(shares) == 1:
        return f"{100 * shares[0]:.1f} %"
    return f"{100 * np.mean(shares):.1f} % ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def _methods(found: Sequence[Found]) -> list[str]:
    """Those that were run, in the order in which the race lists them."""
    ran = list(dict.fromkeys(name for each in found for name in each.runs))
    listed = [*OURS, *PEERS]
    return [name for name in listed if name in ran] + [name for name in ran if name not in listed]


def _title(found: Found) -> str:
    return f"{found.name} ({found.seeds} seeds)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
