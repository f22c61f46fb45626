"""What every training loop needs whatever it trains: isolation, batches, rates, averaged weights, progress."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from curate.training.recipe import Pace


@dataclass(frozen=True)
class EpochReport:
    """Where training stands: epoch from 1, mean training loss, figures of the validation split (may be none)."""

    epoch: int
    epochs: int
    loss: float
    validation: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line for a log."""
        figures = "".join(f", validation {name} {value:.3f}" for name, value in self.validation.items())
        return f"epoch {self.epoch} of {self.epochs}: loss {self.loss:.3f}{figures}"


@contextlib.contextmanager
def isolated(seed: int, threads: int) -> Iterator[None]:
    """Own random stream and thread count, so that neither leaks out of training nor in."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads_before)


def batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices; every label is seen equally often, whatever the batch size."""
    queue = torch.zeros(0, dtype=torch.int64)
    while True:
        while len(queue) < batch_size:
            queue = torch.cat([queue, torch.randperm(count, generator=generator)])
        yield queue[:batch_size]
        queue = queue[batch_size:]


def parameter_groups(
    parameters: Iterable[nn.Parameter], weight_decay: float, learning_rate: float
) -> list[dict[str, object]]:
    """Weights decay; biases and batch-norm scales, which set no complexity, do not. Frozen ones are left out."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": weight_decay, "lr": learning_rate},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0, "lr": learning_rate},
    ]


def schedule(optimizer: torch.optim.Optimizer, pace: Pace) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then half a cosine down to zero (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    total = pace.epochs * pace.steps_per_epoch
    warmup = max(1, round(total * pace.warmup_share))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def average(averaged: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights and batch-norm statistics.

    The decay grows with the steps taken: an average that still remembers the random start is worse than none.
    """
    keep = min(decay, (step + 1) / (step + 10))
    with torch.no_grad():
        current = network.state_dict()
        for name, value in averaged.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1.0 - keep)
