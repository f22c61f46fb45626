"""The bench of the catalog: it goes the way that captures go, and what it prints is what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curate.catalog.ingest import inspect_image
from curate.catalog.store import Catalog
from curate.errors import ConfigError
from flows.bench_catalog import RELEASE, CatalogBench, pictures, run_catalog_bench
from flows.cli import app
from tests.catalog_builders import samples


def _run(folder: Path, catalog_url: str | None = None, told: list[tuple[str, int, int]] | None = None) -> CatalogBench:
    return run_catalog_bench(
        folder,
        70,
        100,
        8,
        width=64,
        height=48,
        catalog_url=catalog_url,
        seed=0,
        progress=lambda *stage: None if told is None else told.append(stage),
    )


def test_a_bench_admits_every_capture_and_reads_every_embedding(tmp_path: Path) -> None:
    """Captures come in through the inbox without a refusal, the rest by import, and all of them are read back."""
    told: list[tuple[str, int, int]] = []
    url = f"sqlite:///{tmp_path / 'own.db'}"
    bench = _run(tmp_path, url, told)
    assert (bench.records, bench.admitted, bench.embeddings, bench.dim, bench.database) == (70, 70, 100, 8, "sqlite")
    assert bench.records_per_s > 0
    assert bench.records_per_cpu_s > 0
    assert {name for name, _, _ in told} == {
        "write pictures and batches",
        "admit batches",
        "fill up by import",
        "read embeddings",
    }
    with Catalog.open(url) as catalog:
        assert catalog.quarantine() == []
        assert {sample.release_id for sample in catalog.samples()} == {RELEASE}
        assert len(catalog.batches()) == 3
    assert not list((tmp_path / "bucket" / "inbox").rglob("*.json"))


def test_a_catalog_in_use_is_not_touched(tmp_path: Path) -> None:
    """A bench of a catalog that holds samples is refused before anything is written."""
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    with Catalog.open(url) as catalog:
        catalog.add_samples(samples(2))
    with pytest.raises(ConfigError, match="holds samples"):
        _run(tmp_path, url)
    with Catalog.open(url) as catalog:
        assert len(catalog.samples()) == 2


def test_the_pictures_are_whole_and_differ() -> None:
    """What the bench uploads is what a camera would: JPEGs of the size asked for that decode."""
    made = pictures(64, 48, 0)
    facts = [inspect_image(picture) for picture in made]
    assert {(each.width, each.height, each.problem) for each in facts} == {(64, 48, None)}
    assert len({each.sha256 for each in facts}) == len(made)


def test_the_command_prints_json_or_a_table(tmp_path: Path) -> None:
    """`gleaner bench catalog` prints one JSON object, or a table, and leaves nothing behind."""
    sizes = ["--records", "40", "--embeddings", "50", "--dim", "8", "--width", "64", "--height", "48"]
    arguments = ["bench", "catalog", *sizes, "--folder", str(tmp_path)]
    printed = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert (printed["admitted"], printed["embeddings"]) == (40, 50)
    assert printed["records_per_s"] == pytest.approx(40 / printed["admission"]["wall_s"])
    table = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "captures a second" in table.stdout
    assert not list(tmp_path.iterdir())
