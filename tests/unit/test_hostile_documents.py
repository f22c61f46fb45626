"""Documents that nobody honest would send: refused in words, whoever reads them (P2)."""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from securesystemslib.signer import Key

from curate.contracts.document import Document
from curate.contracts.feedback import Feedback
from curate.errors import ContractError, TrustError
from edge_agent.capture.feedback_intake import FeedbackRequest
from edge_agent.models.repository import SignedRepository
from edge_agent.models.trust import TrustFloor, verify_assignment
from tests.contract.test_wire_schemas import EXAMPLES, GOLDEN
from tests.fakes.memory import MIB, peak_memory
from tests.fakes.mutations import damage_bytes, damage_json, monstrous_json
from tests.fakes.nightly import Tell, cases
from tests.fakes.releases import Publisher

DOCUMENTS = cases(thin=10_000, full=200_000)
MAX_BYTES = 1024 * 1024
ENVELOPES = cases(thin=1500, full=20_000)


def hostile(raw: bytes, rng: random.Random) -> bytes:
    """Damage a good document one way or another; as large as the largest that a reader takes."""
    choice = rng.random()
    if choice < 0.02:
        return monstrous_json(rng)[:MAX_BYTES]
    return (damage_json(raw, rng) if choice < 0.7 else damage_bytes(raw, rng))[:MAX_BYTES]


def test_no_document_brings_its_reader_down(tell: Tell) -> None:
    """Thousands of damaged documents of every kind are read, or refused as a contract error, in bounded memory; what is
    read says the same after a round trip."""
    rng = random.Random(2026)
    goldens = [(kind, (GOLDEN / f"{name}.json").read_bytes()) for name, kind in EXAMPLES.items()]
    outcomes: Counter[str] = Counter()
    with peak_memory() as peak:
        for _ in range(DOCUMENTS):
            kind, golden = rng.choice(goldens)
            outcomes[read(kind, hostile(golden, rng))] += 1
    tell(f"documents: {dict(outcomes)}, memory grew by {peak.grown_bytes / MIB:.0f} MiB at its peak")
    assert set(outcomes) == {"refused", "read"}
    assert outcomes["refused"] > DOCUMENTS / 2
    assert outcomes["read"] > DOCUMENTS / 100
    assert peak.grown_bytes < 128 * MIB


def read(kind: type[Document], raw: bytes) -> str:
    """Read it as a device or the cloud would."""
    try:
        document = kind.from_bytes(raw)
    except ContractError as exc:
        return "refused" if len(str(exc)) < 600 else "refused by repeating it"
    except BaseException as exc:
        exc.add_note(f"{kind.__name__} {raw[:500]!r}")
        raise
    assert kind.from_bytes(document.to_bytes()) == document, raw[:500]
    return "read"


def test_no_envelope_brings_the_updater_down_or_is_believed(tmp_path: Path, tell: Tell) -> None:
    """A damaged assignment is refused as a matter of trust, before its payload is parsed; only the undamaged one, with
    whatever was added outside what is signed, is believed."""
    publisher = Publisher(tmp_path)
    publisher.publish("r-1")
    publisher.assign("r-1")
    raw = publisher.store.get("twin/cam-1/desired.json")
    keys = trusted_keys(publisher)
    assignment = verify_assignment(raw, keys, "cam-1", TrustFloor()).assignment
    rng = random.Random(7)
    outcomes: Counter[str] = Counter()
    for _ in range(ENVELOPES):
        damaged = hostile(raw, rng) if rng.random() < 0.7 else with_damaged_payload(raw, rng)
        try:
            believed = verify_assignment(damaged, keys, "cam-1", TrustFloor()).assignment
        except TrustError:
            outcomes["refused"] += 1
        else:
            outcomes["believed"] += 1
            assert believed == assignment, damaged[:2000]
    tell(f"envelopes: {dict(outcomes)}")
    assert outcomes["refused"] > ENVELOPES * 0.8


def trusted_keys(publisher: Publisher) -> dict[str, Key]:
    """The keys that the trusted root names for assignments."""
    repository = SignedRepository(publisher.store, publisher.folder / "tuf", publisher.root)
    (publisher.folder / "tuf").mkdir()
    repository.refresh()
    return dict(repository.load_trusted_root().assignment_keys)


def with_damaged_payload(raw: bytes, rng: random.Random) -> bytes:
    """Damage what is signed, and leave the envelope around it whole."""
    envelope = json.loads(raw)
    payload = base64.b64decode(envelope["payload"])
    damaged = damage_json(payload, rng) if rng.random() < 0.5 else damage_bytes(payload, rng)
    return json.dumps({**envelope, "payload": base64.b64encode(damaged).decode()}).encode()


@pytest.mark.parametrize("kind", [Feedback, FeedbackRequest])
def test_no_verdict_brings_the_intake_down(kind: type[BaseModel]) -> None:
    """Damaged verdicts raise nothing but the parser's own refusal."""
    verdict = {
        "feedback_id": "f-1",
        "prediction_id": "p-1",
        "verdict": "corrected",
        "label": "lamp",
        "box": {"x_min": 1.0, "y_min": 1.0, "x_max": 2.0, "y_max": 2.0},
        "received_at": "2026-01-01T00:00:00Z",
        "frame_available": True,
    }
    rng = random.Random(8)
    refused = 0
    for _ in range(cases(thin=1000, full=20_000)):
        raw = hostile(json.dumps(verdict).encode(), rng)
        try:
            kind.model_validate_json(raw)
        except ValidationError:
            refused += 1
    assert refused > 300
