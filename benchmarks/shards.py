"""How much of the pool is covered by what is chosen in shards, against what one machine chooses.

    python benchmarks/shards.py [--rows 6000] [--seeds 5] [--write benchmarks/shards.md]

Distinct captures of `gleaner bench select`; the active share alone, by uncertainty-weighted coverage. The objective is
computed densely over all captures, by nobody's cells or shards.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from curate.selection.base import CandidatePool, LabelledSet, Selection, SelectionPolicy
from curate.selection.batch import select_batch
from curate.selection.kernel import rbf_kernel
from curate.selection.rows import blocks, unit_rows
from curate.selection.shard_work import Workplace
from curate.selection.sharded import select_sharded
from curate.selection.uncertainty import margin_uncertainty
from curate.storage.local import LocalBlobStore
from edge_agent.bench.command import replace_table
from flows.bench_selection import write_pool

BUDGET, DIM, PARTS = 200, 128, 4
SHARDS = (2, 4, 8, 16)
RADII = (1.0, 0.5)


class Pieces:
    """A pool in equal parts."""

    def __init__(self, pool: CandidatePool) -> None:
        self._pool = pool

    def parts(self) -> list[int]:
        """Their numbers."""
        return list(range(PARTS))

    def read(self, part: int) -> CandidatePool:
        """Read one of them."""
        return self._pool.take(np.arange(part, len(self._pool), PARTS))

    def pick(self, ids: list[str]) -> CandidatePool:
        """Read single rows."""
        row_of = {name: row for row, name in enumerate(self._pool.ids)}
        return self._pool.take([row_of[name] for name in ids])


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="put the table between the marks in this Markdown file")
    arguments = parser.parse_args()
    lines = ["| kernel radius | shards | covered, of one machine's | least | random, of one machine's | processor s |"]
    lines += ["|---|---|---|---|---|---|"]
    for radius in RADII:
        lines += _measure(arguments.rows, arguments.seeds, radius)
    table = "\n".join([f"{BUDGET} of {arguments.rows:,} x {DIM}, {arguments.seeds} seeds:", "", *lines, ""])
    print(table)
    if arguments.write is not None:
        arguments.write.write_text(replace_table(arguments.write.read_text("utf-8"), table), "utf-8")


def _measure(rows: int, seeds: int, radius: float) -> list[str]:
    policy = SelectionPolicy(
        audit_share=0.0, explore_share=0.0, max_device_share=1.0, max_radius=radius, min_radius=min(0.5, radius)
    )
    chance = policy.model_copy(update={"strategy": "random"})
    share: dict[int, list[float]] = {count: [] for count in (1, *SHARDS)}
    cost: dict[int, list[float]] = {count: [] for count in (1, *SHARDS)}
    by_chance = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            pool = write_pool(Path(folder) / f"{radius}-{seed}", rows, DIM, copies=1.0, seed=seed)
            empty = LabelledSet.empty(DIM)
            whole = 0.0
            for count in (1, *SHARDS):
                started = time.process_time()
                if count == 1:
                    chosen = select_batch(pool, empty, policy, BUDGET, seed)
                else:
                    chosen = _in_shards(pool, policy, seed, Path(folder), rows // count)
                cost[count].append(time.process_time() - started)
                covered = _coverage(pool, chosen, radius)
                whole = whole or covered
                share[count].append(covered / whole)
            by_chance.append(_coverage(pool, select_batch(pool, empty, chance, BUDGET, seed), radius) / whole)
    return [
        f"| {radius} | {'one machine' if count == 1 else f'about {count}'} | {np.mean(share[count]):.3f}"
        f" | {np.min(share[count]):.3f} | {np.mean(by_chance):.3f} | {np.mean(cost[count]):.1f} |"
        for count in share
    ]


def _in_shards(pool: CandidatePool, policy: SelectionPolicy, seed: int, folder: Path, size: int) -> Selection:
    workplace = Workplace(Pieces(pool), LocalBlobStore(folder / "bucket"))
    empty = LabelledSet.empty(DIM)
    return select_sharded(
        partial(_given, workplace), empty, policy, BUDGET, seed, run=map, name="job", rows_per_shard=size
    )


def _given(workplace: Workplace) -> Workplace:
    return workplace


def _coverage(pool: CandidatePool, chosen: Selection, radius: float) -> float:
    row_of = {name: row for row, name in enumerate(pool.ids)}
    heads = unit_rows(pool.embeddings[[row_of[item.sample_id] for item in chosen.items]])
    assert pool.probabilities is not None
    weights = margin_uncertainty(pool.probabilities)
    return sum(
        float((weights[block] * rbf_kernel(unit_rows(pool.embeddings[block]), heads, radius).max(axis=1)).sum())
        for block in blocks(len(pool))
    )


if __name__ == "__main__":
    main()
