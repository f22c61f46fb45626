"""How many labels a choice saves: Gleaner's default policy and its peers, in one process, on the same seeds.

    python benchmarks/label_efficiency.py race --seeds 30 --results labels.jsonl --write benchmarks/labels.md

What is in the results is not run again, so a stopped race goes on; `--write` makes tables and plot of all of it. The
peers need `pip install edge-gleaner[bench-peers]`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from curate.selection.base import SelectionPolicy
from label_choosers import OURS, PEERS, UNAUDITED, Chooser, gleaner
from label_plaza import measure_plaza
from label_poison import measure_poison
from label_race import run_race
from label_report import write_report
from label_speed import measure_speed
from label_worlds import WORLDS, make_world

Record = dict[str, Any]
Choosers = Mapping[str, Callable[[], Chooser]]


def _without(**changes: Any) -> Callable[[], Chooser]:
    """Return the default without audits, with dismissals, changed."""
    policy = SelectionPolicy.model_validate({"audit_share": 0, **changes})
    return lambda: gleaner(policy, dismissals=True)


EVERYTHING: Final = "everything, and dismissals"
ABLATIONS: Final[Choosers] = {
    EVERYTHING: _without(),
    "near-duplicates not collapsed": _without(
        burst_duplicate_cosine=1, duplicate_cosine=1, exclude_labelled_groups=False, multiplicity_power=0
    ),
    "no coverage (margin alone)": _without(strategy="margin"),
    "no uncertainty (coverage alone)": lambda: gleaner(
        SelectionPolicy(audit_share=0, dismissed_weight=0), certain=True
    ),
    "no weight by multiplicity": _without(multiplicity_power=0),
    "no quotas": _without(max_device_share=1),
    "no exploring": _without(explore_share=0),
    "no dismissals": OURS[UNAUDITED],
}
POLICIES: Final[Choosers] = {
    "explore_share 0.25": lambda: gleaner(SelectionPolicy(explore_share=0.25)),
    "explore_share 0.25, audits apart": lambda: gleaner(SelectionPolicy(audit_share=0, explore_share=0.25)),
    "explore_share 0, audits apart": lambda: gleaner(SelectionPolicy(audit_share=0, explore_share=0)),
    "explore_share 0, min_radius 0.35, audits apart": lambda: gleaner(
        SelectionPolicy(audit_share=0, explore_share=0, min_radius=0.35)
    ),
}
SETS: Final[Mapping[str, Choosers]] = {"race": {**OURS, **PEERS}, "ablation": ABLATIONS, "policies": POLICIES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked and not known yet; write the document where asked."""
    options = _parse(arguments)
    records = _read(options.results)
    known = {(record["set"], record["world"], record["method"], record["seed"]) for record in records}
    with options.results.open("a", encoding="utf-8") as out:
        for record in MEASURES[options.what](options, known):
            records.append(record)
            out.write(json.dumps(record) + "\n")
            out.flush()
            print(_line(record), file=sys.stderr, flush=True)
    if options.write:
        write_report(options.write, records)
    return 0


def _race(options: argparse.Namespace, known: set[tuple[str, str, str, int]]) -> Iterator[Record]:
    """Seed by seed, so that a race that is stopped early has all methods on the same seeds."""
    choosers = {name: SETS[options.what][name] for name in options.methods or SETS[options.what]}
    for world_name in options.worlds or WORLDS:
        for seed in range(options.seeds):
            missing = [name for name in choosers if (options.what, world_name, name, seed) not in known]
            if not missing:
                continue
            world = make_world(world_name, seed, options.cache)
            for name in missing:
                done = run_race(world, choosers[name](), seed)
                yield {
                    "set": options.what,
                    "world": world_name,
                    "method": name,
                    "seed": seed,
                    "accuracy": list(done.accuracy),
                    "seconds": done.seconds_a_choice,
                }


MEASURES: Final[Mapping[str, Callable[[argparse.Namespace, set[tuple[str, str, str, int]]], Iterator[Record]]]] = {
    "race": _race,
    "ablation": _race,
    "policies": _race,
    "plaza": lambda options, known: measure_plaza(options.seeds, options.cache, options.methods, known),
    "poison": lambda options, known: measure_poison(options.seeds, options.cache, known),
    "speed": lambda options, known: measure_speed(options.cache, known),
    "report": lambda *_: iter(()),
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(MEASURES))
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS))
    parser.add_argument("--methods", nargs="+", help="of the race, ablation, policies or plaza; all without")
    parser.add_argument("--results", type=Path, default=Path("labels.jsonl"), help="grows by a line a run")
    parser.add_argument(
        "--cache", type=Path, default=Path(".gleaner/demo/cache"), help="where Fashion-MNIST and the clip are or go"
    )
    parser.add_argument("--write", type=Path)
    return parser.parse_args(arguments)


def _read(path: Path) -> list[Record]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _line(record: Record) -> str:
    told = {key: value for key, value in record.items() if key != "accuracy"}
    if "accuracy" in record:
        told["last"] = record["accuracy"][-1]
    return json.dumps(told)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the peers' about classes that no label shows yet
    sys.exit(main())
