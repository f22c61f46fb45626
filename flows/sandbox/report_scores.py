"""What the report has to compute afresh: every model on held-out frames, and the controls trained on random labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from curate.catalog.models import DatasetVersion, ModelRow, Round, Sample
from curate.compression.inference import OnnxClassifier
from flows._blobs import fetch_model_file
from flows._wiring import Services
from flows.sandbox.evaluation import Judge, train_control
from flows.sandbox.fashion_mnist import FashionMnist
from flows.sandbox.heldout import HeldOutAccuracy
from flows.sandbox.world_schedule import WorldConfig
from flows.train_candidate import require_dataset


@dataclass(frozen=True)
class Scores:
    """Held-out accuracy of int8 files: the product's by model id, the random controls' by round."""

    models: dict[str, HeldOutAccuracy]
    controls: dict[int, HeldOutAccuracy]


def score_models(
    wired: Services, world: WorldConfig, data: FashionMnist, seed: int, on_step: Callable[[str], None]
) -> Scores:
    """Score every model of the catalog, and train and score one control a round; tell `on_step` what comes next.

    Raises:
        StorageError: a model or a picture cannot be fetched.
        TrustError: a model file is not what its name says.
    """
    on_step("drawing held-out frames")
    judge = Judge(world, data)
    models: dict[str, HeldOutAccuracy] = {}
    catalog_models = wired.catalog.models()
    for model in catalog_models:
        on_step(f"scoring {model.release_id or model.model_id}")
        path = fetch_model_file(wired.store, model.artifacts["int8"], wired.settings.cache_dir)
        models[model.model_id] = judge.score(OnnxClassifier(path, threads=2))
    by_round = {model.round_number: model for model in catalog_models}
    rounds = [each for each in wired.catalog.rounds() if each.number in by_round]
    learned = _learned(wired, rounds, by_round)
    controls: dict[int, HeldOutAccuracy] = {}
    for place, each in enumerate(rounds):
        if place == 0:
            # Nothing was chosen yet: the first labels are random labels.
            controls[each.number] = models[by_round[each.number].model_id]
        else:
            on_step(f"training the random control of round {each.number}")
            controls[each.number] = train_control(wired, world, learned[: place + 1], seed, judge)
    return Scores(models, controls)


def _learned(
    wired: Services, rounds: Sequence[Round], models: dict[int, ModelRow]
) -> list[tuple[DatasetVersion, list[Sample]]]:
    """For each round its dataset version and what had been uploaded when it chose."""
    uploads = [sample for sample in wired.catalog.samples() if sample.prediction is not None]
    found = []
    for each in rounds:
        chose_at = datetime.fromisoformat(each.facts["selected_at"]) if "selected_at" in each.facts else None
        known = [s for s in uploads if chose_at and s.ingested_at and s.ingested_at <= chose_at]
        found.append((require_dataset(wired, models[each.number].dataset_version), known))
    return found
