"""What a chosen sample carries so that the choice can be explained later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from curate.selection.base import LabelledSet, SampleRole, SelectedSample, SelectionPolicy
from curate.selection.batch import select_batch
from curate.selection.diversity import find_nearest, nearest_similarity
from curate.selection.explain import PARTS
from tests.unit.test_selection_batch import DIM, empty, make_pool

POLICY = SelectionPolicy(audit_share=0.25, explore_share=0.5)


def by_id(items: tuple[SelectedSample, ...]) -> dict[str, SelectedSample]:
    return {item.sample_id: item for item in items}


def test_every_pick_names_its_closest_training_label() -> None:
    """The named label is the closest of those that teach, held-out ones not among them, at the cosine that is told."""
    pool = make_pool(40)
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(6, DIM)).astype(np.float32)
    labelled = LabelledSet(
        ids=tuple(f"l{i}" for i in range(6)),
        embeddings=vectors,
        groups=tuple(f"g{i}" for i in range(6)),
        held_out=np.array([False, True] * 3),
    )
    rows = {name: row for row, name in enumerate(pool.ids)}
    items = select_batch(pool, labelled, POLICY, 24, 0).items
    assert len(items) == 24
    for item in items:
        mine = pool.embeddings[rows[item.sample_id]]
        cosines = vectors @ mine / np.linalg.norm(vectors, axis=1) / np.linalg.norm(mine)
        best = max((0, 2, 4), key=lambda i: cosines[i])
        assert item.nearest_id == f"l{best}"
        assert item.nearest_labelled == pytest.approx(cosines[best], abs=1e-5)


def test_without_labels_there_is_no_neighbour() -> None:
    """Nothing is named while nothing is labelled."""
    items = select_batch(make_pool(20), empty(), POLICY, 10, 0).items
    assert {(item.nearest_id, item.nearest_labelled) for item in items} == {(None, None)}


def test_the_random_half_says_that_it_is() -> None:
    """As many active picks as the policy explores of a pool that leans are marked so; an audit never is."""
    pool = make_pool(80)
    items = select_batch(pool, empty(), POLICY, 40, 0).items
    active = [item for item in items if item.role is SampleRole.ACTIVE]
    leaning = float(np.isnan(pool.random_probability).mean())
    assert sum(item.explored for item in active) == round(0.5 * leaning * len(active)) > 5
    assert not any(item.explored for item in items if item.role is SampleRole.AUDIT)
    assert all(("explored" in item.reasons[0]) == item.explored for item in active)


def test_the_parts_make_up_the_score() -> None:
    """Model, evidence and disagreement are the row's own, their sum is the noisy-or, and unknown ones are left out."""
    pool = make_pool(30, random_share=0)
    feedback = np.zeros(len(pool))
    feedback[72] = 0.5
    disagreement = np.where(np.arange(len(pool)) < 75, 0.8, np.nan)
    policy = SelectionPolicy(audit_share=0, explore_share=0, disagreement_weight=0.25, multiplicity_power=0.5)
    chosen = by_id(
        select_batch(replace(pool, feedback=feedback, disagreement=disagreement), empty(), policy, 30, 0).items
    )
    for name, item in chosen.items():
        parts, row = item.parts, int(name[1:])
        assert set(parts) == set(PARTS) - (set() if row < 75 else {"disagreement"})
        said = 0.75 * parts["model"] + 0.25 * parts.get("disagreement", 0.8)  # what was not compared counts as typical
        assert parts["uncertainty"] == pytest.approx(1 - (1 - said) * (1 - parts["evidence"]))
        assert parts["weight"] == pytest.approx(5**0.5)
    assert chosen["s00072"].parts["evidence"] == 0.5


def test_a_large_pool_tells_the_cell_and_a_small_one_has_none() -> None:
    """Cells are named where the pool was cut into some, which begins at a thousand sights."""
    pool = make_pool(1500, 1)
    whole = select_batch(pool, empty(), POLICY, 12, 0)
    cut = select_batch(pool, empty(), POLICY.model_copy(update={"max_candidates": 400}), 12, 0)
    assert {item.cell for item in whole.items} == {None}
    assert cut.cells is not None
    assert all(item.cell is not None and 0 <= item.cell < len(cut.cells.centroids) for item in cut.items)


def test_the_nearest_is_found_in_blocks() -> None:
    """Which reference is nearest does not depend on how many rows are compared at once."""
    rng = np.random.default_rng(0)
    rows, references = (rng.normal(size=(n, 8)).astype(np.float32) for n in (3000, 7))
    nearest, cosines = find_nearest(rows, references)
    assert np.array_equal(nearest, (rows @ references.T).argmax(axis=1))
    assert np.array_equal(cosines, nearest_similarity(rows, references))
