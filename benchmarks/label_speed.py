"""What one choice costs at 50,000 captures: each method in a process of its own, within 8 GiB and 15 minutes."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

from flows.sandbox.fashion_mnist import load_fashion_mnist
from label_choosers import OURS, PEERS, Turn, predict
from label_race import fit
from label_worlds import Pictures, fashion, plain, unit_range

ROWS, LABELLED, BUDGET = 50_000, 300, 200
MAX_BYTES: Final = 8 * 2**30
MAX_S: Final = 900.0


def measure_speed(cache_dir: Path, known: set[tuple[str, str, str, int]]) -> Iterator[dict[str, Any]]:
    """Yield the seconds of the processor and of the clock that each method takes; None for what did not finish."""
    missing = [name for name in (*OURS, *PEERS) if ("speed", "fashion", name, 0) not in known]
    turn = _large_turn(cache_dir) if missing else None
    for name in missing:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=_choose, args=(name, turn, theirs))
        process.start()
        theirs.close()
        told = _wait(ours)
        process.kill()
        process.join()
        yield {"set": "speed", "world": "fashion", "method": name, "seed": 0, **told}


def _wait(answers: Connection) -> dict[str, Any]:
    if not answers.poll(MAX_S):
        return {"failed": f"more than {MAX_S / 60:.0f} minutes"}
    try:
        return dict(answers.recv())
    except EOFError:
        return {"failed": "died"}


def _choose(name: str, turn: Turn, answers: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    try:
        choose = {**OURS, **PEERS}[name]()
        choose(replace(turn, budget=2))  # imports and caches are not the choice's
        processor, clock = time.process_time(), time.perf_counter()
        choose(turn)
        told: dict[str, Any] = {
            "processor_s": time.process_time() - processor,
            "clock_s": time.perf_counter() - clock,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
    except MemoryError:
        told = {"failed": f"more than {MAX_BYTES / 2**30:.0f} GiB"}
    answers.send(told)


def _large_turn(cache_dir: Path) -> Turn:
    data = load_fashion_mnist(cache_dir)
    images = unit_range(data.train_images[60_000 - ROWS - 10 :])
    labels = data.train_labels[60_000 - ROWS - 10 :].astype(np.int64)
    rng = np.random.default_rng(0)
    world = plain(Pictures(images, labels, fashion(cache_dir).embed), ROWS, 10, rng)
    taught = rng.choice(ROWS, LABELLED, replace=False)
    model = fit(world, taught)
    said = predict(model, world.embeddings)
    nobody = np.zeros(ROWS, np.bool_)
    return Turn(world, taught, np.empty(0, np.int64), model, said, nobody, BUDGET, 0)
