"""Everything that decides how a detector is trained, as plain values: reading a configuration needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from curate.training.recipe import Curriculum, Pace, Plugin


class DetectorShape(BaseModel):
    """Size of the detector around its EfficientNet-Lite0 backbone.

    `stride` is the step of the prediction grid in pixels of the model's input: people a dozen pixels wide who overlap
    need 4, cars that fill a quarter of the frame do with 8 and train in half the time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stride: Literal[4, 8] = 4
    coarsest_stride: Literal[16, 32] = 32
    neck_width: int = Field(default=48, ge=8, multiple_of=8)
    box_embedding_dim: int = Field(default=32, ge=2)
    embedding_dim: int = Field(default=64, ge=2)
    candidates: int = Field(default=200, ge=1, description="raw candidates of one frame, before any suppression")


class DetectorAugmentation(BaseModel):
    """How far a training frame may wander from the captured one. Zero switches a part off.

    The ranges are those of a fixed camera by day and at dusk.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip_probability: float = Field(default=0.5, ge=0, le=1)
    shift: float = Field(default=0.15, ge=0, le=0.5, description="displacement, share of the side")
    scale: float = Field(default=0.25, ge=0, le=0.5, description="zoom: exp(± scale)")
    min_visible: float = Field(
        default=0.35, gt=0, le=1, description="boxes with less left inside the frame are dropped"
    )
    light: float = Field(default=0.25, ge=0, le=0.9, description="gain: 1 ± light")
    contrast: float = Field(default=0.25, ge=0, le=0.9)
    gamma: float = Field(default=0.25, ge=0, le=2, description="exponent: exp(± gamma)")
    tint: float = Field(default=0.08, ge=0, le=0.5, description="gain of single colours: 1 ± tint")
    dusk_probability: float = Field(default=0.3, ge=0, le=1)
    darkest: float = Field(default=0.25, gt=0, le=1, description="smallest gain of a frame at dusk")
    noise: float = Field(default=0.05, ge=0, le=0.5, description="largest standard deviation, share of full scale")
    blur: float = Field(default=0.9, ge=0, le=1, description="largest weight of the blurred copy")


class DetectorRecipe(Curriculum, Plugin, Pace):
    """Everything that decides how a detector is trained, apart from data and seed.

    An epoch is a fixed number of steps, not a pass over the frames: the time a round costs does not grow with them.
    Steps on windows of two thirds of the frame cost less than half of those on whole frames.
    """

    kind: Literal["detection"] = "detection"
    start: Literal["scratch", "incumbent"] = "incumbent"
    imported_until: int | None = Field(default=20, ge=1)
    network: DetectorShape = DetectorShape()
    augmentation: DetectorAugmentation = DetectorAugmentation()
    epochs: int = Field(default=5, ge=1)
    steps_per_epoch: int = Field(default=40, ge=1)
    batch_size: int = Field(default=8, ge=2)
    learning_rate: float = Field(default=3e-3, gt=0)
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.02, ge=0)
    ema_decay: float = Field(default=0.98, ge=0, lt=1)
    pretrained: bool = Field(default=True, description="start from ImageNet; false only where that must not matter")
    frozen_stages: int = Field(
        default=2, ge=0, le=6, description="first stages of the backbone that keep their weights"
    )
    backbone_rate: float = Field(default=0.2, ge=0, le=1, description="learning rate of the backbone, share")
    box_weight: float = Field(default=2.0, ge=0, description="weight of the box loss against the score loss")
    gradient_limit: float = Field(default=10.0, gt=0, description="longest gradient of one step")
    crop: float = Field(default=0.67, gt=0, le=1, description="side of the training window, share of the frame's side")
