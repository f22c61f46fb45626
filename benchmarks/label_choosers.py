"""Who chooses what to label: Gleaner as the product calls it, its strategies bare, and what other libraries offer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from curate.errors import ConfigError
from curate.selection.base import CandidatePool, LabelledSet, SampleRole, Selection, SelectionPolicy
from curate.selection.batch import select_batch
from label_worlds import CLASSES, Matrix, Rows, World

DISMISSAL_EVIDENCE: Final = 0.5
"""What `select_samples` makes of a dismissal."""
ENSEMBLE: Final = 6
REQUIREMENTS: Final = "requirements/bench-peers.txt"


@dataclass(frozen=True, eq=False)
class Turn:
    """What a method knows when it may choose: rows that teach, rows held out as tests, and the model's view of all.

    `probabilities` float32 [N, 10]; `dismissed` bool [N], what simulated people objected to; `probation` bool [N] or
    None, captures of devices that are new; `model` is fitted to the rows in `taught`.
    """

    world: World
    taught: Rows
    held_out: Rows
    model: LogisticRegression
    probabilities: Matrix
    dismissed: NDArray[np.bool_]
    budget: int
    seed: int
    probation: NDArray[np.bool_] | None = None

    @property
    def free(self) -> Rows:
        """The rows that nobody labelled, ascending."""
        return np.setdiff1d(np.arange(len(self.world)), np.concatenate([self.taught, self.held_out]))

    @property
    def rng(self) -> np.random.Generator:
        """A generator of this turn's own."""
        return np.random.default_rng(self.seed)


@dataclass(frozen=True, eq=False)
class Choice:
    """Rows that will teach, and rows that only test: both cost labels."""

    teach: Rows
    test: Rows


Chooser = Callable[[Turn], Choice]


def gleaner(policy: SelectionPolicy, *, dismissals: bool = False, certain: bool = False) -> Chooser:
    """Choose by `select_batch`, called as the select-samples flow does.

    `dismissals` tells it what people objected to; `certain` hides what the model is unsure of.
    """

    def choose(turn: Turn) -> Choice:
        return choice_of(select(turn, policy, dismissals=dismissals, certain=certain))

    return choose


def select(turn: Turn, policy: SelectionPolicy, *, dismissals: bool = False, certain: bool = False) -> Selection:
    """Return the product's selection for a turn."""
    world, free = turn.world, turn.free
    pool = CandidatePool(
        ids=row_ids(free),
        embeddings=world.embeddings[free],
        probabilities=turn.probabilities[free],
        uncertainty=np.ones(len(free)) if certain else None,
        devices=take_names(world.devices, free),
        cameras=take_names(world.devices, free),
        groups=take_names(world.groups, free),
        random_probability=world.random_probability[free],
        feedback=np.where(turn.dismissed[free], DISMISSAL_EVIDENCE, 0.0) if dismissals else None,
        captured_s=world.captured_s[free],
        probation=None if turn.probation is None else turn.probation[free],
    )
    known = np.concatenate([turn.taught, turn.held_out])
    labelled = LabelledSet(
        ids=row_ids(known),
        embeddings=world.embeddings[known],
        groups=take_names(world.groups, known),
        held_out=np.arange(len(known)) >= len(turn.taught),
        cameras=take_names(world.devices, known),
        captured_s=world.captured_s[known],
    )
    return select_batch(pool, labelled, policy, turn.budget, turn.seed)


def row_ids(rows: Rows) -> tuple[str, ...]:
    """Return the rows' names in a pool."""
    return tuple(f"{row:06d}" for row in rows.tolist())


def take_names(names: tuple[str, ...], rows: Rows) -> tuple[str, ...]:
    """Return the names of the rows."""
    return tuple(map(names.__getitem__, rows.tolist()))


def choice_of(selection: Selection) -> Choice:
    """Return the rows that a selection of `row_ids` chose."""
    return Choice(_rows(selection, SampleRole.ACTIVE), _rows(selection, SampleRole.AUDIT))


def _rows(selection: Selection, role: SampleRole) -> Rows:
    return np.array([int(item.sample_id) for item in selection.items if item.role is role], np.int64)


def bare(strategy: str) -> SelectionPolicy:
    """Return a policy that is nothing but a strategy: no audits, no exploring, no duplicates, no quotas."""
    return SelectionPolicy.model_validate(
        {
            "strategy": strategy,
            "audit_share": 0,
            "explore_share": 0,
            "burst_duplicate_cosine": 1,
            "duplicate_cosine": 1,
            "max_device_share": 1,
            "multiplicity_power": 0,
            "exclude_labelled_groups": False,
            "max_candidates": 10_000,
        }
    )


def at_random(turn: Turn) -> Choice:
    """Choose any rows, each with the same chance."""
    return teaching(turn.rng.choice(turn.free, turn.budget, replace=False))


def skactiveml(name: str, needs: tuple[str, ...] = (), **options: Any) -> Chooser:
    """Choose by a pool strategy of scikit-activeml, with its defaults but for `options`.

    `needs` names what its query wants beside the rows: `clf`, the same model as everybody's, fitted already.
    """
    pool = import_peer("skactiveml.pool")

    def choose(turn: Turn) -> Choice:
        labels = np.full(len(turn.world), np.nan)
        labels[turn.taught] = turn.world.labels[turn.taught]
        strategy = getattr(pool, name)(random_state=turn.seed % 2**31, **options)
        given: dict[str, Any] = {"candidates": turn.free, "batch_size": turn.budget}
        if "clf" in needs:
            given |= {"clf": _as_skactiveml(turn), "fit_clf": False}
        return teaching(strategy.query(turn.world.embeddings, labels, **given))

    return choose


def _as_skactiveml(turn: Turn) -> Any:
    classifier = import_peer("skactiveml.classifier").SklearnClassifier(
        LogisticRegression(**turn.model.get_params()), classes=list(range(CLASSES)), random_state=0
    )
    return classifier.fit(turn.world.embeddings[turn.taught], turn.world.labels[turn.taught])


def baal(name: str, **options: Any) -> Chooser:
    """Choose by a heuristic of baal on the answers of an ensemble: six models, each of labels drawn with return."""
    heuristics = import_peer("baal.active.heuristics")

    def choose(turn: Turn) -> Choice:
        free, rng = turn.free, turn.rng
        answers = np.stack([_bootstrapped(turn, free, rng) for _ in range(ENSEMBLE)], axis=-1)
        ranks = getattr(heuristics, name)(**options)(answers)
        return teaching(free[np.asarray(ranks)[: turn.budget]])

    return choose


def _bootstrapped(turn: Turn, rows: Rows, rng: np.random.Generator) -> Matrix:
    """Return what a model of a bootstrap sample of the labels says of the rows, float32 [n, 10]."""
    while True:
        drawn = rng.choice(turn.taught, len(turn.taught))
        if len(np.unique(turn.world.labels[drawn])) > 1:
            break
    model = LogisticRegression(**turn.model.get_params())
    model.fit(turn.world.embeddings[drawn], turn.world.labels[drawn])
    return predict(model, turn.world.embeddings[rows])


def verify_choice(choice: Choice, free: Rows, budget: int, *, what: str = "rows") -> None:
    """Accept a choice of exactly the budget, of free rows: a method that asks twice, or for more, would win unfairly.

    Raises:
        ValueError: it is none.
    """
    rows = np.concatenate([choice.teach, choice.test])
    if len(rows) != budget or len(np.unique(rows)) != len(rows) or not np.isin(rows, free).all():
        raise ValueError(f"asked for {budget} free {what}, got {len(np.unique(rows))} distinct of {len(rows)}")


def predict(model: LogisticRegression, embeddings: Matrix) -> Matrix:
    """Return the probabilities of all ten classes, float32 [n, 10]; 0 for one that the model has never seen."""
    said = np.zeros((len(embeddings), CLASSES), np.float32)
    said[:, model.classes_] = model.predict_proba(embeddings)
    return said


def import_peer(module: str) -> ModuleType:
    """Import a module of a peer.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise ConfigError(f"{module} is not installed", hint=f"pip install --no-deps -r {REQUIREMENTS}") from exc


def teaching(rows: Any) -> Choice:
    """Return a choice without audits."""
    return Choice(np.asarray(rows, np.int64), np.empty(0, np.int64))


DEFAULT: Final = "Gleaner"
UNAUDITED: Final = "Gleaner, audits apart"
RANDOM: Final = "random"
OURS: Final[Mapping[str, Callable[[], Chooser]]] = {
    DEFAULT: lambda: gleaner(SelectionPolicy()),
    UNAUDITED: lambda: gleaner(SelectionPolicy(audit_share=0)),
}
PEERS: Final[Mapping[str, Callable[[], Chooser]]] = {
    RANDOM: lambda: at_random,
    "margin (scikit-activeml)": lambda: skactiveml("UncertaintySampling", ("clf",), method="margin_sampling"),
    "k-center (scikit-activeml)": lambda: skactiveml("CoreSet"),
    "BADGE (scikit-activeml)": lambda: skactiveml("Badge", ("clf",)),
    "TypiClust (scikit-activeml)": lambda: skactiveml("TypiClust"),
    "Falcun (scikit-activeml)": lambda: skactiveml("Falcun", ("clf",)),
    "BALD (baal)": lambda: baal("BALD"),
}
