"""Turn the labels into an immutable dataset version, and the dataset version into a trained candidate."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from prefect import flow, get_run_logger

from curate.catalog.label_kinds import SCALE_LABEL
from curate.catalog.models import (
    DatasetItem,
    DatasetVersion,
    ModelRow,
    ModelStatus,
    Sample,
    SampleStatus,
    SelectionRole,
    Split,
)
from curate.catalog.splits import LabelledSample, assign_groups, plan_splits, teaching_items
from curate.catalog.unlearning import STARTED_FROM, newest_clean
from curate.errors import CatalogError
from curate.selection.diversity import Moments, shared_scenes
from curate.selection.duplicates import near_duplicate_clusters
from curate.selection.rows import unit_rows
from curate.training.data import LabelledFrames
from curate.training.loop import EpochReport
from curate.training.tasks import TrainedModel, task_of
from flows._blobs import fetch_model_file, put_model_file
from flows._frames import fetch_frames
from flows._labels import agreed_labels
from flows._stage import stage_task
from flows._views import see_samples
from flows._wiring import Services, services


@flow(name="train-candidate")
def train_candidate(round_number: int) -> str:
    """Train the round's candidate and return its model id."""
    version = build_dataset(round_number)
    return train_on(round_number, version)


@stage_task("build dataset version")
def build_dataset(round_number: int) -> str:
    """Gather the labels, plan the splits, persist the version; the same labels give the same version."""
    wired = services()
    labelled = _labelled_samples(wired)
    previous = wired.catalog.latest_dataset_version()
    known = {item.sample_id for item in previous.items} if previous else set()
    groups, scenes = relate_samples(wired, [entry.sample for entry in labelled])
    dataset = plan_splits(
        previous,
        labelled,
        groups,
        wired.settings.split,
        seed=wired.settings.round.seed,
        round_number=round_number,
        now=datetime.now(UTC),
        withdrawn=known - {entry.sample.sample_id for entry in labelled},
        shared_scenes=scenes,
    )
    wired.catalog.save_dataset_version(dataset)
    return dataset.version


@stage_task("train")
def train_on(round_number: int, version: str) -> str:
    """Train on the version's train split, calibrate on its validation split, persist the weights."""
    wired = services()
    model_id = f"m{round_number:04d}-{version[:10]}"
    if wired.catalog.model(model_id) is not None:
        return model_id
    dataset = require_dataset(wired, version)
    recipe, parent = wired.settings.recipe, starting_point(wired)
    train, validation = (
        load_items(wired, teaching_items(dataset, split, recipe.imported_until))
        for split in (Split.TRAIN, Split.VALIDATION)
    )
    trained = task_of(recipe).train(
        train,
        validation,
        wired.settings.labels.class_names,
        recipe,
        seed=wired.settings.round.seed + round_number,
        warm_start=None if parent is None else fetch_trained(wired, parent),
        on_epoch=_log_epoch,
    )
    wired.catalog.save_model(
        ModelRow(
            model_id=model_id,
            round_number=round_number,
            dataset_version=version,
            created_at=datetime.now(UTC),
            status=ModelStatus.CANDIDATE,
            artifacts={"weights": put_model_file(wired.store, "weights.safetensors", model_bytes(trained))},
            metrics={
                "train_labels": len(train),
                "validation_labels": len(validation),
                "embedding_dim": trained.embedding_dim,
                STARTED_FROM: None if parent is None else parent.model_id,
                **trained.validation,
            },
        )
    )
    return model_id


def starting_point(wired: Services) -> ModelRow | None:
    """Return the model that the recipe says to start from; None for fresh weights.

    It is the newest release that has seen nothing of a device that was unlearned: its weights would remember.
    """
    if wired.settings.recipe.start != "incumbent":
        return None
    unlearned = wired.catalog.unlearned_devices()
    return newest_clean(wired.catalog.models(), wired.catalog.taught_by(unlearned) if unlearned else ())


def fetch_trained(wired: Services, model: ModelRow) -> TrainedModel:
    """Return a model as it was trained, before it was compressed."""
    path = fetch_model_file(wired.store, model.artifacts["weights"], wired.settings.cache_dir)
    return task_of(wired.settings.recipe).load(path)


def load_split(wired: Services, dataset: DatasetVersion, split: Split) -> LabelledFrames:
    """Fetch and decode what one split holds."""
    return load_items(wired, [item for item in dataset.items if item.split is split])


def load_items(wired: Services, items: Sequence[DatasetItem]) -> LabelledFrames:
    """Fetch and decode the items' pictures at the model's size; their labels follow."""
    labels, scale = wired.settings.labels, SCALE_LABEL[wired.settings.labels.kind]
    frames = fetch_frames(wired, items)
    sized = zip(items, frames.sizes.tolist(), strict=True)
    scaled = [scale(item.label, labels.width / width, labels.height / height) for item, (height, width) in sized]
    return LabelledFrames(frames.images, tuple(scaled))


def model_bytes(model: TrainedModel) -> bytes:
    """Serialise the model's weights, as its kind keeps them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.persist(path)
        return path.read_bytes()


def require_model(wired: Services, model_id: str) -> ModelRow:
    """Return a model.

    Raises:
        CatalogError: there is no such model.
    """
    model = wired.catalog.model(model_id)
    if model is None:
        raise CatalogError(f"there is no model {model_id}")
    return model


def require_dataset(wired: Services, version: str) -> DatasetVersion:
    """Return a dataset version.

    Raises:
        CatalogError: there is no such version.
    """
    dataset = wired.catalog.dataset_version(version)
    if dataset is None:
        raise CatalogError(f"there is no dataset version {version}")
    return dataset


def _labelled_samples(wired: Services) -> list[LabelledSample]:
    """Every labelled sample with the label people settled on; imported ones teach, as nothing was drawn at random."""
    samples = wired.catalog.samples(status=SampleStatus.LABELLED)
    chosen = {row.sample_id: row for row in wired.catalog.selections()}
    labels, labelled = agreed_labels(wired), []
    for sample in samples:
        row = chosen.get(sample.sample_id)
        if sample.sample_id in labels:
            role = row.role if row is not None else SelectionRole.ACTIVE
            probability = row.inclusion_probability if row is not None else None
            labelled.append(LabelledSample(sample, role, labels[sample.sample_id], probability))
    return labelled


def relate_samples(wired: Services, samples: Sequence[Sample]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return groups of the samples, and the pairs of one scene across groups, as the incumbent sees them.

    Before there is an incumbent, groups are time blocks alone.
    """
    blocks = assign_groups(samples, {}, wired.settings.split.block_s)
    incumbent = wired.catalog.released_model()
    if incumbent is None:
        return blocks, []
    policy, ids = wired.settings.selection, [sample.sample_id for sample in samples]
    embeddings = see_samples(wired, incumbent, samples).embeddings
    clusters = near_duplicate_clusters(
        embeddings,
        [blocks[sample_id] for sample_id in ids],
        policy.duplicate_cosine,
        group_threshold=policy.burst_duplicate_cosine,
    )
    named = {sample_id: int(cluster) for sample_id, cluster in zip(ids, clusters, strict=True)}
    moments = Moments(
        unit_rows(embeddings),
        tuple(sample.camera_id for sample in samples),
        np.array([sample.captured_at.timestamp() for sample in samples]),
    )
    pairs = shared_scenes(moments, moments, gap_s=policy.scene_gap_s, cosine=policy.scene_cosine)
    scenes = [(ids[left], ids[right]) for left, right in pairs if left < right]
    return assign_groups(samples, named, wired.settings.split.block_s), scenes


def _log_epoch(report: EpochReport) -> None:
    get_run_logger().info(str(report))
