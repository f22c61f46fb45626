"""Everything that decides how a classifier is trained, as plain values: reading a configuration needs no torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class NetworkShape(BaseModel):
    """Size of the network: stage i has `depths[i]` convolutions of `widths[i]` channels after a 2x2 max pooling.

    A stem at full resolution comes first, the mean over the last map follows. Pooling the strongest response beats
    strided convolutions by 3 to 4 points on a few hundred labels. Channel counts in multiples of 16 fill the vector
    lanes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stem_width: int = Field(default=16, ge=1)
    widths: tuple[int, ...] = (32, 64, 128)
    depths: tuple[int, ...] = (2, 2, 1)
    embedding_dim: int = Field(default=64, ge=2)
    standardise: bool = Field(
        default=False, description="see each frame relative to its own mean and spread: for cameras whose light drifts"
    )

    @model_validator(mode="after")
    def _stages_correspond(self) -> Self:
        if len(self.widths) != len(self.depths) or min((*self.widths, *self.depths), default=0) < 1:
            raise ValueError("widths and depths describe the same stages, each with a positive number")
        return self

    @property
    def least_side(self) -> int:
        """Smallest height and width of a frame that leaves a pixel after all poolings."""
        return int(2 ** len(self.widths))


class Augmentation(BaseModel):
    """How far a training frame may wander from the captured one. Zero switches a part off.

    The ranges are those of fixed cameras: small displacement, changing light, noise, a soft lens, things in the way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shift: float = Field(default=0.1, ge=0, le=0.5, description="displacement, share of the side")
    scale: float = Field(default=0.1, ge=0, le=0.5, description="zoom in or out, share")
    rotation_deg: float = Field(default=8.0, ge=0, le=45)
    flip_probability: float = Field(default=0.0, ge=0, le=1)
    light: float = Field(default=0.35, ge=0, le=0.9, description="gain: 1 ± light")
    contrast: float = Field(default=0.3, ge=0, le=0.9)
    gamma: float = Field(default=0.3, ge=0, le=2, description="exponent: exp(± gamma)")
    noise: float = Field(default=0.06, ge=0, le=0.5, description="largest standard deviation, share of full scale")
    blur: float = Field(default=0.6, ge=0, le=1, description="largest weight of the blurred copy")
    cutout: float = Field(default=0.3, ge=0, le=0.8, description="side of the hidden square, share of the side")


class Pace(BaseModel):
    """How far and how fast any training goes.

    An epoch is a fixed number of steps, not a pass over the labels: the time a round costs does not grow with them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=10, ge=1)
    steps_per_epoch: int = Field(default=40, ge=1)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float = Field(default=8e-3, gt=0)
    warmup_share: float = Field(default=0.15, ge=0, lt=1, description="share of all steps with a rising rate")
    weight_decay: float = Field(default=0.05, ge=0)
    ema_decay: float = Field(default=0.98, ge=0, lt=1, description="averaging of weights over steps")
    threads: int = Field(default=2, ge=1, description="sums depend on it in the last bit, so it is part of the recipe")


class Plugin(BaseModel):
    """A user's own training in place of the built-in one of the same kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plugin: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="import path of a training task, `package.module:Name`; see docs/own-detector.md",
    )
    plugin_options: dict[str, Any] = Field(default_factory=dict, description="whatever the plug-in wants to be told")


class Curriculum(BaseModel):
    """What a round's training starts from, and what it still learns from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: Literal["scratch", "incumbent"] = Field(
        default="scratch", description="incumbent: from the weights of the released model, if there is one"
    )
    imported_until: int | None = Field(
        default=None,
        ge=1,
        description="from this many labels of the field on, imported ones teach no longer; null: they always do",
    )


class TrainingRecipe(Curriculum, Plugin, Pace):
    """Everything that decides how a classifier is trained, apart from data and seed."""

    kind: Literal["classification"] = "classification"
    network: NetworkShape = NetworkShape()
    augmentation: Augmentation = Augmentation()
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    mixup_alpha: float = Field(default=0.0, ge=0, description="Beta(alpha, alpha) of mixup; 0 = off")
    warm_start_keep: float = Field(default=0.5, ge=0, le=1, description="share of the old weights kept on a warm start")
