"""The simulated annotators' answers."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from flows.sandbox.fashion_annotators import FashionAnnotatorsConfig, WorldTruth, decide_answer
from flows.sandbox.world_schedule import Schedule, WorldConfig

NAMES = tuple("abcdefghij")


def _config(**changes: object) -> FashionAnnotatorsConfig:
    return FashionAnnotatorsConfig.model_validate(
        {"seed": 4, "url": "http://ls", "token": "t", "class_names": NAMES} | changes
    )


def test_a_restarted_annotator_answers_the_same() -> None:
    """The answer is a function of the seed and the sample; another seed gives others."""
    config = _config(error_rate=0.5, skip_rate=0.2)
    first = [decide_answer(config, f"s-{n}", n % 10) for n in range(100)]
    assert first == [decide_answer(config, f"s-{n}", n % 10) for n in range(100)]
    other = _config(error_rate=0.5, skip_rate=0.2, seed=5)
    assert first != [decide_answer(other, f"s-{n}", n % 10) for n in range(100)]


def test_mistakes_and_skips_are_as_rare_as_configured() -> None:
    """Of 5,000 answers about 2 % are wrong and 1 % are skips (five standard errors), and mistakes spread."""
    config = _config()
    answers = [(decide_answer(config, f"s-{n}", n % 10), NAMES[n % 10]) for n in range(5_000)]
    skipped = sum(given is None for given, _ in answers)
    wrong = Counter(given for given, true in answers if given is not None and given != true)
    assert abs(skipped / 5_000 - 0.01) < 0.007
    assert abs(wrong.total() / 5_000 - 0.02) < 0.01
    assert len(wrong) >= 8


def test_an_annotator_who_always_errs_never_says_the_truth() -> None:
    """A mistake is another class."""
    config = _config(error_rate=1.0, skip_rate=0.0)
    assert all(decide_answer(config, f"s-{n}", n % 10) != NAMES[n % 10] for n in range(200))


def test_the_truth_is_the_worlds() -> None:
    """A task's camera and frame lead to the class that the world shows there; other tasks are refused."""
    world = WorldConfig(seed=4)
    truth = WorldTruth(world)
    labels = Schedule(world, "cam-2").labels(300)
    assert [truth({"camera": "cam-2", "frame": str(frame)}) for frame in range(300)] == labels.tolist()
    for stranger in ({}, {"camera": "cam-9", "frame": "1"}, {"camera": "cam-1", "frame": "x"}):
        with pytest.raises((KeyError, ValueError)):
            truth(stranger)


def test_many_people_read_one_truth() -> None:
    """Asked from several threads at once, the truth is what one thread alone reads."""
    world = WorldConfig()
    asked = [
        {"camera": camera.camera_id, "frame": str(frame)} for frame in range(0, 60_000, 97) for camera in world.cameras
    ]
    alone, shared = WorldTruth(world), WorldTruth(world)
    with ThreadPoolExecutor(8) as people:
        assert list(people.map(shared, asked)) == [alone(each) for each in asked]
