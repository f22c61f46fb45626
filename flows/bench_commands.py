"""`gleaner bench`: measure the parts that have to be fast on the machine that will run them."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from flows.bench_catalog import CatalogBench
    from flows.bench_selection import SelectionBench

bench_app = typer.Typer(no_args_is_help=True, help="Measure on this machine what has to be fast.")
GIB = 1024**3


@bench_app.callback()
def bench() -> None:
    """Measure on this machine what has to be fast."""


@bench_app.command("select")
def bench_select(
    rows: Annotated[int, typer.Option(min=1, help="Captures in the pool.")] = 1_000_000,
    dim: Annotated[int, typer.Option(min=8, help="Numbers in an embedding.")] = 256,
    budget: Annotated[int, typer.Option(min=1, help="How many to choose.")] = 10_000,
    copies: Annotated[float, typer.Option(min=1, help="Frames in a burst, on average; 1 makes all distinct.")] = 5.0,
    labels: Annotated[int, typer.Option(min=0, help="Labels from earlier rounds.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the captures and of the choice.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Where the embeddings are written meanwhile.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Choose a batch out of self-made, camera-like captures; say how long each stage took and in how much memory.

    Writes 2 bytes a number below --folder (or the system's folder for temporary files) and removes them.
    """
    from flows.bench_selection import run_selection_bench  # noqa: PLC0415 (loads numpy)

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with _scratch_and_bar(folder, *columns) as (scratch, bar, task):
        bench = run_selection_bench(
            scratch,
            rows,
            dim,
            budget,
            copies=copies,
            labels=labels,
            seed=seed,
            progress=lambda stage: bar.update(task, description=stage),
        )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(bench) | {"gemm_share": bench.gemm_share}))
    else:
        Console().print(_selection_table(bench))


@bench_app.command("catalog")
def bench_catalog(
    records: Annotated[int, typer.Option(min=1, help="Captures that wait in the inbox.")] = 20_000,
    embeddings: Annotated[int, typer.Option(min=1, help="Samples whose embeddings are read back.")] = 1_000_000,
    dim: Annotated[int, typer.Option(min=8, help="Numbers in an embedding.")] = 256,
    width: Annotated[int, typer.Option(min=16, help="Of a picture, in pixels.")] = 320,
    height: Annotated[int, typer.Option(min=16, help="Of a picture, in pixels.")] = 240,
    catalog_url: Annotated[
        str | None, typer.Option(help="An empty database to measure on; by default an SQLite file that goes again.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the captures.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Where bucket and catalog lie meanwhile.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Admit self-made captures through the real ingest, and read a million embeddings back; say how long each took.

    Writes pictures and catalog below --folder (or the system's folder for temporary files) and removes them.
    """
    from flows.bench_catalog import run_catalog_bench  # noqa: PLC0415 (loads numpy)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with _scratch_and_bar(folder, *columns) as (scratch, bar, task):
        bench = run_catalog_bench(
            scratch,
            records,
            embeddings,
            dim,
            width=width,
            height=height,
            catalog_url=catalog_url,
            seed=seed,
            progress=lambda stage, done, total: bar.update(
                task, description=stage, completed=done, total=total or None
            ),
        )
    if as_json:
        rates = {"records_per_s": bench.records_per_s, "records_per_cpu_s": bench.records_per_cpu_s}
        typer.echo(json.dumps(dataclasses.asdict(bench) | rates))
    else:
        Console().print(_catalog_table(bench))


@contextmanager
def _scratch_and_bar(folder: Path | None, *columns: ProgressColumn) -> Iterator[tuple[Path, Progress, TaskID]]:
    """Lend a folder that goes again, and a bar on standard error with one task."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
    ):
        yield Path(scratch), bar, bar.add_task("start", total=None)


def _catalog_table(bench: CatalogBench) -> Table:
    table = Table("stage", "seconds", "processor seconds", title=f"{bench.database}, {bench.dim} numbers")
    for name, stage in (
        (f"admit {bench.admitted:,} captures", bench.admission),
        (f"read {bench.embeddings:,} embeddings", bench.reading),
    ):
        table.add_row(name, f"{stage.wall_s:.2f}", f"{stage.cpu_s:.2f}")
    size = f"{bench.width} x {bench.height}, {bench.picture_bytes / 1024:.0f} KiB"
    table.add_row(f"look at one picture of {size}", f"{bench.picture.wall_s:.5f}", f"{bench.picture.cpu_s:.5f}")
    table.add_row("captures a second", f"{bench.records_per_s:,.0f}", f"{bench.records_per_cpu_s:,.0f}")
    table.add_row("peak memory, GiB", f"{bench.peak_bytes / GIB:.2f}")
    return table


def _selection_table(bench: SelectionBench) -> Table:
    table = Table("stage", "seconds", "processor seconds", title=f"{bench.budget:,} of {bench.rows:,} x {bench.dim}")
    for name, stage in (*bench.stages.items(), ("all", bench.total)):
        table.add_row(name, f"{stage.wall_s:.2f}", f"{stage.cpu_s:.2f}", end_section=name == "explain")
    table.add_row("peak memory, GiB", f"{bench.peak_bytes / GIB:.2f}")
    table.add_row("sights, cells, picks", f"{bench.sights:,}, {bench.cells:,}, {bench.picks:,}")
    if bench.gemm_share is not None:
        table.add_row("of the bare product's speed", f"{bench.gemm_share:.0%}")
    return table
