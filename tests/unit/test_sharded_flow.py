"""What workers read of the catalog is what one machine would have gathered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from curate.catalog.models import SampleStatus
from curate.errors import ConfigError, SelectionError
from curate.selection.base import SampleRole, Selection, SelectionPolicy
from curate.selection.batch import select_batch
from curate.selection.exchange import concatenate
from curate.selection.shard_work import Workplace
from curate.selection.sharded import select_sharded
from flows._candidates import CatalogPool, gather_candidates, gather_labelled
from flows._trust import read_trust
from flows._wiring import Services
from flows.sharded_selection import (
    NOT_COMPARED,
    open_client,
    say_what_counts,
    select_across,
)
from tests.catalog_builders import detection
from tests.fakes.answered_catalog import answered_samples, foreign_sample, release_tiny, write_labels
from tests.fakes.wiring import local_services


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """A catalog and a bucket on this disk; the fleet's model is the tiny one."""
    policy = SelectionPolicy(disagreement_weight=0.5)
    with local_services(tmp_path, labels_file=write_labels(tmp_path / "labels.yaml"), selection=policy) as services:
        yield services


def test_parts_together_are_the_pool_of_one_machine(wired: Services) -> None:
    """Every column of every capture is what gathering at once gives, also where this machine had to run the model."""
    incumbent = release_tiny(wired)
    wired.catalog.add_samples([*answered_samples(50), foreign_sample(wired, 900, 30), foreign_sample(wired, 901, 220)])
    asked = [sample.sample_id for sample in answered_samples(50)[:5]]
    wired.catalog.set_status(asked, SampleStatus.QUEUED)
    trust = read_trust(wired)
    whole, labelled = gather_candidates(wired, incumbent, trust)
    source = CatalogPool(wired, incumbent, trust, rows_per_part=12)
    parted = concatenate([source.read(part) for part in source.parts()])
    assert len(source.parts()) == 5
    order = np.argsort(parted.ids)
    assert [parted.ids[row] for row in order] == sorted(whole.ids)
    here = whole.take(np.argsort(whole.ids))
    there = parted.take(order)
    for name in ("devices", "cameras", "captured_s", "random_probability", "feedback", "disagreement", "sites"):
        np.testing.assert_equal(getattr(there, name), getattr(here, name), name)
    np.testing.assert_allclose(there.embeddings, here.embeddings, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(there.probabilities, here.probabilities, atol=1e-6)
    assert _same_groups(there.groups, here.groups)
    alone = gather_labelled(wired, incumbent)
    assert sorted(alone.ids) == sorted(labelled.ids) == sorted(asked)
    assert sorted(source.pick(there.ids[3:6]).ids) == list(there.ids[3:6])


def _same_groups(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    return len(set(zip(left, right, strict=True))) == len(set(left)) == len(set(right))


def test_shards_of_a_catalog_meet_in_the_bucket(wired: Services) -> None:
    """A selection over parts and shards of the catalog is whole, audits what one machine would, and leaves no blob."""
    incumbent = release_tiny(wired)
    wired.catalog.add_samples(answered_samples(300))
    trust = read_trust(wired)
    workplace = Workplace(CatalogPool(wired, incumbent, trust, rows_per_part=70), wired.store)
    policy = wired.settings.selection
    parted = select_sharded(
        partial(_given, workplace),
        gather_labelled(wired, incumbent),
        policy,
        30,
        5,
        run=map,
        name="models/sharded/test",
        rows_per_shard=100,
    )
    pool, labelled = gather_candidates(wired, incumbent, trust)
    whole = select_batch(pool, labelled, policy, 30, 5)
    audits = [{item.sample_id for item in each.items if item.role is SampleRole.AUDIT} for each in (parted, whole)]
    assert audits[0] == audits[1]
    assert len(parted.items) == 30
    assert not list(wired.store.list("models/sharded/"))


def _given(workplace: Workplace) -> Workplace:
    return workplace


def test_workers_cannot_share_a_file(wired: Services) -> None:
    """An SQLite catalog is refused before anybody is asked to work, and so is a scheduler that nobody runs."""
    incumbent = release_tiny(wired)
    with pytest.raises(ConfigError, match="SQLite"):
        select_across(wired, incumbent, 10, 0)
    with pytest.raises(ConfigError, match="Dask"), open_client("nobody://nowhere"):
        pass


def test_shards_say_that_they_compare_nothing() -> None:
    """Where the policy weighs disagreement, the selection notes that only what devices report counts."""
    whole = Selection((), 10, 0, "0" * 64, pool_size=0, distinct_sights=0, notes=("something",))
    weighed = say_what_counts(whole, SelectionPolicy(disagreement_weight=0.5))
    assert weighed.notes == ("something", NOT_COMPARED)
    assert say_what_counts(whole, SelectionPolicy()).notes == ("something",)


def test_a_pool_of_another_kind_is_refused(wired: Services) -> None:
    """Captures without distributions cannot be told apart in shards, and the message says what to set."""
    incumbent = release_tiny(wired)
    boxed = [replace(each, prediction=detection(number)) for number, each in enumerate(answered_samples(3))]
    wired.catalog.add_samples(boxed)
    source = CatalogPool(wired, incumbent, read_trust(wired), rows_per_part=10)
    with pytest.raises(SelectionError, match="classifiers") as raised:
        source.read(source.parts()[0])
    assert "dask_scheduler" in str(raised.value.hint)
