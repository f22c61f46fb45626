"""The network: a small convolutional net that trains in seconds and survives int8.

Every layer is conv-bn-relu or linear: batch norm folds into the convolution and no squeeze-and-excite gate or
hard-swish spreads the activation range, which is what costs such nets their accuracy at 8 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from curate.training.recipe import NetworkShape

_LEAST_SPREAD = 4.0 / 127.5


class ConvNet(nn.Module):
    """Float frames [N, 3, H, W] in -1..1 to `(logits [N, K], features [N, embedding_dim])`, features not normalised."""

    def __init__(self, shape: NetworkShape, class_count: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [Standardise()] if shape.standardise else []
        layers.append(_conv_bn_relu(3, shape.stem_width))
        width = shape.stem_width
        for stage_width, depth in zip(shape.widths, shape.depths, strict=True):
            layers += [nn.MaxPool2d(2), _conv_bn_relu(width, stage_width)]
            layers += [_conv_bn_relu(stage_width, stage_width) for _ in range(depth - 1)]
            width = stage_width
        self.trunk = nn.Sequential(*layers)
        self.project = nn.Linear(width, shape.embedding_dim)
        self.head = nn.Linear(shape.embedding_dim, class_count)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and penultimate features."""
        features = self.project(self.trunk(frames).mean(dim=(2, 3)))
        return self.head(features), features


class Standardise(nn.Module):
    """Frames [N, 3, H, W] relative to their own mean and spread over all channels: dim light changes them little.

    The floor under the spread, four grey levels, keeps the noise of an empty frame from being blown up.
    """

    def forward(self, frames: Tensor) -> Tensor:
        """Frames of mean 0 and a spread of at most 1."""
        centred = frames - frames.mean(dim=(1, 2, 3), keepdim=True)
        spread = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return centred / (spread + _LEAST_SPREAD)


class ServingModule(nn.Module):
    """What a device runs: raw frames uint8 [N, H, W, 3] to `(probabilities [N, K], embedding [N, D] of length 1)`.

    Normalisation, temperature and softmax live in the graph, so that no device can get them wrong.
    """

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.inverse_temperature = 1.0 / temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities and the L2-normalised embedding."""
        logits, features = self.network(normalise(images.permute(0, 3, 1, 2).to(torch.float32)))
        probabilities = functional.softmax(logits * self.inverse_temperature, dim=1)
        length = features.square().sum(dim=1, keepdim=True).sqrt()
        return probabilities, features / (length + 1e-6)


def normalise(pixels: Tensor) -> Tensor:
    """Pixel values 0..255 to -1..1: fixed, so that it means the same for every data set and survives int8 unharmed."""
    return pixels * (1.0 / 127.5) - 1.0


def _conv_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
