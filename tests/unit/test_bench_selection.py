"""The bench of selection: its captures are camera-like, and what it prints adds up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.bench_selection import run_selection_bench, write_pool
from flows.cli import app


def test_a_bench_times_every_stage_of_one_selection(tmp_path: Path) -> None:
    """The budget is chosen, stages add up to the total, and every stage that runs is announced."""
    told: list[str] = []
    bench = run_selection_bench(tmp_path, 9000, 16, 60, copies=1.0, labels=40, seed=0, progress=told.append)
    assert (bench.picks, bench.rows, bench.budget) == (60, 9000, 60)
    assert bench.cells > 1
    assert set(bench.stages) <= set(told)
    assert bench.total.wall_s == pytest.approx(sum(stage.wall_s for stage in bench.stages.values()))
    assert bench.peak_bytes > 9000 * 16 * 2
    assert bench.gemm_share is not None
    assert bench.gemm_share > 0


def test_the_captures_are_bursts_of_unit_rows(tmp_path: Path) -> None:
    """Embeddings have length 1, a burst's frames look alike and strangers do not, and a seed gives the same pool."""
    pool = write_pool(tmp_path / "a", 3000, 64, copies=5.0, seed=1)
    unit = np.asarray(pool.embeddings, np.float32)
    assert np.linalg.norm(unit, axis=1) == pytest.approx(1.0, abs=2e-3)
    same_burst = np.array([left == right for left, right in zip(pool.groups, pool.groups[1:], strict=False)])
    beside = np.einsum("ij,ij->i", unit[:-1], unit[1:])
    assert beside[same_burst].mean() > 0.9
    assert beside[~same_burst].mean() < 0.7
    again = write_pool(tmp_path / "b", 3000, 64, copies=5.0, seed=1)
    assert again.ids == pool.ids
    assert np.array_equal(again.embeddings, pool.embeddings)


def test_the_command_prints_json_or_a_table(tmp_path: Path) -> None:
    """`gleaner bench select` prints one JSON object, or a table, and leaves nothing behind."""
    arguments = ["bench", "select", "--rows", "600", "--dim", "16", "--budget", "20", "--folder", str(tmp_path)]
    printed = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(printed.stdout)["picks"] == 20
    table = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "peak memory" in table.stdout
    assert not list(tmp_path.iterdir())
