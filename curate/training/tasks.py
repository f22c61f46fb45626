"""The kinds of models that can be trained, behind one interface; a user's own joins by an import path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

from torch import nn

from curate.errors import ConfigError, TrainingError
from curate.training.classifier import TrainedClassifier, load_classifier
from curate.training.data import LabelledFrames, LabelledImages
from curate.training.detector import TrainedDetector, load_detector
from curate.training.detector_recipe import DetectorRecipe
from curate.training.detector_trainer import train_detector
from curate.training.loop import EpochReport
from curate.training.recipe import TrainingRecipe
from curate.training.trainer import train_classifier

Recipe: TypeAlias = TrainingRecipe | DetectorRecipe
T = TypeVar("T")
RecipeT = TypeVar("RecipeT", TrainingRecipe, DetectorRecipe)
ModelT = TypeVar("ModelT", TrainedClassifier, TrainedDetector)

_GUIDE = "docs/own-detector.md shows a complete one"


@runtime_checkable
class TrainedModel(Protocol):
    """What training gives, whatever its kind: all that export asks for, and how it is kept."""

    @property
    def kind(self) -> str:
        """Kind of its predictions, a key of `TASKS`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in output order."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one frame."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what the serving module returns, in order: those that the kind's `curate.answers` adapter reads."""

    @property
    def embedding_dim(self) -> int:
        """Length of a frame's embedding."""

    @property
    def validation(self) -> Mapping[str, float]:
        """Figures of the validation split by name; empty when it had no labels."""

    def serving_module(self) -> nn.Module:
        """Module in evaluation mode that takes raw uint8 frames [N, H, W, 3] and does everything else itself."""

    def persist(self, path: Path) -> None:
        """Write it as one file, atomically, for `TrainingTask.load`."""


@runtime_checkable
class TrainingTask(Protocol):
    """How models of one kind are trained and read back."""

    def train(
        self,
        train: LabelledFrames,
        validation: LabelledFrames,
        class_names: tuple[str, ...],
        recipe: Recipe,
        *,
        seed: int,
        warm_start: TrainedModel | None = None,
        on_epoch: Callable[[EpochReport], None] | None = None,
    ) -> TrainedModel:
        """Train on `train`, calibrate on `validation` (which may be empty); the same arguments give the same model.

        Raises TrainingError when no model can be trained from this.
        """

    def load(self, path: Path) -> TrainedModel:
        """Read what the model's `persist` wrote; nothing in the file is executed.

        Raises TrainingError when it is missing, damaged, or holds another kind of model.
        """


@dataclass(frozen=True)
class BuiltInTask(Generic[RecipeT, ModelT]):
    """A built-in training, held to the recipe and the models of its kind."""

    recipe: type[RecipeT]
    model: type[ModelT]
    fit: Callable[..., ModelT]
    """Takes what `train` takes."""
    load: Callable[[Path], ModelT]

    def train(
        self,
        train: LabelledFrames,
        validation: LabelledFrames,
        class_names: tuple[str, ...],
        recipe: Recipe,
        *,
        seed: int,
        warm_start: TrainedModel | None = None,
        on_epoch: Callable[[EpochReport], None] | None = None,
    ) -> ModelT:
        """Train the built-in model."""
        return self.fit(
            train,
            validation,
            class_names,
            _fitting(recipe, self.recipe, "recipe"),
            seed=seed,
            warm_start=None if warm_start is None else _fitting(warm_start, self.model, "warm start"),
            on_epoch=on_epoch,
        )


def _train_classifier(
    train: LabelledFrames, validation: LabelledFrames, class_names: tuple[str, ...], recipe: TrainingRecipe, **how: Any
) -> TrainedClassifier:
    """Labels `{"class": name}` as class indices."""
    learned, held_back = (LabelledImages.from_frames(frames, class_names) for frames in (train, validation))
    return train_classifier(learned, held_back, class_names, recipe, **how)


TASKS: Final[Mapping[str, TrainingTask]] = {
    "classification": BuiltInTask(TrainingRecipe, TrainedClassifier, _train_classifier, load_classifier),
    "detection": BuiltInTask(DetectorRecipe, TrainedDetector, train_detector, load_detector),
}
"""By kind of prediction. A third kind is one more line here and its recipe in `Recipe`."""


def task_of(recipe: Recipe) -> TrainingTask:
    """Return how models of this recipe are trained: the user's own task if the recipe names one, else the built-in.

    Raises ConfigError when the named one cannot be imported, made without arguments, or is no training task.
    """
    return _plugin(recipe.plugin) if recipe.plugin is not None else TASKS[recipe.kind]


def _plugin(path: str) -> TrainingTask:
    """The task at an import path `package.module:Name`; a class is called without arguments."""
    module_name, _, name = path.partition(":")
    try:
        found = getattr(import_module(module_name), name)
    except ImportError as exc:
        hint = "install its package where the flows run, or add its folder to PYTHONPATH"
        raise ConfigError(f"plugin: {module_name} cannot be imported: {exc}", hint=hint) from exc
    except AttributeError as exc:
        raise ConfigError(f"plugin: {module_name} has no {name}", hint=_GUIDE) from exc
    try:
        task = found() if isinstance(found, type) else found
    except TypeError as exc:
        raise ConfigError(f"plugin: {path} cannot be made without arguments: {exc}", hint=_GUIDE) from exc
    if not isinstance(task, TrainingTask):
        raise ConfigError(f"plugin: {path} has no methods `train` and `load`", hint=_GUIDE)
    return task


def _fitting(value: object, wanted: type[T], role: str) -> T:
    if not isinstance(value, wanted):
        raise TrainingError(f"this task needs a {role} of {wanted.__name__}, not {type(value).__name__}")
    return value
