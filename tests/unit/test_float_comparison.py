"""Captures are held against the float model: which, how often, and what the choice makes of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import onnx
import pytest

from curate.catalog.models import ModelRow, Sample, SampleStatus
from curate.contracts.prediction import ClassificationPrediction
from curate.errors import SelectionError
from curate.selection.base import CandidatePool, SelectionPolicy
from curate.selection.batch import select_batch
from curate.selection.quantisation import Compared, rows_to_compare
from curate.selection.uncertainty import mix_disagreement
from flows._candidates import gather_candidates
from flows._disagreement import DISAGREEMENT
from flows._trust import read_trust
from flows._views import view_samples
from flows._wiring import Services
from flows.explain import explain_sample
from flows.explain_words import tell_account
from flows.select_samples import _rows
from tests.catalog_builders import NOW
from tests.fakes.answered_catalog import SIZE, foreign_sample, pictured_sample, release_files, write_labels
from tests.fakes.tiny_detector import quarters, tiny_detector
from tests.fakes.tiny_model import tiny_model
from tests.fakes.wiring import local_services

KEY = "models/m-1.disagreement.json"
BRIGHTNESS = (0, 60, 100, 130, 190, 255)
POLICY = SelectionPolicy(
    strategy="margin",
    audit_share=0,
    explore_share=0,
    burst_duplicate_cosine=1,
    duplicate_cosine=1,
    max_device_share=1,
    disagreement_weight=1,
)


def world(folder: Path, **changes: object) -> AbstractContextManager[Services]:
    policy = POLICY.model_copy(update=changes)
    return local_services(folder, labels_file=write_labels(folder / "labels.yaml"), selection=policy)


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """A catalog and a bucket on this disk, under a policy that asks where int8 and float disagree."""
    with world(tmp_path) as services:
        yield services


def release(wired: Services) -> ModelRow:
    """An int8 file that has lost its feeling for what is dark: it shifts every answer towards bright."""
    return release_files(wired, {"int8": tiny_model(SIZE, bias=-1.5), "float": tiny_model(SIZE)})


def answered(wired: Services, model: ModelRow, samples: list[Sample]) -> list[Sample]:
    """The samples as if devices had answered them with this release."""
    views = view_samples(wired, model, samples)
    rows = zip(samples, views.predictions, views.embeddings, strict=True)
    return [
        replace(
            sample,
            release_id=model.release_id,
            prediction=said.model_copy(update={"release_id": model.release_id}),
            embedding=look,
        )
        for sample, said, look in rows
    ]


def captures(wired: Services, model: ModelRow, levels: tuple[int, ...] = BRIGHTNESS) -> list[Sample]:
    """One answered capture of each brightness; the darkest first."""
    return answered(wired, model, [foreign_sample(wired, level, level) for level in levels])


def gather(wired: Services, model: ModelRow) -> CandidatePool:
    return gather_candidates(wired, model, read_trust(wired))[0]


def by_id(pool: CandidatePool) -> dict[str, float]:
    assert pool.disagreement is not None
    return dict(zip(pool.ids, pool.disagreement.tolist(), strict=True))


def answer_to(level: int, *, bias: float = 0.0) -> np.ndarray:
    """What the tiny model answers to a picture of this brightness, by the formula it was made of."""
    mean = level / 255
    powers = np.exp([2 + bias - 4 * mean, 0.5, 4 * mean - 2 - bias])
    return np.asarray(powers / powers.sum())


def expected(level: int) -> float:
    """How far apart the two files' answers to it are."""
    return float(np.abs(answer_to(level, bias=-1.5) - answer_to(level)).max())


def test_where_the_models_differ_is_asked_first_and_explained(wired: Services) -> None:
    """With weight, the choice goes to what float and int8 disagree on, not to what int8 is unsure of, and says so."""
    model = release(wired)
    samples, asked = captures(wired, model), foreign_sample(wired, 999, 160)
    wired.catalog.add_samples([*samples, asked])
    wired.catalog.set_status([asked.sample_id], SampleStatus.QUEUED)
    wired.catalog.open_round(1, budget=2, seed=0, now=NOW)
    pool, labelled = gather_candidates(wired, model, read_trust(wired))
    found = by_id(pool)
    for level, sample in zip(BRIGHTNESS, samples, strict=True):
        assert found[sample.sample_id] == pytest.approx(expected(level), abs=1e-3)
    plain = select_batch(pool, labelled, POLICY.model_copy(update={"disagreement_weight": 0.0}), 2, 0)
    chosen = select_batch(pool, labelled, POLICY, 2, 0)
    order = sorted(found, key=lambda name: found[name], reverse=True)
    assert [item.sample_id for item in chosen.items] == order[:2]
    assert {item.sample_id for item in plain.items} != set(order[:2])
    wired.catalog.save_selection(1, _rows(1, chosen, {}))
    told = dict(tell_account(explain_sample(wired, order[0])))["What its score is made of"]
    assert any(line.startswith(f"disagreement {found[order[0]]:.3f}: how far the model") for line in told)


def test_the_devices_own_answer_and_its_own_measurement_count(wired: Services) -> None:
    """Float is held against what the device said, not against int8 run here; a device's measurement stands."""
    model = release(wired)
    own, measured = captures(wired, model, (100, 190))
    assert own.prediction is not None
    assert measured.prediction is not None
    said = ClassificationPrediction(prediction_id="p", release_id="r-1", probabilities=[1.0, 0.0, 0.0])
    own = replace(own, prediction=said)
    measured = replace(measured, prediction=measured.prediction.model_copy(update={"scores": {DISAGREEMENT: 0.125}}))
    other = foreign_sample(wired, 0, 0)
    wired.catalog.add_samples([own, measured, other])
    wired.store.put(KEY, Compared({measured.sample_id: 0.9}).to_bytes())
    found = by_id(gather(wired, model))
    assert found[measured.sample_id] == 0.125
    assert found[other.sample_id] == pytest.approx(expected(0), abs=1e-3)
    assert found[own.sample_id] == pytest.approx(1 - answer_to(100)[0], abs=1e-3)


def test_a_later_round_compares_only_what_is_new(wired: Services, caplog: pytest.LogCaptureFixture) -> None:
    """What one round found the next finds in the bucket: it asks for no picture of it."""
    model = release(wired)
    samples = captures(wired, model)
    wired.catalog.add_samples(samples[:4])
    first = by_id(gather(wired, model))
    for sample in samples[:4]:
        wired.store.delete(sample.image_key)
    rmtree(wired.settings.cache_dir / "images")
    wired.catalog.add_samples(samples[4:])
    second = by_id(gather(wired, model))
    assert {name: second[name] for name in first} == first
    assert np.isfinite(list(second.values())).all()
    assert set(Compared.from_bytes(wired.store.get(KEY)).by_id) == set(second)
    assert not caplog.records


def test_a_damaged_file_is_found_anew(wired: Services, caplog: pytest.LogCaptureFixture) -> None:
    """A cache that cannot be read, or holds nonsense, is made again and stops nothing."""
    model = release(wired)
    wired.catalog.add_samples(captures(wired, model))
    first = by_id(gather(wired, model))
    for damage in (wired.store.get(KEY)[:20], b'{"a": 7}', b"[]", b"\xff"):
        wired.store.put(KEY, damage)
        assert by_id(gather(wired, model)) == first
    assert Compared.from_bytes(wired.store.get(KEY)).by_id == first
    assert "anew" in caplog.text


def test_the_work_is_bounded(tmp_path: Path) -> None:
    """No more than the policy's number of captures is compared, the least sure ones; the others stay unknown."""
    with world(tmp_path, max_compared=2) as wired:
        model = release(wired)
        wired.catalog.add_samples(captures(wired, model))
        pool = gather(wired, model)
        assert pool.disagreement is not None
        assert pool.probabilities is not None
        top = np.sort(pool.probabilities, axis=1)
        least_sure = np.argsort(top[:, -1] - top[:, -2])[:2]
        assert sorted(np.flatnonzero(np.isfinite(pool.disagreement))) == sorted(least_sure)


def test_one_capture_that_cannot_be_compared_is_left_out(wired: Services, caplog: pytest.LogCaptureFixture) -> None:
    """A picture that is gone or broken leaves its capture unknown; all others are compared."""
    model = release(wired)
    samples = captures(wired, model)
    wired.catalog.add_samples(samples)
    rmtree(wired.settings.cache_dir / "images")
    wired.store.delete(samples[1].image_key)
    wired.store.put(samples[2].image_key, b"no picture")
    found = by_id(gather(wired, model))
    unknown = {name for name, value in found.items() if np.isnan(value)}
    assert unknown == {samples[1].sample_id, samples[2].sample_id}
    assert all(name in caplog.text for name in unknown)


def test_without_weight_or_float_file_nothing_is_computed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A policy that gives it no weight costs nothing; a release without float file says what is missing."""
    with world(tmp_path, disagreement_weight=0.0) as wired:
        model = release(wired)
        wired.catalog.add_samples(captures(wired, model))
        assert gather(wired, model).disagreement is None
        assert KEY not in {each.key for each in wired.store.list("models/")}
        eager = replace(wired, settings=wired.settings.model_copy(update={"selection": POLICY}))
        del model.artifacts["float"]
        with caplog.at_level(logging.WARNING):
            assert gather(eager, model).disagreement is None
        assert "no float file" in caplog.text


def test_boxes_are_compared_too(tmp_path: Path) -> None:
    """A detector whose int8 file loses a faint lamp disagrees on the frame that shows it, and on no empty one."""
    labels = tmp_path / "labels.yaml"
    labels.write_text(f"kind: detection\nclass_names: [lamp]\nheight: {SIZE}\nwidth: {SIZE}\n")
    dimmed = tiny_detector()
    scale = next(each for each in dimmed.graph.initializer if each.name == "scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.array(0.5 / 255, np.float32), "scale"))
    with local_services(tmp_path, labels_file=labels, selection=POLICY) as wired:
        files = {"int8": dimmed, "float": tiny_detector()}
        model = release_files(wired, files, kind="detection", class_names=["lamp"])
        pictures = (quarters(0, 0, 0, 0), quarters(0.16, 0, 0, 0), quarters(0, 0.8, 0, 0))
        samples = [pictured_sample(wired, number, each) for number, each in enumerate(pictures)]
        wired.catalog.add_samples(samples)
        found = by_id(gather(wired, model))
        values = [found[sample.sample_id] for sample in samples]
        assert values == pytest.approx([0.0, 0.16, 0.4], abs=0.01)


def test_the_least_sure_that_nobody_measured_are_compared() -> None:
    """Rows that a device measured take no place, ties keep their order, and a limit beyond the pool takes all."""
    unsure, told = np.array([0.1, 0.9, 0.5, 0.5, 0.7]), np.array([np.nan, 0.2, np.nan, np.nan, np.nan])
    assert rows_to_compare(unsure, told, 2).tolist() == [4, 2]
    assert rows_to_compare(unsure, told, 99).tolist() == [4, 2, 3, 0]
    assert rows_to_compare(unsure, told, 0).tolist() == []


def test_what_is_kept_reads_back_and_forgets() -> None:
    """Values survive the bucket; a newer value wins, and what left the pool goes; out of range is refused."""
    kept = Compared({"a": 0.25, "b": 1.0}).joined({"b": 0.5, "c": 0.0}, ["b", "c", "d"])
    assert Compared.from_bytes(kept.to_bytes()).by_id == {"b": 0.5, "c": 0.0}
    for wrong in (b'{"a": -0.1}', b'{"a": NaN}', b'{"a": null}'):
        with pytest.raises(SelectionError):
            Compared.from_bytes(wrong)


def test_what_nobody_compared_counts_as_typical() -> None:
    """Of two equally unsure captures neither gains by not having been compared; with none compared nothing changes."""
    unsure = np.array([0.8, 0.8, 0.8, 0.2])
    mixed = mix_disagreement(unsure, np.array([0.02, np.nan, 0.6, 0.02]), 0.5)
    assert mixed[0] == mixed[1] < mixed[2]
    assert mixed[3] < mixed[0]
    assert np.array_equal(mix_disagreement(unsure, np.full(4, np.nan), 0.5), unsure)
