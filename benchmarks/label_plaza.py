"""The detection race: which frames of two cameras over the plaza get boxes, judged on frames that nothing has seen.

Pure but for what a `Teacher` does: `label_detector.py` holds the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from curate.selection.base import CandidatePool, LabelledSet, SelectionPolicy
from curate.selection.batch import select_batch
from flows.sandbox.plaza_clip import FRAMES_PER_S
from flows.sandbox.plaza_scene import FIELD_FRAMES, Condition, Scene
from label_choosers import (
    DEFAULT,
    RANDOM,
    Choice,
    bare,
    choice_of,
    import_peer,
    row_ids,
    take_names,
    teaching,
    verify_choice,
)
from label_worlds import Matrix, Rows

BUDGETS: Final = (6, 12, 24)
"""Annotated frames in all at which a detector is trained and judged."""
CAMERAS: Final = ("plaza-1", "plaza-2")
DUSK_CAMERA: Final = "plaza-1"
BURSTS, BURST_GAP_S = 40, 600.0
BURST_FRAMES: Final = (1, 1, 2, 4, 12)
"""A burst is of one of these lengths: most things are seen once, most frames show what was just seen."""
BURST_STEP: Final = 3
"""Frames of the clip from one capture of a burst to the next, as with the demo's `cooldown_frames`."""
RANDOM_PROBABILITY = 0.08
DEFAULT_BLOCK_S, PLAZA_BLOCK_S = 60.0, 2.0
"""`split.block_s` of a fresh installation, and of the demo."""
PLAZA: Final = "Gleaner, the plaza's policy, audits apart"


@dataclass(frozen=True, eq=False)
class PlazaPool:
    """One seed of what two cameras sent: N captures in random order; `captured_s` float64 [N]."""

    scenes: tuple[Scene, ...]
    cameras: tuple[str, ...]
    captured_s: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scenes)

    def groups(self, rows: Rows, block_s: float) -> tuple[str, ...]:
        """Return the block of time and camera of each row."""
        return tuple(f"{self.cameras[row]}/{int(self.captured_s[row] // block_s)}" for row in rows.tolist())


def draw_pool(seed: int) -> PlazaPool:
    """Let each camera keep 40 bursts of the field's frames, one in ten minutes; on one camera dusk falls half-way."""
    rng = np.random.default_rng([*b"plaza", seed])
    first, last = FIELD_FRAMES
    length = last - first + 1
    kept = []
    for camera in CAMERAS:
        for burst in range(BURSTS):
            light: Condition = "dusk" if camera == DUSK_CAMERA and burst >= BURSTS // 2 else "day"
            start = int(rng.integers(length))
            for number in range(int(rng.choice(BURST_FRAMES))):
                scene = Scene(first + (start + number * BURST_STEP) % length, light)
                kept.append((scene, camera, burst * BURST_GAP_S + number * BURST_STEP / FRAMES_PER_S))
    scenes, cameras, moments = zip(*(kept[row] for row in rng.permutation(len(kept)).tolist()), strict=True)
    return PlazaPool(scenes, cameras, np.array(moments, np.float64))


@dataclass(frozen=True, eq=False)
class Look:
    """How one detector sees all N captures.

    `descriptors` float32 [N, W] are what Gleaner compares frames of boxes by, `frames` float32 [N, D] the detector's
    embeddings of whole frames, `uncertainty` float64 [N] its detection score.
    """

    descriptors: Matrix
    frames: Matrix
    uncertainty: NDArray[np.float64]


class Model(Protocol):
    """A detector after some round."""

    def look(self) -> Look:
        """See every capture of the pool; asked again it costs nothing."""

    def judge(self) -> float:
        """Return the mean AP50 by day and at dusk on the exam's frames."""


class Teacher(Protocol):
    """Makes detectors of annotated captures."""

    @property
    def first(self) -> Model:
        """The detector that knows no capture."""

    def teach(self, rows: Rows) -> Model:
        """Return the first detector, trained on with the boxes of these captures."""


@dataclass(frozen=True, eq=False)
class PlazaTurn:
    """What a method knows when it may choose: see `label_choosers.Turn`."""

    pool: PlazaPool
    taught: Rows
    held_out: Rows
    model: Model
    budget: int
    seed: int

    @property
    def known(self) -> Rows:
        """The rows that somebody labelled: those that teach, then those that test."""
        return np.concatenate([self.taught, self.held_out])

    @property
    def free(self) -> Rows:
        """The others, ascending."""
        return np.setdiff1d(np.arange(len(self.pool)), self.known)


PlazaChooser = Callable[[PlazaTurn], Choice]


def by_policy(policy: SelectionPolicy, block_s: float, *, whole_frames: bool = False) -> PlazaChooser:
    """Choose by `select_batch`, called as the select-samples flow does.

    With `whole_frames` frames are compared by the detector's embedding of the whole frame instead of by their boxes.
    """

    def choose(turn: PlazaTurn) -> Choice:
        look, free, known = turn.model.look(), turn.free, turn.known
        seen_as = look.frames if whole_frames else look.descriptors
        pool = CandidatePool(
            ids=row_ids(free),
            embeddings=seen_as[free],
            probabilities=None,
            uncertainty=look.uncertainty[free],
            devices=take_names(turn.pool.cameras, free),
            cameras=take_names(turn.pool.cameras, free),
            groups=turn.pool.groups(free, block_s),
            random_probability=np.full(len(free), RANDOM_PROBABILITY),
            captured_s=turn.pool.captured_s[free],
        )
        labelled = LabelledSet(
            ids=row_ids(known),
            embeddings=seen_as[known],
            groups=turn.pool.groups(known, block_s),
            held_out=np.arange(len(known)) >= len(turn.taught),
            cameras=take_names(turn.pool.cameras, known),
            captured_s=turn.pool.captured_s[known],
        )
        return choice_of(select_batch(pool, labelled, policy, turn.budget, turn.seed))

    return choose


def at_random(turn: PlazaTurn) -> Choice:
    """Choose any captures, each with the same chance."""
    return teaching(np.random.default_rng(turn.seed).choice(turn.free, turn.budget, replace=False))


def most_uncertain(turn: PlazaTurn) -> Choice:
    """Choose the frames whose boxes the detector is least sure of, whatever they show."""
    order = np.argsort(-turn.model.look().uncertainty[turn.free], kind="stable")
    return teaching(turn.free[order[: turn.budget]])


def core_set() -> PlazaChooser:
    """Choose by scikit-activeml's k-center on embeddings of whole frames: it needs neither classes nor a classifier."""
    pool = import_peer("skactiveml.pool")

    def choose(turn: PlazaTurn) -> Choice:
        labelled = np.full(len(turn.pool), np.nan)
        labelled[turn.taught] = 0
        strategy = pool.CoreSet(random_state=turn.seed % 2**31)
        return teaching(
            strategy.query(turn.model.look().frames, labelled, candidates=turn.free, batch_size=turn.budget)
        )

    return choose


METHODS: Final[Mapping[str, Callable[[], PlazaChooser]]] = {
    RANDOM: lambda: at_random,
    # The demo's, but for audits, and for age: here all captures are there from the start.
    PLAZA: lambda: by_policy(SelectionPolicy(audit_share=0, scene_gap_s=2.0), PLAZA_BLOCK_S),
    DEFAULT: lambda: by_policy(SelectionPolicy(), DEFAULT_BLOCK_S),
    "detection score alone": lambda: most_uncertain,
    "k-center on whole frames (scikit-activeml)": core_set,
    "k-center on whole frames (Gleaner's)": lambda: by_policy(bare("k_center"), DEFAULT_BLOCK_S, whole_frames=True),
}


@dataclass(frozen=True)
class PlazaRace:
    """One method on one seed: AP50 before any label and at each budget, and how many captures taught there."""

    start: float
    accuracy: tuple[float, ...]
    taught: tuple[int, ...]


def race_plaza(
    pool: PlazaPool, teacher: Teacher, choose: PlazaChooser, seed: int, budgets: Sequence[int] = BUDGETS
) -> PlazaRace:
    """Spend the budgets one after another; every detector begins as the first one, so only the choice differs."""
    taught: Rows = np.empty(0, np.int64)
    held_out: Rows = taught
    model = teacher.first
    start, accuracy, counts = model.judge(), [], []
    for round_number, budget in enumerate(budgets):
        short = budget - len(taught) - len(held_out)
        turn = PlazaTurn(pool, taught, held_out, model, short, seed * 1000 + round_number)
        choice = choose(turn)
        verify_choice(choice, turn.free, turn.budget, what="captures")
        taught, held_out = np.concatenate([taught, choice.teach]), np.concatenate([held_out, choice.test])
        model = teacher.teach(taught)
        accuracy.append(model.judge())
        counts.append(len(taught))
    return PlazaRace(start, tuple(accuracy), tuple(counts))


def measure_plaza(
    seeds: int, cache_dir: Path, methods: Sequence[str] | None, known: set[tuple[str, str, str, int]]
) -> Iterator[dict[str, Any]]:
    """Yield a record a method and seed, seed by seed, so that a race that is stopped has all methods on the same."""
    from label_detector import PlazaTeacher  # noqa: PLC0415 (loads torch, which would weigh on the measure of speed)

    for seed in range(seeds):
        missing = [name for name in methods or METHODS if ("plaza", "plaza", name, seed) not in known]
        if not missing:
            continue
        pool = draw_pool(seed)
        teacher = PlazaTeacher(pool, cache_dir, seed)
        for name in missing:
            race = race_plaza(pool, teacher, METHODS[name](), seed)
            yield {
                "set": "plaza",
                "world": "plaza",
                "method": name,
                "seed": seed,
                "budgets": list(BUDGETS),
                "start": race.start,
                "accuracy": list(race.accuracy),
                "taught": list(race.taught),
            }
