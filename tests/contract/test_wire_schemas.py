"""The wire is frozen: cameras in the field read and write these documents for years.

After a deliberate change run with GLEANER_UPDATE_GOLDEN=1 and read the difference: fields may be added with a default,
never removed, renamed or narrowed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from curate.contracts.assignment import Acknowledgement, Assignment
from curate.contracts.capture import BatchRecord
from curate.contracts.document import Document
from curate.contracts.prediction import ClassificationPrediction, DetectionPrediction
from curate.contracts.release import Envelope, ReleaseManifest
from curate.contracts.telemetry import ReportedState
from curate.errors import ContractError

GOLDEN = Path(__file__).parent / "golden"
DOCUMENTS: tuple[type[Document], ...] = (
    BatchRecord,
    Assignment,
    Envelope,
    ReleaseManifest,
    ReportedState,
    Acknowledgement,
)
EXAMPLES: dict[str, type[Document]] = {
    "batch_classification": BatchRecord,
    "batch_detection": BatchRecord,
    "assignment": Assignment,
    "envelope": Envelope,
    "release_classification": ReleaseManifest,
    "release_detection": ReleaseManifest,
    "reported": ReportedState,
    "acknowledgement": Acknowledgement,
}


def _load(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.__name__)
def test_schemas_are_as_frozen(document: type[Document]) -> None:
    """The JSON schema of every wire document equals the golden one."""
    schema = document.model_json_schema()
    path = GOLDEN / f"{document.__name__}.schema.json"
    if os.environ.get("GLEANER_UPDATE_GOLDEN") == "1":
        path.write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")
    assert json.loads(path.read_text()) == schema


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_survive_a_round_trip(name: str) -> None:
    """A stored document parses and serialises to the same values, and every field the schema knows is in it."""
    raw = (GOLDEN / f"{name}.json").read_bytes()
    document = EXAMPLES[name].from_bytes(raw)
    assert json.loads(document.to_bytes()) == json.loads(raw)
    assert EXAMPLES[name].from_bytes(document.to_bytes()) == document


@pytest.mark.parametrize("name", EXAMPLES)
def test_unknown_fields_are_tolerated_at_every_level(name: str) -> None:
    """A document of a newer version, with unknown fields in each of its parts, reads as the one without them."""
    document = EXAMPLES[name].from_bytes((GOLDEN / f"{name}.json").read_bytes())
    newer = json.dumps(_with_news(document)).encode()
    assert newer.count(b'"news"') >= 1
    assert EXAMPLES[name].from_bytes(newer) == document


def _with_news(value: Any) -> Any:
    if isinstance(value, BaseModel):
        plain = json.loads(value.model_dump_json())
        known = {
            name: _with_news(part) if isinstance(part, BaseModel | list | dict) else plain[name] for name, part in value
        }
        return {**known, "news": {"since": 2}}
    if isinstance(value, list):
        return [_with_news(part) for part in value]
    if isinstance(value, dict):
        return {key: _with_news(part) for key, part in value.items()}
    return value


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_required_field_is_required(name: str) -> None:
    """A document that lacks one of its own required fields is refused as a contract error."""
    for field, info in EXAMPLES[name].model_fields.items():
        if info.is_required():
            lacking = {key: value for key, value in _load(name).items() if key != field}
            with pytest.raises(ContractError, match=field):
                EXAMPLES[name].from_bytes(json.dumps(lacking).encode())


def test_the_examples_show_both_prediction_kinds() -> None:
    """Classification and detection both have a golden batch, told apart by `kind`."""
    for name, kind in (("classification", ClassificationPrediction), ("detection", DetectionPrediction)):
        batch = BatchRecord.model_validate(_load(f"batch_{name}"))
        assert {type(capture.prediction) for capture in batch.captures} == {kind}
        assert all(capture.prediction.embedding for capture in batch.captures)
        assert batch.feedback
    assert any(feedback.box_id for feedback in batch.feedback)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("device_id",), "../cam"),
        (("sequence",), 0),
        (("schema_version",), 2),
        (("created_at",), "2026-03-01T12:00:00"),
        (("captures", 0, "image", "sha256"), "ABC"),
        (("captures", 0, "image", "media_type"), "image/svg+xml"),
        (("captures", 0, "prediction", "kind"), "segmentation"),
        (("captures", 0, "prediction", "probabilities"), [0.9, 0.9]),
        (("captures", 0, "prediction", "probabilities"), [float("nan"), 1.0]),
        (("captures", 0, "prediction", "embedding", "dim"), 2),
        (("captures", 0, "inclusion_probability"), 1.5),
        (("captures", 0, "arms"), []),
        (("counters", "frames_seen"), -1),
    ],
)
def test_wrong_values_are_contract_errors(path: tuple[str | int, ...], wrong: object) -> None:
    """A value outside the contract is refused with its place in the document."""
    document = _load("batch_classification")
    part = document
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = wrong
    with pytest.raises(ContractError):
        BatchRecord.from_bytes(json.dumps(document).encode())
