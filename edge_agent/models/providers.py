"""Execution providers by the names an operator writes, as ONNX Runtime calls them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

ProviderName: TypeAlias = Literal[
    "cpu",
    "acl",
    "cann",
    "coreml",
    "cuda",
    "directml",
    "migraphx",
    "nnapi",
    "openvino",
    "qnn",
    "rknpu",
    "tensorrt",
    "vitisai",
    "webgpu",
    "xnnpack",
]

CPU: Final = "CPUExecutionProvider"
RUNTIME_NAMES: Final[dict[ProviderName, str]] = {
    "cpu": CPU,
    "acl": "ACLExecutionProvider",
    "cann": "CANNExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "rknpu": "RknpuExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""https://onnxruntime.ai/docs/execution-providers: the name in the documentation, and the one in the runtime."""
_NAMES: Final = {runtime: name for name, runtime in RUNTIME_NAMES.items()}


@dataclass(frozen=True, slots=True)
class ProviderChoice:
    """What to ask the runtime for."""

    runtime_names: tuple[str, ...]
    """In order of preference; the CPU is always there and always last."""
    missing: tuple[ProviderName, ...]
    """Wanted, and not in this build of the runtime."""


def choose_providers(wanted: Sequence[ProviderName], available: Collection[str]) -> ProviderChoice:
    """Choose among what this build of the runtime has."""
    others = [name for name in dict.fromkeys(wanted) if name != "cpu"]
    present = tuple(RUNTIME_NAMES[name] for name in others if RUNTIME_NAMES[name] in available)
    missing = tuple(name for name in others if RUNTIME_NAMES[name] not in available)
    return ProviderChoice((*present, CPU), missing)


def short_names(runtime_names: Sequence[str]) -> tuple[str, ...]:
    """Return the operator's names of runtime names, for reports."""
    return tuple(_NAMES.get(name, name) for name in runtime_names)
