"""Label Studio's words for our tasks and labels, and its settings."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from curate.annotation.formats import FORMATS, format_of, import_request, task_data
from curate.annotation.models import AnnotationTask
from curate.annotation.settings import ImageStorageSettings, LabelStudioSettings
from curate.catalog.labels import LabelSpec, load_label_spec
from curate.contracts.prediction import ClassificationPrediction
from curate.errors import AnnotationError, ConfigError

LABELS_FILE = Path(__file__).parents[2] / "configs" / "labels.yaml"
LABELS = load_label_spec(LABELS_FILE)
CLASSIFICATION = FORMATS["classification"]


def _task(probabilities: list[float] | None = None, **context: str) -> AnnotationTask:
    prediction = (
        ClassificationPrediction(prediction_id="p-1", release_id="r-7", probabilities=probabilities)
        if probabilities
        else None
    )
    return AnnotationTask("s-1", "s3://gleaner/captures/cam-1/x.png", 3, 32, 32, prediction, dict(context))


def test_the_shipped_labels_are_the_ten_garments() -> None:
    """`configs/labels.yaml` loads and is complete."""
    assert (LABELS.kind, len(LABELS.class_names), LABELS.height, LABELS.width) == ("classification", 10, 32, 32)


@given(st.lists(st.text(min_size=1), min_size=2, max_size=60, unique=True), st.data())
def test_an_encoded_label_is_read_back(names: list[str], data: st.DataObject) -> None:
    """Whatever the classes are called, encoding and parsing a label is the identity."""
    labels = LabelSpec(class_names=tuple(names), height=32, width=32)
    label = {"class": data.draw(st.sampled_from(names))}
    assert CLASSIFICATION.parse(CLASSIFICATION.encode(label), labels) == label


_NAMES = st.text(st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters="\ufffe\uffff$"), min_size=1)


@given(st.lists(_NAMES, min_size=2, max_size=60, unique=True))
def test_the_page_offers_every_class_once(names: list[str]) -> None:
    """Names with quotes, angle brackets or any script survive in the XML; hotkeys never collide."""
    page = ET.fromstring(CLASSIFICATION.label_config(LabelSpec(class_names=tuple(names), height=32, width=32)))
    choices = list(page.iter("Choice"))
    assert [choice.get("value") for choice in choices] == names
    keys = [key for choice in choices if (key := choice.get("hotkey"))]
    assert len(set(keys)) == len(keys) == min(len(names), 36)


def test_a_name_that_would_be_a_variable_is_refused() -> None:
    """Label Studio would show `undefined` instead of the class."""
    labels = LabelSpec(class_names=("$cash", "card"), height=32, width=32)
    with pytest.raises(AnnotationError):
        CLASSIFICATION.label_config(labels)


def test_every_variable_of_the_page_is_in_every_task() -> None:
    """Label Studio refuses a task that lacks one, also when nothing is known about the sample."""
    variables = set(re.findall(r"\$(\w+)", CLASSIFICATION.label_config(LABELS)))
    for task in (_task(), _task([1.0] + [0.0] * 9, camera="cam-1", frame="7", captured_at="now", reasons="odd")):
        data = task_data(task)
        assert variables <= set(data)
        assert all(data[name] for name in variables)


def test_the_guess_is_chosen_already() -> None:
    """The most probable class comes as the pre-annotation, with its probability, and the release in the data."""
    request = import_request(_task([0.05] * 7 + [0.65, 0.0, 0.0]), LABELS)
    (guess,) = request["predictions"]
    assert CLASSIFICATION.parse(guess["result"], LABELS) == {"class": "Sneaker"}
    assert guess["score"] == 0.65
    assert request["data"]["release"] == "r-7"


def test_a_guess_over_other_classes_is_left_out() -> None:
    """A prediction of an older release with fewer classes cannot be shown, but the task is sent all the same."""
    assert import_request(_task([0.5, 0.5]), LABELS)["predictions"] == []
    assert import_request(_task(), LABELS)["predictions"] == []


@pytest.mark.parametrize(
    "regions",
    [
        [],
        [{"type": "choices", "value": {"choices": []}}],
        [{"type": "choices", "value": {"choices": ["Bag", "Coat"]}}],
        [{"type": "choices", "value": {"choices": ["bag"]}}],
        [{"type": "choices", "value": {}}],
        [{"value": {"choices": ["Bag"]}}],
        [{"type": "choices", "value": None}],
    ],
)
def test_an_answer_that_says_nothing_known_is_refused(regions: list[dict[str, object]]) -> None:
    """None, several or unknown classes and malformed regions are errors, never a guess."""
    with pytest.raises(AnnotationError):
        CLASSIFICATION.parse(regions, LABELS)


def test_a_kind_without_an_adapter_is_refused() -> None:
    """A kind that nobody wrote an adapter for is an error that says which there are."""
    with pytest.raises(AnnotationError) as caught:
        format_of(LABELS.model_copy(update={"kind": "segmentation"}))
    assert "classification" in str(caught.value.hint)


def test_the_token_comes_from_one_place(tmp_path: Path) -> None:
    """A token or a file with one; both, neither and an empty file are refused."""
    file = tmp_path / "token"
    file.write_text("abc\n")
    assert LabelStudioSettings(url="http://ls", token_file=file).load_token() == "abc"
    assert LabelStudioSettings(url="http://ls", token=SecretStr("abc")).load_token() == "abc"
    for wrong in ({}, {"token": SecretStr("abc"), "token_file": file}):
        with pytest.raises(ValidationError):
            LabelStudioSettings(url="http://ls", **wrong)
    file.write_text(" ")
    for missing in (file, tmp_path / "no-such-file"):
        with pytest.raises(ConfigError):
            LabelStudioSettings(url="http://ls", token_file=missing).load_token()


def test_broken_keys_are_not_quoted(tmp_path: Path) -> None:
    """An unreadable credentials file is named, its content is not."""
    file = tmp_path / "keys.json"
    file.write_text('{"access_key": "A", "secret_kee": "hush"}')
    with pytest.raises(ConfigError) as caught:
        ImageStorageSettings(bucket="gleaner", credentials_file=file).load_keys()
    assert "hush" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_the_fingerprint_changes_with_the_keys(tmp_path: Path) -> None:
    """A rotated key or another endpoint is noticed, a moved file with the same keys is not."""
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text('{"access_key": "A", "secret_key": "one"}')
    second.write_text('{"access_key": "A", "secret_key": "one"}')
    settings = ImageStorageSettings(bucket="gleaner", credentials_file=first)
    moved = ImageStorageSettings(bucket="gleaner", credentials_file=second)
    before = settings.fingerprint(settings.load_keys())
    assert moved.fingerprint(moved.load_keys()) == before
    second.write_text('{"access_key": "A", "secret_key": "two"}')
    assert moved.fingerprint(moved.load_keys()) != before
    elsewhere = settings.model_copy(update={"endpoint_url": "http://other"})
    assert elsewhere.fingerprint(settings.load_keys()) != before
