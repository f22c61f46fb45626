"""Training: frames with boxes in, a calibrated detector out, the same one for the same seed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from curate.errors import TrainingError
from curate.training.architectures import normalise
from curate.training.backbone import load_pretrained
from curate.training.data import LabelledFrames
from curate.training.detector import DetectorMetadata, Learned, TrainedDetector
from curate.training.detector_data import Boxes, augment_frames, make_targets, read_boxes
from curate.training.detector_embedding import fit_projections
from curate.training.detector_loss import detection_loss
from curate.training.detector_network import DetectorNetwork
from curate.training.detector_quality import fit_calibration, match_detections
from curate.training.detector_recipe import DetectorRecipe
from curate.training.loop import EpochReport, average, batches, isolated, parameter_groups, schedule


def train_detector(
    train: LabelledFrames,
    validation: LabelledFrames,
    class_names: tuple[str, ...],
    recipe: DetectorRecipe,
    *,
    seed: int,
    warm_start: TrainedDetector | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> TrainedDetector:
    """Train on `train`, calibrate the scores on `validation` (which may be empty: then they stay as they are).

    Frames without boxes are examples of background. The same arguments give the same weights, bit for bit, on the same
    machine and torch build; the global generator and thread count are left as they were found.
    Raises TrainingError for no frames, labels that are no boxes of `class_names`, sides that are no multiple of the
    network's coarsest stride, or a warm start of another shape.
    """
    _verify_inputs(train, validation, class_names, recipe.network.coarsest_stride)
    boxes = read_boxes(train, class_names)
    with isolated(seed, recipe.threads):
        learned = _initial(recipe, class_names, warm_start)
        generator = torch.Generator().manual_seed(seed)
        learned.network = _fit(learned.network, train, boxes, recipe, generator, on_epoch)
        learned.eval().requires_grad_(False)
        fit_projections(learned.projections, learned.network, torch.from_numpy(train.images), boxes)
        metadata = DetectorMetadata(
            class_names=class_names,
            height=train.images.shape[1],
            width=train.images.shape[2],
            network=recipe.network,
            seed=seed,
            label_count=len(train),
        )
        return _calibrate(TrainedDetector(learned, metadata), validation)


def _verify_inputs(
    train: LabelledFrames, validation: LabelledFrames, class_names: tuple[str, ...], coarsest_stride: int
) -> None:
    if len(train) == 0:
        raise TrainingError("there is no frame to train on", hint="annotate a first batch of samples")
    if not class_names or len(set(class_names)) != len(class_names):
        raise TrainingError(f"a detector needs one or more different class names, not {class_names}")
    if validation.images.shape[1:] != train.images.shape[1:]:
        raise TrainingError(f"validation frames {validation.images.shape[1:]} differ from {train.images.shape[1:]}")
    if any(side % coarsest_stride for side in train.images.shape[1:3]):
        raise TrainingError(
            f"frames of {train.images.shape[1:3]} do not fit: each side is a multiple of {coarsest_stride}",
            hint="set height and width in labels.yaml",
        )


def _initial(recipe: DetectorRecipe, class_names: tuple[str, ...], warm_start: TrainedDetector | None) -> Learned:
    learned = Learned(recipe.network, len(class_names))
    if warm_start is not None:
        _warm_start(learned, class_names, warm_start, recipe)
    elif recipe.pretrained:
        load_pretrained(learned.network.backbone)
    learned.network.backbone.freeze(recipe.frozen_stages)
    learned.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks this overload
    return learned


def _warm_start(
    learned: Learned, class_names: tuple[str, ...], warm_start: TrainedDetector, recipe: DetectorRecipe
) -> None:
    """Continue from the old weights; the rows of the score layer follow the class names."""
    if warm_start.metadata.network != recipe.network:
        raise TrainingError("the warm start has another network shape", hint="train from scratch, or keep the shape")
    old_row = {name: row for row, name in enumerate(warm_start.class_names)}
    source = warm_start.learned.state_dict()
    with torch.no_grad():
        for name, target in learned.state_dict().items():
            if not name.startswith("network.score."):
                target.copy_(source[name])
                continue
            for new, class_name in enumerate(class_names):
                if class_name in old_row:
                    target[new] = source[name][old_row[class_name]]


def _fit(
    network: DetectorNetwork,
    train: LabelledFrames,
    boxes: Sequence[Boxes],
    recipe: DetectorRecipe,
    generator: torch.Generator,
    on_epoch: Callable[[EpochReport], None] | None,
) -> DetectorNetwork:
    """The averaged network after all steps."""
    frames = torch.from_numpy(train.images)
    queue = batches(len(train), recipe.batch_size, generator)
    optimizer = torch.optim.AdamW(_groups(network, recipe))
    rate = schedule(optimizer, recipe)
    averaged = copy.deepcopy(network).eval()
    for epoch in range(recipe.epochs):
        network.train()
        losses = []
        for step in range(recipe.steps_per_epoch):
            chosen = next(queue)
            loss = _loss(network, frames[chosen], [boxes[index] for index in chosen.tolist()], recipe, generator)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_limit)
            optimizer.step()
            rate.step()
            average(averaged, network, recipe.ema_decay, epoch * recipe.steps_per_epoch + step)
            losses.append(loss.detach())
        if on_epoch is not None:
            on_epoch(EpochReport(epoch + 1, recipe.epochs, torch.stack(losses).mean().item()))
    return averaged


def _groups(network: DetectorNetwork, recipe: DetectorRecipe) -> list[dict[str, object]]:
    """The pretrained backbone learns more slowly than what starts from nothing."""
    new = [value for name, value in network.named_parameters() if not name.startswith("backbone.")]
    slow = recipe.learning_rate * recipe.backbone_rate
    return [
        *parameter_groups(new, recipe.weight_decay, recipe.learning_rate),
        *parameter_groups(network.backbone.parameters(), recipe.weight_decay, slow),
    ]


def _loss(
    network: DetectorNetwork,
    frames: Tensor,
    boxes: Sequence[Boxes],
    recipe: DetectorRecipe,
    generator: torch.Generator,
) -> Tensor:
    step = recipe.network.coarsest_stride
    window = (_share(frames.shape[1], recipe.crop, step), _share(frames.shape[2], recipe.crop, step))
    variants, moved = augment_frames(frames, boxes, window, recipe.augmentation, generator)
    pixels = normalise(variants * 255.0).contiguous(memory_format=torch.channels_last)
    maps = network(pixels)
    targets = make_targets(moved, *window, recipe.network.stride, maps.logits.shape[1])
    return detection_loss(maps, targets, recipe.network.stride, recipe.box_weight)


def _share(side: int, share: float, step: int) -> int:
    """About `share` of a side, a multiple of `step`."""
    return max(1, round(side * share / step)) * step


def _calibrate(model: TrainedDetector, validation: LabelledFrames) -> TrainedDetector:
    """The model with its scores calibrated and its validation figures; unchanged without validation frames."""
    if len(validation) == 0:
        return model
    truth = read_boxes(validation, model.class_names)
    raw = model.predict(validation.images)
    matches = match_detections(raw.boxes, raw.probabilities, truth)
    slope, offset = fit_calibration(matches)
    figures = {"count": float(len(validation)), "boxes": float(matches.box_count)}
    if matches.box_count:
        figures["ap50"] = matches.average_precision()
    update = {"calibration_slope": slope, "calibration_offset": offset, "validation": figures}
    return TrainedDetector(model.learned, model.metadata.model_copy(update=update))
