"""What the fleet's model answers: the prediction kind, its classes and the frames it is fed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from curate.errors import ConfigError

FEWEST_CLASSES: Final[Mapping[str, int]] = {"classification": 2, "detection": 1}
"""A classifier has to choose; a detector may look for one thing only."""


class LabelSpec(BaseModel):
    """The classes in the order of the model's probabilities, and the size of the frames."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classification", "detection"] = "classification"
    class_names: tuple[str, ...] = Field(min_length=1)
    height: int = Field(ge=8, le=4096)
    width: int = Field(ge=8, le=4096)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names repeat")
        return self

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if len(self.class_names) < (fewest := FEWEST_CLASSES[self.kind]):
            raise ValueError(f"{self.kind} needs at least {fewest} class_names")
        return self


def load_label_spec(path: Path) -> LabelSpec:
    """Read `labels.yaml`.

    Raises:
        ConfigError: the file is missing, is not YAML or does not describe labels.
    """
    try:
        return LabelSpec.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as exc:
        raise ConfigError(f"cannot read labels from {path}: {exc}", hint="see configs/labels.yaml") from exc
