"""Forgetting a device, and taking that back: the dataset, the open questions, the candidates, the weights."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.catalog.models import (
    AnnotationRow,
    DatasetItem,
    DatasetVersion,
    ModelRow,
    ModelStatus,
    Round,
    RoundPhase,
    SampleStatus,
    SelectedRow,
    SelectionRole,
    Split,
    TaskStatus,
)
from curate.catalog.splits import dataset_digest
from curate.catalog.unlearning import (
    STARTED_FROM,
    Holdings,
    models_that_saw,
    newest_clean,
    plan_relearning,
    plan_unlearning,
)
from curate.errors import CatalogError
from curate.training.recipe import TrainingRecipe
from flows._wiring import Services
from flows.train_candidate import starting_point
from flows.unlearn_device import describe_plan, plan_unlearn, unlearn_device
from tests.catalog_builders import NOW, batch, capture, feedback, plan
from tests.fakes.wiring import local_services

LATER = NOW + timedelta(days=1)
DEVICES = ("cam-1", "cam-2", "imported")


def item(name: str, device: str, split: Split, group: str | None = None) -> DatasetItem:
    return DatasetItem(name, f"captures/{name}.jpg", {"class": "bag"}, split, group or name, device, "front")


def version(items: list[DatasetItem]) -> DatasetVersion:
    ordered = tuple(sorted(items, key=lambda each: each.sample_id))
    return DatasetVersion(dataset_digest(ordered), 1, NOW, ordered)


def holdings(device: str = "cam-1", models: tuple[ModelRow, ...] = ()) -> Holdings:
    return Holdings(device, {}, 0, 0, {}, models)


def model(name: str, number: int, dataset: str, parent: str | None = None, *, released: bool = True) -> ModelRow:
    status = ModelStatus.RELEASED if released else ModelStatus.CANDIDATE
    release = (f"r{number}", number) if released else (None, None)
    return ModelRow(name, number, dataset, NOW, status, {}, {STARTED_FROM: parent}, *release)


ITEMS = st.lists(
    st.builds(
        item,
        st.integers(0, 99).map("s{:02d}".format),
        st.sampled_from(DEVICES),
        st.sampled_from(list(Split)),
        st.sampled_from(["g0", "g1", "g2", "g3"]),
    ),
    unique_by=lambda each: each.sample_id,
)


@given(ITEMS)
def test_what_stays_is_what_others_sent(items: list[DatasetItem]) -> None:
    """The rebuilt version holds the others' items unchanged and nothing of the device; doing it again is nothing."""
    newest = version(items)
    planned = plan_unlearning(holdings(), is_marked=False, newest=newest, rounds=[], now=LATER)
    others = tuple(each for each in newest.items if each.device_id != "cam-1")
    assert (planned.dataset.items if planned.dataset else newest.items) == others
    assert (planned.dataset is None) == (len(others) == len(newest.items))
    again = plan_unlearning(holdings(), is_marked=True, newest=planned.dataset or newest, rounds=[], now=LATER)
    assert not again


@given(ITEMS)
def test_taking_it_back_restores_the_version(items: list[DatasetItem]) -> None:
    """Where nothing happened in between the version is the very same again, splits included."""
    newest = version([each for each in items if _is_consistent(each, items)])
    planned = plan_unlearning(holdings(), is_marked=False, newest=newest, rounds=[], now=LATER)
    stripped = planned.dataset or newest
    back = plan_relearning(holdings(), is_marked=True, newest=stripped, last_with=newest, now=LATER)
    restored = back.dataset or stripped
    assert (restored.items, restored.version) == (newest.items, newest.version)
    assert back


def _is_consistent(each: DatasetItem, items: list[DatasetItem]) -> bool:
    """Real versions have no group on two sides."""
    sides = {other.split is Split.TEST for other in items if other.group == each.group}
    return each.split is Split.EXCLUDED or len(sides) == 1


def test_a_group_that_changed_sides_in_between_is_left_out() -> None:
    """An item whose group judges by now does not come back to teach; its label stays known and excluded."""
    before = version([item("mine", "cam-1", Split.TRAIN, "g"), item("other", "cam-2", Split.TRAIN)])
    since = version([item("audit", "cam-2", Split.TEST, "g"), item("other", "cam-2", Split.TRAIN)])
    back = plan_relearning(holdings(), is_marked=True, newest=since, last_with=before, now=LATER)
    assert back.dataset is not None
    assert {each.sample_id: each.split for each in back.dataset.items} == {
        "audit": Split.TEST,
        "mine": Split.EXCLUDED,
        "other": Split.TRAIN,
    }


def test_weights_remember_through_generations() -> None:
    """A model that began with the weights of one that saw the device has seen it, and so have its heirs."""
    models = [model("m0", 0, "clean"), model("m1", 1, "bad", "m0"), model("m2", 2, "clean2", "m1")]
    models += [model("m3", 3, "clean2", "m2"), model("m4", 4, "clean2", "m0", released=False)]
    assert [each.model_id for each in models_that_saw(models, {"bad"})] == ["m1", "m2", "m3"]
    assert newest_clean(models, {"bad"}) == models[0]
    assert newest_clean(models, ()) == models[3]
    assert newest_clean(models, {"clean"}) is None


def test_only_candidates_of_unfinished_rounds_are_refused() -> None:
    """What is released stays released and what was decided stays decided; an open round's candidate is held back."""
    seen = (model("m1", 1, "bad"), model("m2", 2, "bad", released=False), model("m3", 3, "bad", released=False))
    rounds = [Round(n, RoundPhase.CLOSED if n < 3 else RoundPhase.COMPRESSED, 9, 0, NOW) for n in (1, 2, 3)]
    planned = plan_unlearning(holdings(models=seen), is_marked=True, newest=None, rounds=rounds, now=LATER)
    assert planned.refused == ("m3",)


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """Two devices with four captures each; of each one is labelled, one asked, one planned, and one dismissed."""
    with local_services(tmp_path, training=TrainingRecipe(start="incumbent")) as services:
        catalog = services.catalog
        for device in ("cam-1", "cam-2"):
            captures = [capture(number, device) for number in range(4)]
            said = [feedback(int(device[-1]), f"p-{device}-3")]
            catalog.admit_batch(plan(batch(captures=captures, device=device, feedback=said)))
        catalog.join_feedback()
        catalog.open_round(1, budget=6, seed=0, now=NOW)
        names = [f"{device}-{number}" for number in range(3) for device in ("cam-1", "cam-2")]
        rows = [
            SelectedRow(1, name, rank, SelectionRole.ACTIVE, 0.5, None, ()) for rank, name in enumerate(names, start=1)
        ]
        catalog.save_selection(1, rows)
        catalog.mark_sent({name: f"task-{name}" for name in names[:4]})
        label = {"class": services.settings.labels.class_names[0]}
        catalog.save_annotations([AnnotationRow(f"a-{n}", n, "ann", label, False, NOW, NOW) for n in names[:2]])
        catalog.save_dataset_version(version([item(n, n[:5], Split.TRAIN) for n in names[:2]]))
        yield services


def seen_devices(wired: Services) -> set[str]:
    return {sample.device_id for sample in wired.catalog.samples()}


def task_status(wired: Services) -> dict[str, TaskStatus]:
    return {task.sample_id: task.status for task in wired.catalog.tasks()}


def test_a_dry_run_changes_nothing(wired: Services) -> None:
    """The plan tells what there is, and everything stays as it was."""
    before = (wired.catalog.devices(), task_status(wired), wired.catalog.latest_dataset_version())
    planned = plan_unlearn(wired, "cam-1", LATER)
    assert (planned.holdings.waiting, planned.holdings.verdicts, planned.holdings.items) == (2, 1, {"train": 1})
    assert planned.holdings.samples == {"labelled": 1, "pool": 1, "queued": 2}
    assert any("would be unlearned" in line for line in describe_plan(planned, done=False))
    assert (wired.catalog.devices(), task_status(wired), wired.catalog.latest_dataset_version()) == before


def test_nothing_of_it_counts_any_longer(wired: Services) -> None:
    """Its samples, its label and its open questions are gone, later captures too; the other device's stay."""
    unlearn_device(wired, "cam-1", LATER)
    wired.catalog.admit_batch(plan(batch(2, [capture(9, "cam-1")], device="cam-1")))
    assert seen_devices(wired) == {"cam-2"}
    newest = wired.catalog.latest_dataset_version()
    assert newest is not None
    assert [each.sample_id for each in newest.items] == ["cam-2-0"]
    assert {name: task for name, task in task_status(wired).items() if task is TaskStatus.SKIPPED} == {
        "cam-1-1": TaskStatus.SKIPPED,
        "cam-1-2": TaskStatus.SKIPPED,
    }
    assert not plan_unlearn(wired, "cam-1", LATER)


def test_it_cannot_be_chosen_by_who_looked_before(wired: Services) -> None:
    """A selection that was made before the device was unlearned is refused when it is saved."""
    wired.catalog.open_round(2, budget=1, seed=0, now=NOW)
    unlearn_device(wired, "cam-1", LATER)
    with pytest.raises(CatalogError, match="not in the pool"):
        wired.catalog.save_selection(2, [SelectedRow(2, "cam-1-3", 1, SelectionRole.ACTIVE, 0.5, None, ())])


def test_everything_comes_back(wired: Services) -> None:
    """Taken back at once, samples, tasks, dataset and device are as they were; what a person skipped stays skipped."""
    skipped = AnnotationRow("a-skip", "cam-1-1", "ann", None, True, NOW, NOW)
    wired.catalog.save_annotations([skipped])
    before = (wired.catalog.devices(), task_status(wired), wired.catalog.latest_dataset_version())
    unlearn_device(wired, "cam-1", LATER)
    assert plan_unlearn(wired, "cam-1", LATER, undo=True)
    unlearn_device(wired, "cam-1", LATER, undo=True)
    assert (wired.catalog.devices(), task_status(wired), wired.catalog.latest_dataset_version()) == before
    assert seen_devices(wired) == {"cam-1", "cam-2"}
    assert wired.catalog.samples(status=SampleStatus.SKIPPED)[0].sample_id == "cam-1-1"
    assert not plan_unlearn(wired, "cam-1", LATER, undo=True)


@pytest.mark.parametrize("undo", [False, True])
def test_a_run_that_was_killed_is_finished_by_the_next(wired: Services, *, undo: bool) -> None:
    """Killed between its two transactions, another run leads to the same end."""
    if undo:
        unlearn_device(wired, "cam-1", LATER)
        planned = plan_unlearn(wired, "cam-1", LATER, undo=True)
        assert planned.dataset is not None
        wired.catalog.save_dataset_version(planned.dataset, renew=True)
    else:
        wired.catalog.unlearn_device("cam-1", LATER)
    assert plan_unlearn(wired, "cam-1", LATER, undo=undo)
    unlearn_device(wired, "cam-1", LATER, undo=undo)
    newest = wired.catalog.latest_dataset_version()
    assert newest is not None
    assert {each.device_id for each in newest.items} == ({"cam-1", "cam-2"} if undo else {"cam-2"})
    assert seen_devices(wired) == {each.device_id for each in newest.items}


def test_training_starts_from_weights_that_have_not_seen_it(wired: Services) -> None:
    """The next training goes back to the newest clean release; without one it starts afresh; a candidate is refused."""
    dirty = wired.catalog.latest_dataset_version()
    assert dirty is not None
    clean = version([item("x", "imported", Split.TRAIN)])
    wired.catalog.save_dataset_version(clean)
    wired.catalog.save_model(model("m0", 0, clean.version))
    wired.catalog.save_model(model("m1", 1, dirty.version, "m0"))
    wired.catalog.save_model(model("m2", 1, clean.version, "m1", released=False))
    assert starting_point(wired) == wired.catalog.model("m1")
    done = unlearn_device(wired, "cam-1", LATER)
    assert starting_point(wired) == wired.catalog.model("m0")
    refused = wired.catalog.model("m2")
    assert refused is not None
    assert refused.status is ModelStatus.REFUSED
    assert refused.gate is not None
    assert not refused.gate["promote"]
    assert "releases that have seen its samples: r1" in describe_plan(done, done=True)


def test_beside_a_turning_round_nothing_is_forgotten(wired: Services) -> None:
    """While a round holds the lock the command fails, to be tried again, and changes nothing."""
    with wired.catalog.exclusive("curation-round"), pytest.raises(CatalogError) as busy:
        unlearn_device(wired, "cam-1", LATER)
    assert busy.value.retryable
    assert seen_devices(wired) == {"cam-1", "cam-2"}


@pytest.mark.parametrize("undo", [False, True])
def test_a_strange_device_is_told(wired: Services, *, undo: bool) -> None:
    """Who is not in the catalog can neither be unlearned nor brought back, and the hint says where the names are."""
    with pytest.raises(CatalogError, match="cam-9") as refused:
        plan_unlearn(wired, "cam-9", LATER, undo=undo)
    assert refused.value.hint
