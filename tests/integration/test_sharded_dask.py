"""A selection on two Dask workers: a real cluster, a real PostgreSQL and a real S3 server are all that they share."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from curate.catalog.store import Catalog
from curate.selection.base import SampleRole
from curate.selection.batch import select_batch
from curate.settings import load_settings
from curate.storage.s3 import S3BlobStore
from curate.storage.s3_settings import S3Settings
from flows._candidates import gather_candidates
from flows._trust import read_trust
from flows._wiring import Services
from flows.sharded_selection import select_across
from tests.conftest import PostgresServer
from tests.fakes.answered_catalog import answered_samples, release_tiny, write_labels

CAPTURES, BUDGET, SEED = 900, 60, 2


@pytest.fixture
def wired(
    tmp_path: Path, postgres_server: PostgresServer, s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> Services:
    """Services as the environment describes them, which workers inherit."""
    environment = {
        "CATALOG_URL": postgres_server.fresh_url(),
        "CACHE_DIR": str(tmp_path / "cache"),
        "KEY_DIR": str(tmp_path / "keys"),
        "LABELS_FILE": str(write_labels(tmp_path / "labels.yaml")),
        "BUCKET__ENDPOINT_URL": s3_settings.endpoint_url,
        "BUCKET__BUCKET": s3_settings.bucket,
        "BUCKET__ACCESS_KEY": s3_settings.access_key.get_secret_value(),
        "BUCKET__SECRET_KEY": s3_settings.secret_key.get_secret_value(),
        "LABEL_STUDIO__URL": "http://127.0.0.1:9",
        "LABEL_STUDIO__TOKEN": "0" * 40,
        "SCALE__ROWS_PER_PART": "250",
        "SCALE__ROWS_PER_SHARD": "1000",
    }
    monkeypatch.delenv("GLEANER_CONFIG", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(f"GLEANER_{name}", value)
    settings = load_settings()
    catalog = Catalog.open(settings.catalog_url)
    return Services(settings, S3BlobStore(settings.bucket), catalog, lambda: pytest.fail("nobody is asked"))


def test_two_workers_choose_what_one_machine_would(wired: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is whole, its audits are those of one machine, both workers took part, and no blob is left."""
    incumbent = release_tiny(wired)
    wired.catalog.add_samples(answered_samples(CAPTURES))
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        monkeypatch.setenv("GLEANER_SCALE__DASK_SCHEDULER", cluster.scheduler_address)
        here = Services(load_settings(), wired.store, wired.catalog, wired.open_annotation)
        parted = select_across(here, incumbent, BUDGET, SEED)
        with Client(cluster) as client:
            done = client.run(lambda dask_worker: dask_worker.state.executed_count)
    pool, labelled = gather_candidates(wired, incumbent, read_trust(wired))
    whole = select_batch(pool, labelled, wired.settings.selection, BUDGET, SEED)
    audits = [{item.sample_id for item in each.items if item.role is SampleRole.AUDIT} for each in (parted, whole)]
    assert audits[0] == audits[1]
    assert len({item.sample_id for item in parted.items}) == BUDGET
    assert len(done) == 2
    assert all(done.values())
    assert not list(wired.store.list("models/sharded/"))
    wired.catalog.close()
