"""Training: labelled frames in, a calibrated classifier out, the same one for the same seed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from curate.errors import TrainingError
from curate.training import metrics
from curate.training.architectures import ConvNet, normalise
from curate.training.calibration import fit_temperature
from curate.training.classifier import ClassifierMetadata, TrainedClassifier
from curate.training.data import Images, LabelledImages, augment
from curate.training.loop import EpochReport, average, batches, isolated, parameter_groups, schedule
from curate.training.recipe import TrainingRecipe


def train_classifier(
    train: LabelledImages,
    validation: LabelledImages,
    class_names: tuple[str, ...],
    recipe: TrainingRecipe,
    *,
    seed: int,
    warm_start: TrainedClassifier | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> TrainedClassifier:
    """Train on `train`, calibrate the temperature on `validation` (which may be empty: then it stays 1).

    The same arguments give the same weights, bit for bit, on the same machine and torch build. The global generator and
    thread count are left as they were found.
    Raises TrainingError for no labels, labels outside `class_names`, frames too small for the network, or a warm
    start of another network shape.
    """
    _verify_inputs(train, validation, class_names, recipe.network.least_side)
    with isolated(seed, recipe.threads):

        def after_epoch(epoch: int, loss: float, averaged: ConvNet) -> None:
            if on_epoch is not None:
                figures = {"accuracy": _accuracy(averaged, validation)}
                on_epoch(EpochReport(epoch, recipe.epochs, loss, figures))

        network = _initial_network(recipe, class_names, warm_start)
        generator = torch.Generator().manual_seed(seed)
        averaged = _fit(network, train, recipe, generator, after_epoch)
        logits = _logits(averaged, validation.images)
        temperature = fit_temperature(logits.numpy(), validation.labels)
        quality = _quality(logits, temperature, validation)
    height, width = train.images.shape[1:3]
    metadata = ClassifierMetadata(
        class_names=class_names,
        height=height,
        width=width,
        network=recipe.network,
        temperature=temperature,
        seed=seed,
        label_count=len(train),
        validation=quality,
    )
    return TrainedClassifier(averaged, metadata)


def _verify_inputs(
    train: LabelledImages, validation: LabelledImages, class_names: tuple[str, ...], least_side: int
) -> None:
    if len(train) == 0:
        raise TrainingError("there is no label to train on", hint="annotate a first batch of samples")
    if len(class_names) < 2 or len(set(class_names)) != len(class_names):
        raise TrainingError(f"a classifier needs two or more different class names, not {class_names}")
    if validation.images.shape[1:] != train.images.shape[1:]:
        raise TrainingError(f"validation frames {validation.images.shape[1:]} differ from {train.images.shape[1:]}")
    if min(train.images.shape[1:3]) < least_side:
        raise TrainingError(f"frames of {train.images.shape[1:3]} are too small: each side needs {least_side} pixels")
    labels = np.concatenate([train.labels, validation.labels])
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise TrainingError(f"labels {labels.min()}..{labels.max()} reach outside {len(class_names)} classes")


def _initial_network(
    recipe: TrainingRecipe, class_names: tuple[str, ...], warm_start: TrainedClassifier | None
) -> ConvNet:
    network = ConvNet(recipe.network, len(class_names))
    if warm_start is not None:
        _warm_start(network, class_names, warm_start, recipe)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks this overload
    return network


def _warm_start(
    network: ConvNet, class_names: tuple[str, ...], warm_start: TrainedClassifier, recipe: TrainingRecipe
) -> None:
    """Shrink and perturb: old weights scaled down, new random ones added; rows of the head follow the class names.

    Continuing from plain old weights generalises worse than training afresh (Ash & Adams 2020, arXiv:1910.08475).
    """
    if warm_start.metadata.network != recipe.network:
        raise TrainingError("the warm start has another network shape", hint="train from scratch, or keep the shape")
    keep = recipe.warm_start_keep
    old_row = {name: row for row, name in enumerate(warm_start.class_names)}
    rows = [(new, old_row[name]) for new, name in enumerate(class_names) if name in old_row]
    source = warm_start.network.state_dict()
    with torch.no_grad():
        for name, target in network.state_dict().items():
            if not target.is_floating_point():
                continue
            if name.startswith("head."):
                for new, old in rows:
                    target[new].lerp_(source[name][old], keep)
            else:
                target.lerp_(source[name], keep)


def _fit(
    network: ConvNet,
    train: LabelledImages,
    recipe: TrainingRecipe,
    generator: torch.Generator,
    after_epoch: Callable[[int, float, ConvNet], None],
) -> ConvNet:
    """The averaged network after all steps, not the best on validation: on a few dozen labels, best is mostly luck."""
    frames, labels = _as_tensors(train)
    queue = batches(len(train), recipe.batch_size, generator)
    optimizer = torch.optim.AdamW(parameter_groups(network.parameters(), recipe.weight_decay, recipe.learning_rate))
    rate = schedule(optimizer, recipe)
    averaged = copy.deepcopy(network)
    for epoch in range(recipe.epochs):
        network.train()
        losses = []
        for step in range(recipe.steps_per_epoch):
            chosen = next(queue)
            variant = augment(frames[chosen], recipe.augmentation, generator)
            variant = variant.contiguous(memory_format=torch.channels_last)  # resampling has undone it
            loss = _loss(network, variant, labels[chosen], recipe, generator)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            rate.step()
            average(averaged, network, recipe.ema_decay, epoch * recipe.steps_per_epoch + step)
            losses.append(loss.detach())
        after_epoch(epoch + 1, torch.stack(losses).mean().item(), averaged)
    return averaged.eval()


def _as_tensors(data: LabelledImages) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(data.images).permute(0, 3, 1, 2).to(torch.float32) / 255.0
    return pixels.contiguous(memory_format=torch.channels_last), torch.from_numpy(data.labels)


def _loss(
    network: ConvNet, frames: Tensor, labels: Tensor, recipe: TrainingRecipe, generator: torch.Generator
) -> Tensor:
    """Smoothed cross-entropy, optionally of mixed pairs (mixup: Zhang et al. 2018, arXiv:1710.09412)."""
    pixels = normalise(frames * 255.0)
    if recipe.mixup_alpha == 0:
        return functional.cross_entropy(network(pixels)[0], labels, label_smoothing=recipe.label_smoothing)
    share = float(
        np.random.default_rng(generator.get_state()[:16].numpy()).beta(recipe.mixup_alpha, recipe.mixup_alpha)
    )
    partner = torch.randperm(len(labels), generator=generator)
    logits = network(torch.lerp(pixels[partner], pixels, share))[0]
    own = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    other = functional.cross_entropy(logits, labels[partner], label_smoothing=recipe.label_smoothing)
    return share * own + (1.0 - share) * other


def _logits(network: ConvNet, images: Images) -> Tensor:
    """Logits [N, K] in evaluation mode."""
    network.eval()
    if len(images) == 0:
        return torch.zeros((0, network.head.out_features))
    with torch.no_grad():
        parts = torch.split(torch.from_numpy(images), 256)
        return torch.cat([network(normalise(part.permute(0, 3, 1, 2).to(torch.float32)))[0] for part in parts])


def _accuracy(network: ConvNet, validation: LabelledImages) -> float:
    return metrics.accuracy(functional.softmax(_logits(network, validation.images), dim=1).numpy(), validation.labels)


def _quality(logits: Tensor, temperature: float, validation: LabelledImages) -> dict[str, float]:
    """Validation figures kept with the model; empty without validation labels."""
    if len(validation) == 0:
        return {}
    probabilities = functional.softmax(logits / temperature, dim=1).numpy()
    return {
        "count": float(len(validation)),
        "accuracy": metrics.accuracy(probabilities, validation.labels),
        "nll": metrics.negative_log_likelihood(probabilities, validation.labels),
        "ece": metrics.expected_calibration_error(probabilities, validation.labels),
    }
