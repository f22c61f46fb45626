"""What the flow hands to a selection, and what of the selection it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from curate.catalog.models import AnnotationRow, DatasetVersion, ModelRow, ModelStatus, SelectionRole
from curate.contracts.capture import Arm, ArmOutcome, CaptureRecord
from curate.contracts.prediction import ClassificationPrediction
from curate.selection.base import CandidatePool, LabelledSet
from curate.selection.batch import select_batch
from flows._blobs import put_model_file
from flows._candidates import gather_candidates
from flows._disagreement import DISAGREEMENT
from flows._trust import read_trust
from flows._wiring import Services
from flows.explain import explain_sample
from flows.select_samples import _rows
from tests.catalog_builders import NOW, batch, capture, embedding, plan
from tests.fakes.tiny_model import CLASSES, EMBEDDING_DIM, tiny_model
from tests.fakes.wiring import local_services

SIZE = 32


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """A released model that made all predictions, and 30 captures of the random arm."""
    (tmp_path / "labels.yaml").write_text(f"class_names: [{', '.join(CLASSES)}]\nheight: {SIZE}\nwidth: {SIZE}\n")
    with local_services(tmp_path, labels_file=tmp_path / "labels.yaml") as services:
        model = tiny_model(SIZE)
        names = ", ".join(f'"{name}"' for name in CLASSES)
        about = {"kind": "classification", "class_names": f"[{names}]", "frame_shape": f"[{SIZE}, {SIZE}, 3]"}
        onnx.helper.set_model_props(model, about)
        files = {"int8": put_model_file(services.store, "model-int8.onnx", model.SerializeToString())}
        services.catalog.save_dataset_version(DatasetVersion("v", 0, NOW, ()))
        services.catalog.save_model(ModelRow("m", 0, "v", NOW, ModelStatus.RELEASED, files, {}, "r1", 1))
        yield services


def kept(number: int, **scores: float) -> CaptureRecord:
    """A capture that the released model has answered, minutes apart from the others."""
    said = ClassificationPrediction(
        prediction_id=f"p-{number}",
        release_id="r1",
        probabilities=[0.5, 0.3, 0.2],
        scores={"margin": 0.5, **scores},
        embedding=embedding(number, EMBEDDING_DIM),
    )
    arms = [ArmOutcome(arm=Arm.RANDOM, probability=0.05, kept=True)]
    return capture(number, prediction=said, arms=arms, inclusion_probability=0.05)


def admit(wired: Services, captures: list[CaptureRecord]) -> None:
    """Take the captures as one batch."""
    wired.catalog.admit_batch(plan(batch(captures=captures)))


def label(wired: Services, sample_id: str, answer: dict[str, object] | None) -> None:
    """Have a sample answered, or skipped."""
    row = AnnotationRow(f"a-{sample_id}", sample_id, "ann", answer, answer is None, NOW, NOW)
    wired.catalog.save_annotations([row])


def gather(wired: Services) -> tuple[CandidatePool, LabelledSet]:
    """The pool and what is labelled, through the released model."""
    incumbent = wired.catalog.released_model()
    assert incumbent is not None
    return gather_candidates(wired, incumbent, read_trust(wired))


def test_labels_come_with_their_class(wired: Services) -> None:
    """A settled label is the number of its class, and a sample that is merely queued has none."""
    admit(wired, [kept(number) for number in range(6)])
    label(wired, "c-0", {"class": CLASSES[2]})
    label(wired, "c-1", {"class": CLASSES[0]})
    label(wired, "c-2", None)
    wired.catalog.open_round(1, budget=1, seed=0, now=NOW)
    _, labelled = gather(wired)
    assert labelled.classes is not None
    assert dict(zip(labelled.ids, labelled.classes.tolist(), strict=True)) == {"c-0": 2, "c-1": 0}


def test_disagreement_is_taken_where_devices_measured_it(wired: Services) -> None:
    """A capture without the score has an unknown one, and without any such capture there is no column."""
    admit(wired, [kept(0), kept(1, **{DISAGREEMENT: 0.25})])
    pool, _ = gather(wired)
    assert pool.disagreement is not None
    found = dict(zip(pool.ids, pool.disagreement.tolist(), strict=True))
    assert np.isnan(found.pop("c-0"))
    assert found == {"c-1": 0.25}
    wired.catalog.admit_batch(plan(batch(2, captures=[kept(2)])))
    label(wired, "c-1", {"class": CLASSES[0]})
    assert gather(wired)[0].disagreement is None


def test_what_a_selection_knew_is_kept(wired: Services) -> None:
    """A chosen sample can be explained from the catalog alone: its neighbour, its parts, its policy."""
    admit(wired, [kept(number) for number in range(30)])
    label(wired, "c-0", {"class": CLASSES[1]})
    wired.catalog.open_round(1, budget=10, seed=0, now=NOW)
    pool, labelled = gather(wired)
    policy = wired.settings.selection.model_copy(update={"exclude_labelled_groups": False, "scene_gap_s": 0.0})
    selection = select_batch(pool, labelled, policy, 10, 0)
    wired.catalog.save_selection(1, _rows(1, selection, {}))
    rows = wired.catalog.selection(1)
    assert {row.policy_digest for row in rows} == {policy.digest()}
    assert {row.nearest_id for row in rows} == {"c-0"}
    for row, item in zip(rows, selection.items, strict=True):
        assert (row.parts, row.explored, row.nearest_cosine) == (item.parts, item.explored, item.nearest_labelled)
    account = explain_sample(wired, next(row.sample_id for row in rows if row.role is SelectionRole.AUDIT))
    assert account.nearest_label == {"class": CLASSES[1]}
