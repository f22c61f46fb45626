"""Groups and splits: nothing a model was taught from may judge it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curate.catalog.models import DatasetVersion, Sample, SelectionRole, Split
from curate.catalog.splits import LabelledSample, SplitPolicy, assign_groups, dataset_digest, plan_splits
from tests.catalog_builders import NOW, samples

ACTIVE, AUDIT = SelectionRole.ACTIVE, SelectionRole.AUDIT
_TEMPLATE = samples(1)[0]


def _sample(name: str, at_s: float = 0, camera: str = "front", device: str = "cam-1") -> Sample:
    return replace(
        _TEMPLATE, sample_id=name, captured_at=NOW + timedelta(seconds=at_s), camera_id=camera, device_id=device
    )


def _labelled(name: str, role: SelectionRole = ACTIVE, label: str = "bag") -> LabelledSample:
    return LabelledSample(_sample(name), role, {"class": label}, 0.1 if role is AUDIT else None)


def _plan(
    previous: DatasetVersion | None,
    labelled: list[LabelledSample],
    groups: dict[str, str],
    validation_fraction: float = 0.0,
    withdrawn: frozenset[str] = frozenset(),
) -> DatasetVersion:
    policy = SplitPolicy(validation_fraction=validation_fraction)
    return plan_splits(previous, labelled, groups, policy, seed=0, round_number=1, now=NOW, withdrawn=withdrawn)


def _splits(version: DatasetVersion) -> dict[str, Split]:
    return {item.sample_id: item.split for item in version.items}


# Groups


def test_a_burst_shares_a_group_and_distant_frames_do_not() -> None:
    """One block of time of one camera is one group; other blocks, cameras and devices are others."""
    found = assign_groups(
        [
            _sample("a", 0),
            _sample("b", 59),
            _sample("c", 60),
            _sample("d", 0, camera="back"),
            _sample("e", 0, device="cam-2"),
        ],
        {},
        block_s=60,
    )
    assert found == {"a": "a", "b": "a", "c": "c", "d": "d", "e": "e"}


def test_near_duplicates_link_bursts() -> None:
    """A cluster joins the bursts its members lie in, also through a frame in between."""
    frames = [_sample("a", 0), _sample("b", 30), _sample("c", 600), _sample("d", 620), _sample("e", 6000)]
    assert assign_groups(frames, {"b": 7, "c": 7, "e": 8}, block_s=60) == {
        "a": "a",
        "b": "a",
        "c": "a",
        "d": "a",
        "e": "e",
    }


@given(
    clusters=st.lists(st.none() | st.integers(0, 5), min_size=1, max_size=25),
    blocks=st.lists(st.integers(0, 12), min_size=25, max_size=25),
    seed=st.integers(0, 1000),
)
def test_groups_are_the_connected_components_in_any_order(
    clusters: list[int | None], blocks: list[int], seed: int
) -> None:
    """Samples share a group exactly when a chain of shared blocks and clusters joins them, whatever the order."""
    frames = [_sample(f"s{n:02d}", blocks[n] * 60) for n in range(len(clusters))]
    of_cluster = {f"s{n:02d}": cluster for n, cluster in enumerate(clusters) if cluster is not None}
    found = assign_groups(frames, of_cluster, block_s=60)
    shuffled = random.Random(seed).sample(frames, len(frames))
    assert assign_groups(shuffled, of_cluster, block_s=60) == found
    for n, sample in enumerate(frames):
        reached, frontier = {n}, [n]
        while frontier:
            one = frontier.pop()
            for other in range(len(frames)):
                linked = blocks[one] == blocks[other] or (
                    clusters[one] is not None and clusters[one] == clusters[other]
                )
                if linked and other not in reached:
                    reached.add(other)
                    frontier.append(other)
        assert {f"s{m:02d}" for m in reached} == {name for name, g in found.items() if g == found[sample.sample_id]}
        assert found[sample.sample_id] == min(f"s{m:02d}" for m in reached)


# Splits


def test_audits_judge_and_the_others_teach() -> None:
    """Without shared groups, audits are the test set, with their probability, and all else is training."""
    version = _plan(None, [_labelled("a"), _labelled("b", AUDIT)], {"a": "a", "b": "b"})
    assert _splits(version) == {"a": Split.TRAIN, "b": Split.TEST}
    assert [item.inclusion_probability for item in version.items] == [None, 0.1]
    assert version.version == dataset_digest(version.items)


@pytest.mark.parametrize("in_one_go", [True, False])
def test_an_active_sample_beside_an_audit_is_excluded(in_one_go: bool) -> None:
    """What judges is not taught from, whether both come together or one after the other."""
    groups = {"a": "g", "b": "g"}
    active, audit = _labelled("a"), _labelled("b", AUDIT)
    if in_one_go:
        version = _plan(None, [active, audit], groups)
    else:
        version = _plan(_plan(None, [audit], groups), [active], groups)
    assert _splits(version) == {"a": Split.EXCLUDED, "b": Split.TEST}


@pytest.mark.parametrize("fraction", [0.0, 0.999999999])
def test_an_audit_beside_what_was_taught_is_excluded(fraction: float) -> None:
    """A burst that taught, or stopped training, cannot judge later; its active members follow it."""
    groups = {"a": "g", "b": "g", "c": "g"}
    first = _plan(None, [_labelled("a")], groups, fraction)
    second = _plan(first, [_labelled("b", AUDIT), _labelled("c")], groups, 0.5)
    side = Split.VALIDATION if fraction else Split.TRAIN
    assert _splits(second) == {"a": side, "b": Split.EXCLUDED, "c": side}


def test_linking_two_sides_excludes_the_link_and_moves_nobody() -> None:
    """When a new frame joins groups that were apart, the old ones stay and the new one serves neither."""
    first = _plan(None, [_labelled("a"), _labelled("c", AUDIT)], {"a": "a", "c": "c"})
    merged = {"a": "a", "b": "a", "c": "a", "d": "a"}
    second = _plan(first, [_labelled("b"), _labelled("d", AUDIT)], merged)
    assert _splits(second) == {"a": Split.TRAIN, "b": Split.EXCLUDED, "c": Split.TEST, "d": Split.EXCLUDED}


def test_a_group_name_used_before_binds() -> None:
    """When groups are computed anew and a name comes back for other samples, they still do not cross sides."""
    first = _plan(None, [_labelled("s5")], {"s5": "s1"})
    second = _plan(first, [_labelled("s9", AUDIT)], {"s5": "s5", "s1": "s1", "s9": "s1"})
    assert _splits(second) == {"s5": Split.TRAIN, "s9": Split.EXCLUDED}


def test_a_new_member_takes_the_stored_name_of_its_group() -> None:
    """A group computed anew under another name is stored under the one it had, so that it stays one group."""
    first = _plan(None, [_labelled("b")], {"b": "b"})
    second = _plan(first, [_labelled("a")], {"a": "a", "b": "a"})
    assert {item.sample_id: item.group for item in second.items} == {"a": "b", "b": "b"}


def test_a_new_label_changes_the_label_not_the_split() -> None:
    """A correction makes another version with the item on the same side."""
    groups = {"a": "a"}
    first = _plan(None, [_labelled("a", AUDIT)], groups)
    second = _plan(first, [_labelled("a", ACTIVE, "shoe")], groups)
    assert _splits(second) == {"a": Split.TEST}
    assert second.items[0].label == {"class": "shoe"}
    assert second.version != first.version


def test_withdrawn_labels_leave_but_their_group_remembers() -> None:
    """An answer taken back is gone from the version; a model has seen it, so its group still cannot judge."""
    groups = {"a": "g", "b": "g"}
    first = _plan(None, [_labelled("a")], groups)
    second = _plan(first, [_labelled("b", AUDIT)], groups, withdrawn=frozenset({"a"}))
    assert _splits(second) == {"b": Split.EXCLUDED}


def test_validation_takes_about_its_share_of_groups() -> None:
    """Over many groups the hash draws the fraction asked for, and another seed draws others."""
    entries = [_labelled(f"s{n}") for n in range(1000)]
    groups = {entry.sample.sample_id: entry.sample.sample_id for entry in entries}

    def drawn(seed: int) -> set[str]:
        version = plan_splits(
            None, entries, groups, SplitPolicy(validation_fraction=0.2), seed=seed, round_number=1, now=NOW
        )
        return {name for name, split in _splits(version).items() if split is Split.VALIDATION}

    assert 150 < len(drawn(0)) < 250
    assert drawn(0) != drawn(1)


def test_nothing_new_is_the_same_version() -> None:
    """Planning again with what is known already gives the same digest, at any time."""
    entries = [_labelled("a"), _labelled("b", AUDIT)]
    groups = {"a": "a", "b": "b"}
    first = _plan(None, entries, groups)
    assert _plan(first, entries, groups).version == _plan(first, [], groups).version == first.version


@dataclass(frozen=True)
class _Turn:
    """New labels of a round, and the groups as they are then computed."""

    labelled: list[tuple[int, SelectionRole]]
    groups: list[int]


_turns = st.lists(
    st.builds(
        _Turn,
        labelled=st.lists(st.tuples(st.integers(0, 19), st.sampled_from([ACTIVE, AUDIT])), max_size=8),
        groups=st.lists(st.integers(0, 6), min_size=20, max_size=20),
    ),
    min_size=1,
    max_size=4,
)


@given(turns=_turns, seed=st.integers(0, 100))
def test_no_group_is_on_two_sides_and_no_sample_ever_moves(turns: list[_Turn], seed: int) -> None:
    """Over rounds in which groups are computed anew each time: one usable split a group, sticky, in any order."""
    previous: DatasetVersion | None = None
    for turn in turns:
        # As `assign_groups` does, a group bears the smallest id in it.
        smallest = {number: turn.groups.index(number) for number in turn.groups}
        groups = {f"s{n:02d}": f"s{smallest[number]:02d}" for n, number in enumerate(turn.groups)}
        entries = [_labelled(f"s{n:02d}", role) for n, role in dict(turn.labelled).items()]
        version = _plan(previous, entries, groups, validation_fraction=0.4)
        shuffled = random.Random(seed).sample(entries, len(entries))
        assert _plan(previous, shuffled, groups, validation_fraction=0.4) == version
        sides: dict[str, set[Split]] = {}
        for item in version.items:
            if item.split is not Split.EXCLUDED:
                sides.setdefault(item.group, set()).add(item.split)
        assert all(len(found) == 1 for found in sides.values())
        before = _splits(previous) if previous else {}
        assert before.items() <= _splits(version).items()
        _verify_new_items(version, before, groups)
        previous = version


def _verify_new_items(version: DatasetVersion, before: dict[str, Split], groups: dict[str, str]) -> None:
    """A new item that judges shares its present group with nothing that teaches, and the other way round."""
    teaching = {Split.TRAIN, Split.VALIDATION}
    for item in version.items:
        if item.sample_id in before or item.split is Split.EXCLUDED:
            continue
        others = {o.split for o in version.items if groups[o.sample_id] == groups[item.sample_id]}
        if item.split is Split.TEST:
            assert not others & teaching
        else:
            assert Split.TEST not in others


def test_the_policy_refuses_nonsense() -> None:
    """Unknown keys and impossible shares are refused."""
    for wrong in ({"validation_fraction": 1.0}, {"block_s": 0}, {"validation": 0.1}):
        with pytest.raises(ValidationError):
            SplitPolicy.model_validate(wrong)


# Scenes


def _scene_plan(
    previous: DatasetVersion | None, labelled: list[LabelledSample], pairs: list[tuple[str, str]]
) -> dict[str, Split]:
    groups = {entry.sample.sample_id: entry.sample.sample_id for entry in labelled}
    policy = SplitPolicy(validation_fraction=0.0)
    return _splits(
        plan_splits(previous, labelled, groups, policy, seed=0, round_number=1, now=NOW, shared_scenes=pairs)
    )


def test_a_new_teacher_gives_way_to_a_judge_of_its_scene() -> None:
    """Of two new samples of one scene the audit judges and the other is excluded; strangers are left alone."""
    labelled = [_labelled("a", AUDIT), _labelled("b"), _labelled("c")]
    assert _scene_plan(None, labelled, [("a", "b")]) == {"a": Split.TEST, "b": Split.EXCLUDED, "c": Split.TRAIN}


def test_a_new_judge_gives_way_to_what_was_taught_already() -> None:
    """An audit that shows what an old teacher shows is excluded, and the old teacher keeps its split."""
    groups = {"b": "b"}
    before = plan_splits(
        None, [_labelled("b")], groups, SplitPolicy(validation_fraction=0.0), seed=0, round_number=0, now=NOW
    )
    labelled = [_labelled("b"), _labelled("a", AUDIT)]
    assert _scene_plan(before, labelled, [("a", "b")]) == {"a": Split.EXCLUDED, "b": Split.TRAIN}
