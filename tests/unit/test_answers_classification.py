"""Reading one distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.answers.base import BadOutputError, pack_embedding, unit, verify_embedding
from curate.answers.classification import CLASSIFICATION, FLICKER, evaluate_scores
from curate.contracts.prediction import ClassificationPrediction, DetectionPrediction
from curate.contracts.release import ModelSpec


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_known_values() -> None:
    """The three scores of a simple distribution are what their formulas say."""
    scores = evaluate_scores(array(0.5, 0.25, 0.25, 0.0))
    assert scores == pytest.approx({"least_confidence": 0.5, "margin": 0.75, "entropy": 0.75})


@pytest.mark.parametrize(("values", "expected"), [((0.25,) * 4, 1.0), ((0.0, 1.0, 0.0), 0.0)])
def test_extremes(values: tuple[float, ...], expected: float) -> None:
    """Margin and entropy are 1 for a uniform answer, and every score is 0 for a certain one."""
    scores = evaluate_scores(array(*values))
    assert scores["entropy"] == pytest.approx(expected, abs=1e-6)
    assert scores["margin"] == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=20).filter(lambda values: sum(values) > 0.01))
def test_scores_stay_in_the_unit_interval(values: list[float]) -> None:
    """Every distribution gets exactly the named scores, each in [0, 1]."""
    total = sum(values)
    scores = evaluate_scores(array(*(value / total for value in values)))
    assert set(scores) == CLASSIFICATION.score_names - {FLICKER}
    assert all(0.0 <= score <= 1.0 for score in scores.values())


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40).filter(any), st.integers(0, 39), st.floats(1e-6, 0.005))
def test_scores_are_those_of_the_sorted_distribution(weights: list[int], place: int, below: float) -> None:
    """With ties and zeros anywhere the scores are those of the sorted values; one value below 0 is refused."""
    values = array(*(weight / sum(weights) for weight in weights))
    before = values.copy()
    second, first = np.sort(values)[-2:].astype(np.float64)
    scores = evaluate_scores(values)
    assert scores["least_confidence"] == pytest.approx(1.0 - first, abs=1e-6)
    assert scores["margin"] == pytest.approx(1.0 - (first - second), abs=1e-6)
    assert np.array_equal(values, before)
    values[place % len(values)] = -below
    with pytest.raises(BadOutputError):
        evaluate_scores(values)


@pytest.mark.parametrize(
    "bad",
    [
        array(0.5, 0.4),
        array(float("nan"), 1.0),
        array(1.0, float("nan")),
        array(0.5, float("nan"), 0.5),
        array(1.5, -0.5),
        array(float("inf"), 0.0),
        array(1.0),
        np.full((2, 2), 0.25, np.float32),
    ],
)
def test_what_is_no_distribution_is_refused(bad: np.ndarray) -> None:
    """NaN, wrong sums, values outside [0, 1] and wrong shapes are errors, wherever they stand."""
    with pytest.raises(BadOutputError):
        evaluate_scores(bad)


def test_embeddings_must_be_finite_and_survive_float16() -> None:
    """NaN and infinity are refused; a huge finite value is packed as float16's largest, not as infinity."""
    for bad in (array(float("nan")), array(float("inf"), 0.0), np.zeros((1, 2), np.float32)):
        with pytest.raises(BadOutputError):
            verify_embedding(bad)
    verify_embedding(array(1e9, -2.0))
    verify_embedding(array(3e38, 3e38, -3e38))
    with pytest.raises(BadOutputError):
        verify_embedding(array(float("inf"), float("-inf")))
    assert np.frombuffer(pack_embedding(array(1e9, -2.0)), "<f2").tolist() == [65504.0, -2.0]


@given(st.floats(-1.0, 2.0))
def test_scores_have_six_decimals(value: float) -> None:
    """A score is the nearest millionth of what lies in [0, 1]; what lies outside is cut."""
    cut = min(1.0, max(0.0, value))
    assert unit(value) == pytest.approx(cut, abs=0.501e-6)
    assert unit(value) == round(unit(value), 6)


SPEC = ModelSpec(kind="classification", class_names=["cat", "dog", "owl"], height=8, width=8, embedding_dim=2)


def outputs(*probabilities: float) -> dict[str, np.ndarray]:
    return {"probabilities": array(*probabilities), "embedding": array(1.5, -2.0)}


def test_an_answer_becomes_a_prediction_and_words() -> None:
    """The wire form carries distribution, scores and embedding; the description is what clients have always read."""
    answer = CLASSIFICATION.reader(SPEC).read(outputs(0.25, 0.5, 0.25), 576, 768)
    prediction = answer.to_prediction("p-1", "r-1")
    assert isinstance(prediction, ClassificationPrediction)
    assert (prediction.prediction_id, prediction.release_id, prediction.scores) == ("p-1", "r-1", dict(answer.scores))
    assert prediction.embedding is not None
    assert np.frombuffer(prediction.embedding.raw(), "<f2").tolist() == [1.5, -2.0]
    assert CLASSIFICATION.describe(prediction, SPEC.class_names) == {
        "label": "dog",
        "class_index": 1,
        "probabilities": [0.25, 0.5, 0.25],
    }
    light = answer.without_embeddings()
    assert light.to_prediction("p-1", "r-1") == prediction.model_copy(update={"embedding": None})
    assert light.size_bytes < answer.size_bytes
    assert answer.box_ids == frozenset()


def test_outputs_must_fit_the_specification() -> None:
    """A missing output and another number of classes or embedding components are refused by name or shape."""
    CLASSIFICATION.verify_outputs(outputs(0.2, 0.3, 0.5), SPEC)
    with pytest.raises(BadOutputError, match="lacks embedding"):
        CLASSIFICATION.verify_outputs({"probabilities": array(0.2, 0.3, 0.5)}, SPEC)
    for wrong in (outputs(0.5, 0.5), outputs(0.2, 0.3, 0.5) | {"embedding": array(1.0)}):
        with pytest.raises(BadOutputError, match="manifest says"):
            CLASSIFICATION.verify_outputs(wrong, SPEC)


def test_the_golden_difference_is_the_largest_one() -> None:
    """It is that of the one value that differs most; other shapes and NaN are refused."""
    expected = outputs(0.2, 0.3, 0.5)
    assert CLASSIFICATION.golden_difference(expected, expected) == 0.0
    moved = outputs(0.2, 0.35, 0.45) | {"embedding": array(1.5, -2.25)}
    assert CLASSIFICATION.golden_difference(moved, expected) == pytest.approx(0.25)
    for bad in (outputs(0.5, 0.5), outputs(float("nan"), 0.5, 0.5)):
        with pytest.raises(BadOutputError):
            CLASSIFICATION.golden_difference(bad, expected)


def test_two_models_disagree_by_the_largest_change_of_a_probability() -> None:
    """The embedding does not count; distributions over other classes, and other kinds, cannot be compared."""

    def said(*probabilities: float) -> ClassificationPrediction:
        return ClassificationPrediction(prediction_id="p", release_id="r", probabilities=list(probabilities))

    assert CLASSIFICATION.disagreement(said(0.2, 0.3, 0.5), said(0.2, 0.3, 0.5)) == 0.0
    assert CLASSIFICATION.disagreement(said(0.2, 0.3, 0.5), said(0.3, 0.5, 0.2)) == pytest.approx(0.3)
    for other in (said(0.5, 0.5), DetectionPrediction(prediction_id="p", release_id="r")):
        with pytest.raises(BadOutputError):
            CLASSIFICATION.disagreement(said(0.2, 0.3, 0.5), other)


def flicker_of(*answers: tuple[float, ...]) -> list[float]:
    reader = CLASSIFICATION.reader(SPEC)
    return [reader.read(outputs(*answer), 8, 8).scores[FLICKER] for answer in answers]


def test_flicker_tells_wavering_from_a_cut() -> None:
    """A steady answer has none, one cut leaves a quarter that fades, and going to and fro comes close to 1."""
    cat, dog = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
    assert flicker_of(*[cat] * 5) == [0.0] * 5
    cut = flicker_of(cat, dog, dog, dog)
    assert cut[1] == 0.25
    assert cut[1] > cut[2] > cut[3] > 0.0
    assert flicker_of(*[cat, dog] * 10)[-1] > 0.95


def test_a_refused_answer_leaves_the_memory_as_it_was() -> None:
    """After outputs that are no distribution the next answer is compared with the last good one."""
    reader = CLASSIFICATION.reader(SPEC)
    reader.read(outputs(1.0, 0.0, 0.0), 8, 8)
    with pytest.raises(BadOutputError):
        reader.read(outputs(1.0, 1.0, 1.0), 8, 8)
    assert reader.read(outputs(1.0, 0.0, 0.0), 8, 8).scores[FLICKER] == 0.0


def test_answers_agree_while_people_see_the_same() -> None:
    """The same class about as surely agrees; another class, or the same much less surely, does not."""
    sure, fairly, barely, other = (
        CLASSIFICATION.reader(SPEC).read(outputs(*values), 8, 8)
        for values in ((0.9, 0.1, 0.0), (0.7, 0.2, 0.1), (0.4, 0.3, 0.3), (0.1, 0.9, 0.0))
    )
    assert sure.agrees_with(fairly)
    assert not sure.agrees_with(barely)
    assert not sure.agrees_with(other)
    assert sure.without_embeddings().agrees_with(sure)


def test_the_named_score_is_at_hand_whichever_it_is() -> None:
    """A policy that goes by any score finds it, as all scores have it; the entropy is left out unless it is named."""
    answer = CLASSIFICATION.reader(SPEC).read(outputs(0.2, 0.5, 0.3), 8, 8)
    assert set(answer.scores) == CLASSIFICATION.score_names
    assert all(answer.scores_with(name)[name] == answer.scores[name] for name in answer.scores)
    assert "entropy" not in answer.scores_with("margin")


@given(st.lists(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).filter(lambda p: sum(p) > 0.01), max_size=5))
def test_flicker_follows_the_total_variation(stream: list[list[float]]) -> None:
    """It is the weighted mean of sum(abs(p - q)) / 2 over successive answers."""
    reader, expected, last = CLASSIFICATION.reader(SPEC), 0.0, None
    for values in stream:
        now = np.array(values) / sum(values)
        if last is not None:
            expected += 0.25 * (0.5 * np.abs(now - last).sum() - expected)
        last = now
        assert reader.read(outputs(*now), 8, 8).scores[FLICKER] == pytest.approx(expected, abs=2e-6)
