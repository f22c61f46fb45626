"""Turn the labels into an immutable dataset version, and the dataset version into a trained candidate."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from prefect import flow, get_run_logger

from curate.annotation.agreement import consensus
from curate.catalog.images import decode_images
from curate.catalog.models import (
    AnnotationRow,
    DatasetItem,
    DatasetVersion,
    ModelRow,
    ModelStatus,
    Sample,
    SampleStatus,
    SelectionRole,
    Split,
)
from curate.catalog.splits import LabelledSample, assign_groups, plan_splits
from curate.errors import CatalogError
from curate.selection.diversity import Moments, near_duplicate_clusters, shared_scenes, unit_rows
from curate.training.classifier import TrainedClassifier, persist_classifier
from curate.training.data import LabelledImages
from curate.training.trainer import EpochReport, train_classifier
from flows._blobs import fetch_images, put_model_file
from flows._embedding import view_samples
from flows._stage import stage_task
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
    groups, scenes = _relate(wired, [entry.sample for entry in labelled])
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
    train, validation = (load_split(wired, dataset, split) for split in (Split.TRAIN, Split.VALIDATION))
    trained = train_classifier(
        train,
        validation,
        wired.settings.labels.class_names,
        wired.settings.training,
        seed=wired.settings.round.seed + round_number,
        on_epoch=_log_epoch,
    )
    wired.catalog.save_model(
        ModelRow(
            model_id=model_id,
            round_number=round_number,
            dataset_version=version,
            created_at=datetime.now(UTC),
            status=ModelStatus.CANDIDATE,
            artifacts={"weights": put_model_file(wired.store, "weights.safetensors", classifier_bytes(trained))},
            metrics={
                "train_labels": len(train),
                "validation_labels": len(validation),
                "embedding_dim": trained.metadata.network.embedding_dim,
                **trained.metadata.validation,
            },
        )
    )
    return model_id


def load_split(wired: Services, dataset: DatasetVersion, split: Split) -> LabelledImages:
    """Fetch and decode the images of one split, labels as class indices."""
    return load_items(wired, [item for item in dataset.items if item.split is split])


def load_items(wired: Services, items: Sequence[DatasetItem]) -> LabelledImages:
    """Fetch and decode the items' images, labels as class indices."""
    spec = wired.settings.labels
    encoded = zip((i.sample_id for i in items), fetch_images(wired.store, [i.image_key for i in items]), strict=True)
    images = decode_images(encoded, spec.height, spec.width)
    return LabelledImages(images, np.array([spec.class_names.index(i.label["class"]) for i in items], np.int64))


def classifier_bytes(model: TrainedClassifier) -> bytes:
    """Serialise the classifier as safetensors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        persist_classifier(model, path)
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
    chosen = {row.sample_id: row for each in wired.catalog.rounds() for row in wired.catalog.selection(each.number)}
    answers: dict[str, list[AnnotationRow]] = {}
    for answer in wired.catalog.annotations():
        answers.setdefault(answer.sample_id, []).append(answer)
    labelled = []
    for sample in samples:
        agreed = consensus(answers.get(sample.sample_id, []))
        row = chosen.get(sample.sample_id)
        if agreed is not None:
            role = row.role if row is not None else SelectionRole.ACTIVE
            probability = row.inclusion_probability if row is not None else None
            labelled.append(LabelledSample(sample, role, agreed.label, probability))
    return labelled


def _relate(wired: Services, samples: Sequence[Sample]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Groups of the samples, and the pairs of one scene across groups, as the incumbent sees them.

    Before there is an incumbent, groups are time blocks alone.
    """
    blocks = assign_groups(samples, {}, wired.settings.split.block_s)
    incumbent = wired.catalog.released_model()
    if incumbent is None:
        return blocks, []
    policy, ids = wired.settings.selection, [sample.sample_id for sample in samples]
    embeddings = view_samples(wired, incumbent, samples).embeddings
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
    get_run_logger().info(
        "epoch %d of %d: loss %.3f, validation accuracy %.3f",
        report.epoch,
        report.epochs,
        report.loss,
        report.validation_accuracy,
    )
