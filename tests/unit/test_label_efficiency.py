"""The race that proves the selection: fair worlds, counted labels, honest intervals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import label_choosers  # noqa: E402 (its folder is no package)
import label_efficiency  # noqa: E402
import label_poison  # noqa: E402
import label_race  # noqa: E402
import label_report  # noqa: E402
import label_worlds  # noqa: E402
from curate.errors import ConfigError  # noqa: E402
from curate.selection.base import SelectionPolicy  # noqa: E402

NOWHERE = Path("/nowhere")


def numbered(count: int) -> label_worlds.Pictures:
    """Pictures that are told apart in their embedding: picture k is a vector with angle k."""
    angle = np.linspace(0, 3, count)
    images = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32).reshape(-1, 1, 2)
    return label_worlds.Pictures(images, np.arange(count) % 10, lambda seen: seen.reshape(len(seen), -1))


def angles(embeddings: label_worlds.Matrix) -> set[float]:
    return set(np.arctan2(embeddings[:, 1], embeddings[:, 0]).round(4).tolist())


@pytest.mark.parametrize("kind", ["plain", "imbalanced"])
def test_what_judges_was_never_sent(kind: str) -> None:
    """No test picture is in the pool, and the start labels are distinct rows of at least two classes."""
    rng = np.random.default_rng(0)
    pictures = numbered(20_000 if kind == "imbalanced" else 400)
    world = (
        label_worlds.imbalanced(pictures, 300, rng)
        if kind == "imbalanced"
        else label_worlds.plain(pictures, 300, 100, rng)
    )
    assert not angles(world.embeddings) & angles(world.test_embeddings)
    assert len(set(world.start.tolist())) == label_worlds.START
    assert len(set(world.labels[world.start].tolist())) > 1


def test_an_imbalanced_world_has_a_hundred_of_the_commonest_for_one_of_the_rarest() -> None:
    """Class counts fall geometrically from 1,000 to 10."""
    world = label_worlds.imbalanced(numbered(20_000), 300, np.random.default_rng(1))
    counts = sorted(np.bincount(world.labels).tolist())
    assert (counts[0], counts[-1], len(counts)) == (10, 1000, 10)


def test_a_fixed_camera_sees_a_scene_a_hundred_times_in_a_row() -> None:
    """Copies of a scene come from one camera within 50 s; 600 things are seen once; the same seed is the same world."""
    world = label_worlds.make_world("digits, camera-like", 0, NOWHERE)
    again = label_worlds.make_world("digits, camera-like", 0, NOWHERE)
    assert len(world) == label_worlds.UNIQUE + label_worlds.SCENES * label_worlds.COPIES
    assert np.array_equal(world.embeddings, again.embeddings)
    assert world.groups == again.groups
    sizes = np.unique(np.array(world.groups), return_counts=True)[1]
    assert sizes.max() <= label_worlds.COPIES
    assert len(sizes) <= label_worlds.UNIQUE + 2 * label_worlds.SCENES  # a scene may lie across two blocks of a minute
    assert set(world.devices) == {f"cam-{number}" for number in range(label_worlds.CAMERAS)}


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=8),
    st.floats(0, 1),
)
def test_the_first_reach_is_where_the_line_between_budgets_meets_the_target(curve: list[float], target: float) -> None:
    """Before it the curve is below the target, at it equal; infinite only where the curve stays below."""
    spent = np.arange(len(curve), dtype=float)
    reach = label_race.first_reach(np.array(curve), spent, target)
    if np.isinf(reach):
        assert max(curve) < target
        return
    assert np.interp(reach, spent, curve) >= target - 1e-9
    assert all(value < target for value in np.array(curve)[spent < reach - 1e-9])


def test_twice_as_fast_needs_half_of_the_labels() -> None:
    """A method that is at each budget where random is at twice that needs a share of one half, with an interval."""
    budgets = tuple(range(10, 101, 10))
    noise = np.random.default_rng(0).normal(0, 0.003, (30, 1))
    spent = np.array(budgets) / 100
    random, fast = 0.8 * spent + noise, 0.8 * np.minimum(2 * spent, 1) + noise
    draws = label_race.resample(30, np.random.default_rng(1))
    share = label_race.share_of_labels(fast, random, budgets, draws)
    assert share.value == pytest.approx(0.5)
    assert share.low <= share.value <= share.high
    assert label_race.mean_gain(random, random, budgets, draws).value == 0


def test_noise_alone_is_rarely_called_worse_than_random() -> None:
    """Of 200 methods as good as random at most a tenth is called worse at any of the budgets; a worse one always is."""
    rng = np.random.default_rng(0)
    draws = label_race.resample(30, rng)
    same = np.zeros((30, len(label_race.BUDGETS)))
    called = 0
    for _ in range(200):
        noise = np.cumsum(rng.normal(0, 0.01, same.shape), axis=1)
        called += label_race.worst_against_random(noise, same, label_race.BUDGETS, draws).beyond_noise
    assert called <= 20
    worse = same - 0.02 * (np.arange(same.shape[1]) == 5) + rng.normal(0, 0.01, same.shape)
    found = label_race.worst_against_random(worse, same, label_race.BUDGETS, draws)
    assert (found.budget, found.beyond_noise) == (label_race.BUDGETS[5], True)


def test_ranks_are_shared_by_ties_and_averaged_over_worlds() -> None:
    """The best has rank 1; two that tie share the mean of their places."""
    areas = {
        "one": {"a": np.array([3.0, 3.0]), "b": np.array([2.0, 2.0]), "c": np.array([2.0, 1.0])},
        "two": {"a": np.array([1.0]), "b": np.array([2.0]), "c": np.array([3.0])},
    }
    assert label_race.mean_ranks(areas) == {"a": 2.0, "b": (2.25 + 2) / 2, "c": (2.75 + 1) / 2}


def test_audits_cost_labels_and_teach_nothing() -> None:
    """With half of the budget audited, half as many rows teach, and the budget is spent to the label."""
    world = label_worlds.make_world("digits", 0, NOWHERE)
    seen = []

    def watch(turn: label_choosers.Turn) -> label_choosers.Choice:
        seen.append((len(turn.taught), len(turn.held_out)))
        return label_choosers.gleaner(SelectionPolicy(audit_share=0.5))(turn)

    race = label_race.run_race(world, watch, 0, (10, 30, 50))
    assert seen == [(10, 0), (20, 10)]
    assert len(race.accuracy) == 3


def test_a_method_that_asks_twice_is_stopped() -> None:
    """Asking for a labelled row, for one row twice, or for too few is an error and no advantage."""
    world = label_worlds.make_world("digits", 0, NOWHERE)
    nothing = world.start[:0]
    for rows in (world.start[:10], np.repeat(np.setdiff1d(np.arange(20), world.start)[:5], 2), nothing):
        choice = label_choosers.Choice(rows, nothing)
        with pytest.raises(ValueError, match="free rows"):
            label_race.run_race(world, lambda _, choice=choice: choice, 0, (10, 20))


def test_a_missing_peer_says_what_to_install() -> None:
    """A peer that is not installed is a clear error with the command that helps."""
    with pytest.raises(ConfigError, match="is not installed") as caught:
        label_choosers.import_peer("a_library_that_nobody_has")
    assert "bench-peers" in str(caught.value.hint)


def test_a_quota_bounds_what_a_bad_device_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crafted captures are taken up to the quota of the strategy's share, and far fewer when the quota is small."""
    monkeypatch.setattr(label_poison, "fashion", lambda _: label_worlds.digits())
    monkeypatch.setattr(label_poison, "HONEST", 1500)
    turn = label_poison.poisoned_turn(NOWHERE, label_poison.outliers, 0)
    shares = {
        quota: label_poison._share(
            turn.world,
            label_choosers.gleaner(SelectionPolicy(audit_share=0, max_device_share=quota), dismissals=True)(turn).teach,
        )
        for quota in (1.0, 0.05)
    }
    assert shares[0.05] <= 0.05 + 0.01 < shares[1.0]


def test_a_method_is_held_against_random_on_the_seeds_that_both_ran() -> None:
    """A method with fewer seeds is paired with those of random; one without any has no figures."""
    rng = np.random.default_rng(0)
    records = [
        {
            "set": "race",
            "world": "digits",
            "method": method,
            "seed": seed,
            "accuracy": rng.random(len(label_race.BUDGETS)).tolist(),
        }
        for method, seeds in ((label_choosers.DEFAULT, (1, 2, 7)), (label_choosers.RANDOM, (0, 1, 2)))
        for seed in seeds
    ]
    (found,) = label_report.gather(records, "race")
    pair = found.pair(label_choosers.DEFAULT)
    assert pair is not None
    assert np.array_equal(pair.curves, [record["accuracy"] for record in records[:2]])
    assert np.array_equal(pair.random, [record["accuracy"] for record in records[4:]])
    assert found.pair("nobody") is None
    assert {name: len(area) for name, area in found.areas().items()} == {
        label_choosers.DEFAULT: 2,
        label_choosers.RANDOM: 2,
    }


def test_one_command_races_writes_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The command fills the document and plots; run again, it measures nothing anew."""
    page, results = tmp_path / "labels.md", tmp_path / "labels.jsonl"
    page.write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    arguments = ["race", "--worlds", "digits", "--seeds", "2", "--results", str(results), "--write", str(page)]
    arguments += ["--methods", label_choosers.DEFAULT, label_choosers.RANDOM]
    for _ in range(2):
        assert label_efficiency.main(arguments) == 0
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        assert len(lines) == 4
    text = page.read_text()
    assert "| bar | 0.45 |" in text
    assert "digits (2 seeds)" in text
    assert "old" not in text
    assert text.startswith("before")
    assert (tmp_path / label_report.PLOT).stat().st_size > 10_000
