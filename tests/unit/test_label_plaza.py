"""The detection race on the plaza: a fair pool, counted labels, honest differences. No detector is trained here."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import label_plaza  # noqa: E402 (its folder is no package)
import label_race  # noqa: E402
import label_report  # noqa: E402
from curate.selection.base import SelectionPolicy  # noqa: E402
from flows.sandbox.plaza_scene import FIELD_FRAMES, TEST_FRAMES  # noqa: E402
from label_choosers import DEFAULT, RANDOM, Choice, teaching  # noqa: E402
from label_worlds import Matrix, Rows  # noqa: E402

OURS = [name for name in label_plaza.METHODS if "scikit-activeml" not in name]


class Bookkeeper:
    """A detector that is as good as the distinct scenes it was taught, and sees scenes of one frame number alike."""

    def __init__(self, pool: label_plaza.PlazaPool, rows: Rows) -> None:
        self.pool, self.rows = pool, rows
        self.looks = 0

    def look(self) -> label_plaza.Look:
        self.looks += 1
        angle = np.array([scene.frame for scene in self.pool.scenes]) / 60.0
        seen = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        return label_plaza.Look(seen, seen, (1 + np.sin(7 * angle)) / 2)

    def judge(self) -> float:
        return len({self.pool.scenes[row] for row in self.rows.tolist()}) / len(self.pool)


class School:
    """Teaches bookkeepers, and remembers what it was asked to."""

    def __init__(self, pool: label_plaza.PlazaPool) -> None:
        self.pool = pool
        self.lessons: list[Rows] = []
        self.models = [Bookkeeper(pool, np.empty(0, np.int64))]

    @property
    def first(self) -> Bookkeeper:
        return self.models[0]

    def teach(self, rows: Rows) -> Bookkeeper:
        self.lessons.append(rows)
        self.models.append(Bookkeeper(self.pool, rows))
        return self.models[-1]


def test_the_pool_is_bursts_of_the_field_and_half_of_one_camera_is_dark() -> None:
    """Every capture shows a frame of the field and none of the exam's; dusk is on one camera only, in its second half;
    the bursts of a camera are ten minutes apart; the same seed gives the same pool, another one another."""
    pool = label_plaza.draw_pool(3)
    first, last = FIELD_FRAMES
    assert all(first <= scene.frame <= last < TEST_FRAMES[0] for scene in pool.scenes)
    half_s = label_plaza.BURSTS // 2 * label_plaza.BURST_GAP_S
    for scene, camera, moment in zip(pool.scenes, pool.cameras, pool.captured_s, strict=True):
        assert (scene.condition == "dusk") == (camera == label_plaza.DUSK_CAMERA and moment >= half_s)
    blocks = Counter(pool.groups(np.arange(len(pool)), label_plaza.DEFAULT_BLOCK_S))
    assert len(blocks) == len(label_plaza.CAMERAS) * label_plaza.BURSTS
    assert set(blocks.values()) == set(label_plaza.BURST_FRAMES)
    assert label_plaza.draw_pool(3).scenes == pool.scenes
    assert label_plaza.draw_pool(4).scenes != pool.scenes


@pytest.mark.parametrize("name", OURS)
def test_every_method_spends_each_budget_to_the_frame(name: str) -> None:
    """What teaches and what only tests add up to the budget, nothing is labelled twice, and only audits do not teach;
    the same seed chooses the same."""
    pool = label_plaza.draw_pool(0)
    schools = [School(pool), School(pool)]
    races = [label_plaza.race_plaza(pool, school, label_plaza.METHODS[name](), 5) for school in schools]
    assert races[0] == races[1]
    for rows, count in zip(schools[0].lessons, races[0].taught, strict=True):
        assert len(set(rows.tolist())) == len(rows) == count
    audited = SelectionPolicy().audit_share if name == DEFAULT else 0.0
    assert races[0].taught == tuple(
        sum(round(step * (1 - audited)) for step in np.diff((0, *label_plaza.BUDGETS[: n + 1])).tolist())
        for n in range(len(label_plaza.BUDGETS))
    )
    assert races[0].start == 0
    assert list(races[0].accuracy) == sorted(races[0].accuracy)


def test_random_never_looks() -> None:
    """Choosing at random does not pay for the detector's view of the pool, and draws every capture alike."""
    pool = label_plaza.draw_pool(0)
    school = School(pool)
    for seed in range(200):
        label_plaza.race_plaza(pool, school, label_plaza.at_random, seed, (len(pool) // 4,))
    assert not any(model.looks for model in school.models)
    asked = np.bincount(np.concatenate(school.lessons), minlength=len(pool))
    assert asked.min() > 15
    assert asked.max() < 90


def test_gleaner_asks_about_more_bursts_than_chance() -> None:
    """With as many labels the default policy reaches more bursts than random does: it collapses what looks alike."""
    pool = label_plaza.draw_pool(1)
    reached = {}
    for name in (RANDOM, label_plaza.PLAZA):
        school = School(pool)
        label_plaza.race_plaza(pool, school, label_plaza.METHODS[name](), 0)
        reached[name] = len(set(pool.groups(school.lessons[-1], label_plaza.DEFAULT_BLOCK_S)))
    assert reached[label_plaza.PLAZA] > reached[RANDOM]


def test_the_most_uncertain_frames_come_first() -> None:
    """Nobody who is left out is less sure than who is chosen, and what is labelled already is not asked again."""
    pool = label_plaza.draw_pool(0)
    model = Bookkeeper(pool, np.empty(0, np.int64))
    unsure = model.look().uncertainty
    taught = np.argsort(-unsure)[:10]
    turn = label_plaza.PlazaTurn(pool, taught, taught[:0], model, 20, 0)
    chosen = label_plaza.most_uncertain(turn).teach
    assert not set(chosen.tolist()) & set(taught.tolist())
    left = np.setdiff1d(turn.free, chosen)
    assert unsure[chosen].min() >= unsure[left].max()


def test_a_method_that_asks_twice_is_stopped() -> None:
    """Asking for one capture twice, or for too few, is an error and no advantage."""
    pool = label_plaza.draw_pool(0)
    for rows in ([1, 1, 2, 3, 4, 5], [1, 2, 3], []):
        with pytest.raises(ValueError, match="free captures"):
            label_plaza.race_plaza(pool, School(pool), lambda _, rows=rows: teaching(rows), 0)


def test_audits_are_not_learned_from() -> None:
    """With half of the budget audited, half as many captures teach."""
    pool = label_plaza.draw_pool(0)
    school = School(pool)
    half = label_plaza.by_policy(SelectionPolicy(audit_share=0.5), label_plaza.DEFAULT_BLOCK_S)
    assert label_plaza.race_plaza(pool, school, half, 0, (10, 20)).taught == (5, 10)


def test_a_handful_of_seeds_has_a_wide_interval() -> None:
    """The interval of a mean of three holds the truth in 19 of 20 cases, and one seed says nothing about noise."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        about = label_race.paired_mean(rng.normal(0.3, 1, 3))
        held += about.low <= 0.3 <= about.high
    assert held >= 930
    assert np.isinf(label_race.paired_mean(np.array([0.1])).high)


def test_the_table_holds_methods_against_random_on_the_same_seeds(tmp_path: Path) -> None:
    """Differences are of the seeds that both have, in points, by budget and on average; other tables stay away."""
    ap50 = {(RANDOM, 0): 0.5, (RANDOM, 1): 0.6, (DEFAULT, 0): 0.53, (DEFAULT, 1): 0.65, ("new", 1): 0.58}
    records = [
        {"set": "plaza", "world": "plaza", "method": method, "seed": seed, "budgets": [6, 12], "accuracy": [v, v + 0.1]}
        for (method, seed), v in ap50.items()
    ]
    page = tmp_path / "labels.md"
    page.write_text("<!-- measured: begin -->\nold\n<!-- measured: end -->\n")
    label_report.write_report(page, records)
    lines = page.read_text().splitlines()
    assert "| random: AP50 | 2 | 55.0 | 65.0 | 60.0 |" in lines
    assert "| Gleaner | 2 | +4.0 ± 12.7 | +4.0 ± 12.7 | +4.0 ± 12.7 |" in lines
    assert "| new | 1 | -2.0 | -2.0 | -2.0 |" in lines
    assert len([line for line in lines if line.startswith("| ---")]) == 1


def test_core_set_sees_what_is_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer gets the frames' embeddings, one label value for all that teaches, and only free captures to choose."""
    pool = label_plaza.draw_pool(0)
    asked: dict[str, Any] = {}

    class CoreSet:
        def __init__(self, random_state: int) -> None:
            asked["seed"] = random_state

        def query(self, rows: Matrix, labels: Matrix, candidates: Rows, batch_size: int) -> Rows:
            asked.update(rows=rows, labels=labels, candidates=candidates)
            return candidates[:batch_size]

    monkeypatch.setattr(label_plaza, "import_peer", lambda _: type("pool", (), {"CoreSet": CoreSet}))
    model = Bookkeeper(pool, np.empty(0, np.int64))
    turn = label_plaza.PlazaTurn(pool, np.array([4, 7]), np.empty(0, np.int64), model, 3, 11)
    choice: Choice = label_plaza.core_set()(turn)
    assert choice.teach.tolist() == [0, 1, 2]
    assert np.flatnonzero(~np.isnan(asked["labels"])).tolist() == [4, 7]
    assert not set(asked["candidates"].tolist()) & {4, 7}
    assert asked["rows"].shape == (len(pool), 2)
