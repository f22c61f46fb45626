"""Why a sample was chosen: the account in words and as JSON, and what is said when there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curate.catalog.models import AnnotationRow, RoundPhase, SelectedRow, SelectionRole
from curate.errors import CatalogError
from flows import _wiring
from flows._wiring import Services
from flows.cli import app
from flows.explain import POLICY_FACT, explain_sample
from flows.explain_words import few_words, say_label, say_prediction, tell_account
from tests.catalog_builders import NOW, batch, capture, detection, feedback, imported, plan
from tests.fakes.wiring import local_services

NAMES = ("boot", "shirt", "bag")
PARTS = {"model": 0.62, "evidence": 0.5, "uncertainty": 0.81, "weight": 1.93}
CHOSEN = SelectedRow(
    round_number=1,
    sample_id="c-2",
    rank=1,
    role=SelectionRole.ACTIVE,
    utility=0.4,
    inclusion_probability=None,
    reasons=("uherding: margin uncertainty 0.81", "one of 14 captures of the same sight"),
    cluster=57,
    stands_for=14,
    nearest_id="imported-1",
    nearest_cosine=0.834,
    cell=3,
    parts=PARTS,
    policy_digest="0" * 64,
)
AUDIT = SelectedRow(1, "c-4", 2, SelectionRole.AUDIT, 0.0, 0.0012, ("random audit: one of 60 drawn",))


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """A round of two: one to teach, close to an imported label and dismissed by a person, and one audit."""
    (tmp_path / "labels.yaml").write_text(f"class_names: [{', '.join(NAMES)}]\nheight: 16\nwidth: 24\n")
    with local_services(tmp_path, labels_file=tmp_path / "labels.yaml") as services:
        catalog = services.catalog
        captures = [capture(number) for number in (2, 4, 6, 20)]
        catalog.admit_batch(plan(batch(captures=captures, feedback=[feedback(1, "p-c-2", label="shirt")])))
        catalog.join_feedback()
        catalog.add_samples([imported(1)])
        catalog.save_annotations([answer("imported-1", "bag")])
        catalog.open_round(1, budget=2, seed=0, now=NOW)
        catalog.save_selection(1, [CHOSEN, AUDIT])
        yield services


def answer(sample_id: str, label: str) -> AnnotationRow:
    """One person's answer."""
    return AnnotationRow(f"a-{sample_id}", sample_id, "ann", {"class": label}, False, NOW, NOW + timedelta(minutes=1))


def told(wired: Services, name: str) -> str:
    """The account of a sample as one text."""
    return "\n".join(line for _, lines in tell_account(explain_sample(wired, name)) for line in lines)


def test_the_account_names_every_number(wired: Services) -> None:
    """Answer, arms, rank, parts, sight, cell, neighbour with its label, policy and feedback are all told."""
    text = told(wired, "c-2")
    for words in (
        "r1 answered: boot 70%, then shirt 20%",
        "Kept by: random, uncertain",
        "with probability 0.02",
        "Round 1, rank 1 of 2: to teach, chosen by the policy",
        "One of 14 captures of the same sight",
        "Stands for 14 capture(s) of one sight (number 57, in cell 3 of the pool)",
        "Closest training label: imported-1 at cosine 0.834, labelled bag",
        "Selection policy 000000000000, no longer in force",
        "model 0.620: how unsure the model is",
        "evidence 0.500",
        "utility 0.4:",
        "A person dismissed the answer, saying shirt",
        "Nobody has settled what it is: queued, not sent yet",
    ):
        assert words in text


def test_an_audit_says_what_it_stands_for(wired: Services) -> None:
    """An audit's probability becomes the number of frames it stands for, and nothing is said to have been gained."""
    text = told(wired, "c-4")
    assert "to measure the field; no model is taught with it" in text
    assert "Drawn with probability 0.0012: stands for 833 frames" in text
    assert "utility" not in text


def test_what_came_of_it_is_told(wired: Services) -> None:
    """Once people have settled what it is, the device was right or wrong."""
    wired.catalog.mark_sent({"c-2": "17", "c-4": "18"})
    assert "queued, asked as task 17" in told(wired, "c-2")
    wired.catalog.save_annotations([answer("c-2", "shirt"), answer("c-4", "boot")])
    assert "People settled on: shirt. The device was wrong." in told(wired, "c-2")
    assert "People settled on: boot. The device was right." in told(wired, "c-4")


def test_the_policy_in_force_is_recognised(wired: Services) -> None:
    """A choice made under today's policy says so."""
    account = replace(explain_sample(wired, "c-2"), policy_digest="0" * 64)
    assert any("the one in force" in line for _, lines in tell_account(account) for line in lines)


def test_what_changed_in_the_policy_is_told(wired: Services) -> None:
    """Where the round kept its policy, each setting that differs now is named with both values."""
    then = wired.settings.selection.model_dump(mode="json") | {"audit_share": 0.45, "no_longer_there": 1}
    wired.catalog.advance_round(1, RoundPhase.SELECTED, {POLICY_FACT: then}, now=NOW)
    assert "no longer in force; audit_share was 0.45, is 0.2." in told(wired, "c-2")


def test_a_choice_of_an_older_version_is_told_by_its_reasons(wired: Services) -> None:
    """Without stored numbers the reasons are what there is, and no empty heading stands there."""
    account = replace(
        explain_sample(wired, "c-2"), row=SelectedRow(1, "c-2", 1, SelectionRole.ACTIVE, 0.4, None, ("x",))
    )
    assert "X." in [line for _, lines in tell_account(account) for line in lines]
    assert few_words(account.row) == "x"


def test_an_explored_pick_says_so(wired: Services) -> None:
    """A pick drawn at random is not told as the policy's."""
    account = replace(explain_sample(wired, "c-2"), row=replace(CHOSEN, explored=True))
    text = "\n".join(line for _, lines in tell_account(account) for line in lines)
    assert "drawn at random among the distinct sights" in text
    assert "utility" not in text


def test_the_json_is_whole(wired: Services) -> None:
    """The JSON holds the stored row, what the device said without embeddings, and what came of it."""
    wired.catalog.save_annotations([answer("c-2", "bag")])
    found = json.loads(json.dumps(explain_sample(wired, "c-2").to_json()))
    assert found["parts"] == PARTS
    assert (found["nearest_id"], found["nearest_cosine"], found["nearest_label"]) == (
        "imported-1",
        0.834,
        {"class": "bag"},
    )
    assert (found["arms"], found["random_probability"]) == (["random", "uncertain"], 0.02)
    assert (found["label"], found["status"], found["chosen"]) == ({"class": "bag"}, "labelled", 2)
    assert found["feedback"][0]["verdict"] == "dismissed"
    assert "embedding" not in found["prediction"]


def test_a_beginning_is_enough_when_it_is_one_samples_alone(wired: Services) -> None:
    """`c-4` is found by its id although others exist, and an ambiguous beginning names what it fits."""
    wired.catalog.admit_batch(plan(batch(2, captures=[capture(40)])))
    assert explain_sample(wired, "c-4").row == AUDIT
    with pytest.raises(CatalogError, match=r"not one sample: c-2, c-20, c-4, c-40, c-6$"):
        explain_sample(wired, "c")


@pytest.mark.parametrize(("name", "words"), [("z", "begins with 'z'"), ("", "begins with ''"), ("c-6", "never chosen")])
def test_what_cannot_be_explained_is_told(wired: Services, name: str, words: str) -> None:
    """An unknown id, none at all, and a sample that was never chosen each get their own message and a hint."""
    with pytest.raises(CatalogError, match=words) as caught:
        explain_sample(wired, name)
    assert caught.value.hint


def test_boxes_are_counted(wired: Services) -> None:
    """Of boxes the shown ones are counted by class, in answers and in labels, and an empty frame is an answer."""
    assert say_prediction(detection(1), NAMES) == "2 x boot"
    assert say_prediction(detection(1).model_copy(update={"boxes": []}), NAMES) == "nothing"
    assert say_prediction(None, NAMES) == "no answer"
    box = {"class": "bag", "x_min": 0, "y_min": 0, "x_max": 2, "y_max": 2}
    assert say_label({"boxes": [box]}) == "bag"
    assert say_label(None) is None


def test_the_commands_print_words_and_json(wired: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`gleaner explain` prints sentences, with --json one document; `gleaner sheet` writes where it is told."""
    monkeypatch.setattr(_wiring, "services", lambda: wired)
    shown = CliRunner().invoke(app, ["explain", "c-4"])
    assert shown.exit_code == 0
    assert "no model is taught with it" in " ".join(shown.stdout.split())
    assert json.loads(CliRunner().invoke(app, ["explain", "c-4", "--json"]).stdout)["sample_id"] == "c-4"
    assert CliRunner().invoke(app, ["sheet", "1", "--out", str(tmp_path / "s.html")]).exit_code == 0
    assert "2 pictures chosen" in (tmp_path / "s.html").read_text()
    assert isinstance(CliRunner().invoke(app, ["explain", "nobody"]).exception, CatalogError)
