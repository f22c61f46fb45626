"""What the report has to compute afresh: every model on held-out frames, and the controls trained on random labels."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from curate.catalog.models import ModelRow, Round
from flows._blobs import fetch_model_file
from flows._wiring import Services
from flows.sandbox.evaluation import train_control
from flows.sandbox.heldout import HeldOutScore
from flows.sandbox.worlds.base import Exam, Lesson, ModelFiles
from flows.train_candidate import require_dataset


@dataclass(frozen=True)
class Scores:
    """Held-out scores: the product's models by id, the random controls by round."""

    models: dict[str, HeldOutScore]
    controls: dict[int, HeldOutScore]


def score_models(wired: Services, exam: Exam, seed: int, on_step: Callable[[str], None]) -> Scores:
    """Score every model of the catalog, and train and score one control a round; tell `on_step` what comes next.

    Raises:
        StorageError: a model or a picture cannot be fetched.
        TrustError: a model file is not what its name says.
    """
    models: dict[str, HeldOutScore] = {}
    catalog_models = wired.catalog.models()
    for model in catalog_models:
        on_step(f"scoring {model.release_id or model.model_id}")
        models[model.model_id] = exam.score(_fetch_files(wired, model))
    by_round = {model.round_number: model for model in catalog_models}
    rounds = [each for each in wired.catalog.rounds() if each.number in by_round]
    lessons = _lessons(wired, rounds, by_round)
    controls: dict[int, HeldOutScore] = {}
    for place, each in enumerate(rounds):
        draws = exam.draws_for(each.number)
        if place == 0:
            # Nothing was chosen yet: the first labels are random labels.
            controls[each.number] = models[by_round[each.number].model_id]
        elif draws is not None:
            on_step(f"training the random control of round {each.number}")
            with tempfile.TemporaryDirectory() as folder:
                control = train_control(wired, lessons[: place + 1], draws, seed, Path(folder))
                controls[each.number] = exam.score(control)
    return Scores(models, controls)


def _fetch_files(wired: Services, model: ModelRow) -> ModelFiles:
    int8, original = (
        fetch_model_file(wired.store, model.artifacts[role], wired.settings.cache_dir) for role in ("int8", "float")
    )
    return ModelFiles(int8=int8, original=original)


def _lessons(wired: Services, rounds: Sequence[Round], models: Mapping[int, ModelRow]) -> list[Lesson]:
    """For each round its dataset version and what had been uploaded when it chose."""
    uploads = [sample for sample in wired.catalog.samples() if sample.prediction is not None]
    found = []
    for each in rounds:
        chose_at = datetime.fromisoformat(each.facts["selected_at"]) if "selected_at" in each.facts else None
        known = [s for s in uploads if chose_at and s.ingested_at and s.ingested_at <= chose_at]
        dataset = require_dataset(wired, models[each.number].dataset_version)
        found.append(Lesson(each.number, chose_at, dataset, known))
    return found
