"""BALD: what several models disagree about."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import SelectionError
from curate.selection.base import CandidatePool
from curate.selection.committee import BaldStrategy, mutual_information
from curate.selection.query import QueryProblem
from curate.selection.rows import unit_rows


def make_problem(members: np.ndarray | None, n: int) -> QueryProblem:
    return QueryProblem(
        embeddings=unit_rows(np.random.default_rng(0).normal(size=(n, 4))),
        probabilities=None,
        weights=np.ones(n),
        evidence=np.zeros(n),
        candidates=np.arange(n),
        members=members,
    )


def test_information_is_disagreement_of_the_sure() -> None:
    """Models that are unsure alike tell nothing; models that are each sure of another class tell everything."""
    alike = np.full((2, 2), 0.5)
    at_odds = np.eye(2)
    between = np.array([[0.9, 0.1], [0.1, 0.9]])
    found = mutual_information(np.array([alike, at_odds, between], np.float32))
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert found == pytest.approx([0.0, 1.0, 1.0 - entropy / np.log(2)], abs=1e-6)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**16))
def test_information_is_between_none_and_all(models: int, classes: int, seed: int) -> None:
    """It lies in [0, 1], is the same for any order of the models, and one model alone tells nothing."""
    rng = np.random.default_rng(seed)
    members = rng.dirichlet(np.full(classes, 0.3), size=(6, models)).astype(np.float32)
    found = mutual_information(members)
    assert ((found >= 0) & (found <= 1)).all()
    assert mutual_information(members[:, ::-1]) == pytest.approx(found, abs=1e-9)
    if models == 1 or classes == 1:
        assert not found.any()


def test_feedback_raises_what_the_models_agree_on() -> None:
    """A dismissed prediction is asked before one that nobody objects to, even if the models agree."""
    problem = replace(make_problem(np.full((2, 3, 2), 0.5, np.float32), 2), evidence=np.array([0.0, 0.5]))
    initial = BaldStrategy().utilities(problem, np.random.default_rng(0)).initial
    assert initial.tolist() == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize("members", [None, np.full((3, 1, 2), 0.5, np.float32)])
def test_without_several_models_it_is_refused(members: np.ndarray | None) -> None:
    """A pool without the answers of two models cannot be chosen from by bald; the error says what to supply."""
    with pytest.raises(SelectionError, match="at least two models") as caught:
        BaldStrategy().utilities(make_problem(members, 3), np.random.default_rng(0))
    assert "members" in str(caught.value.hint)


def test_members_of_another_shape_are_refused() -> None:
    """Members that are not captures by models by classes never get into a pool."""
    with pytest.raises(SelectionError, match="captures by models by classes"):
        CandidatePool(
            ids=("a", "b"),
            embeddings=np.eye(2, dtype=np.float32),
            probabilities=np.full((2, 2), 0.5, np.float32),
            devices=("cam",) * 2,
            cameras=("cam",) * 2,
            groups=("burst",) * 2,
            random_probability=np.full(2, np.nan),
            members=np.full((2, 2), 0.5, np.float32),
        )
