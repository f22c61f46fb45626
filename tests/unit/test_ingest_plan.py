"""What the ingest plan admits and what it refuses: pure, whatever arrives."""

from __future__ import annotations

import io
import json
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from curate.catalog.ingest import AdmissionPlan, ImageFacts, inspect_image, plan_admission, read_incoming
from curate.catalog.models import BatchStatus
from curate.contracts.capture import Arm, ArmOutcome, BatchRecord, CaptureRecord, ImageRef
from curate.contracts.embedding import Embedding
from curate.contracts.ids import batch_id
from tests.catalog_builders import (
    HEIGHT,
    NOW,
    WIDTH,
    batch,
    capture,
    detection,
    embedding,
    facts_of,
    feedback,
    jpeg,
    key_of,
    plan,
)


def _with_embedding(raw: bytes, number: int = 1) -> CaptureRecord:
    prediction = capture(number).prediction.model_copy(update={"embedding": Embedding.from_raw(raw)})
    return capture(number, prediction=prediction)


def _refusals(plan: AdmissionPlan) -> list[str]:
    return [row.reason for row in plan.quarantine]


def test_a_good_batch_is_admitted_whole() -> None:
    """Captures become samples with the device's own numbers, verdicts become feedback, nothing is refused."""
    record = batch(7, [capture(1), capture(2)], feedback=[feedback(1, "p-c-1"), feedback(2, "gone", label="shoe")])
    admitted = plan(record)
    assert admitted.quarantine == ()
    assert admitted.batch is not None
    assert admitted.batch.status is BatchStatus.INGESTED
    assert (admitted.batch.captures, admitted.batch.feedback) == (2, 2)
    assert admitted.batch.batch_id == "cam-1/boot1-00000007"
    assert [s.sample_id for s in admitted.samples] == ["c-1", "c-2"]
    odd, even = admitted.samples
    assert (odd.arms, odd.random_probability) == (("uncertain",), None)
    assert (even.arms, even.random_probability) == (("random", "uncertain"), 0.02)
    assert odd.batch_sequence == 7
    assert odd.flags == ()
    assert odd.embedding is not None
    np.testing.assert_array_equal(odd.embedding.astype("<f2"), np.frombuffer(embedding(1).raw(), "<f2"))
    assert [(f.feedback_id, f.device_id, f.label) for f in admitted.feedback] == [
        ("f-1", "cam-1", None),
        ("f-2", "cam-1", "shoe"),
    ]


def test_detection_captures_are_admitted() -> None:
    """The second prediction kind goes the same way."""
    admitted = plan(batch(captures=[capture(1, prediction=detection(1))]))
    assert admitted.samples[0].prediction is not None
    assert admitted.samples[0].prediction.kind == "detection"


def test_image_keys_names_each_image_once() -> None:
    """The flow fetches each picture once, and none for a record it cannot read."""
    record = batch(captures=[capture(1), capture(2), capture(1, "again")])
    assert read_incoming(key_of(record), record.to_bytes()).image_keys == tuple(facts_of(record))
    assert len(facts_of(record)) == 2
    assert read_incoming(key_of(record), b"not json").image_keys == ()


@pytest.mark.parametrize(
    ("key", "raw", "reason"),
    [
        ("inbox/cam-1/boot1-00000001.json", b"\xff not json", "bad_schema"),
        ("inbox/cam-1/boot1-00000001.json", b"[" * 100_000, "bad_schema"),
        ("inbox/cam-1/boot1-00000001.json", b"{}", "bad_schema"),
        ("inbox/cam-1/boot1-00000002.json", None, "key_mismatch"),
        ("inbox/cam-2/boot1-00000001.json", None, "key_mismatch"),
        ("inbox/cam-1/boot2-00000001.json", None, "key_mismatch"),
    ],
)
def test_a_bad_record_is_quarantined_and_acknowledged(key: str, raw: bytes | None, reason: str) -> None:
    """A record nobody can use still counts as taken, under the identity its key gives, and brings nothing in."""
    refused = plan_admission(
        read_incoming(key, batch(captures=[capture(1)]).to_bytes() if raw is None else raw), {}, now=NOW
    )
    assert _refusals(refused) == [reason]
    assert refused.is_bad_record
    assert refused.samples == ()
    assert refused.batch is not None
    assert refused.batch.status is BatchStatus.QUARANTINED
    assert key == f"inbox/{refused.batch.batch_id}.json"


@pytest.mark.parametrize(
    "key",
    [
        "inbox/cam-1/boot1-00000000.json",
        "inbox/cam-1/boot1-1.json",
        "inbox/-/boot1-00000001.json",
        "inbox/cam-1/_-00000001.json",
        f"inbox/cam-1/boot1-{'9' * 40}.json",
        "inbox/cam-1/notes.txt",
        "elsewhere",
        "",
    ],
)
def test_a_key_that_names_no_batch_is_quarantined_without_acknowledgement(key: str) -> None:
    """Such a key can neither be acknowledged nor block the batches that can."""
    refused = plan_admission(read_incoming(key, batch().to_bytes()), {}, now=NOW)
    assert refused.batch is None
    assert refused.is_bad_record
    assert _refusals(refused) == ["bad_key"]


def _other_image(**changes: object) -> ImageFacts:
    facts = inspect_image(jpeg(1))
    return ImageFacts(**{**vars(facts), **changes})


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (None, "image_missing"),
        (_other_image(sha256="0" * 64), "image_digest"),
        (_other_image(size_bytes=3), "image_size"),
        (_other_image(problem="does not decode"), "image_undecodable"),
        (_other_image(width=WIDTH + 1), "image_shape"),
        (_other_image(width=HEIGHT, height=WIDTH), "image_shape"),
    ],
)
def test_a_bad_image_keeps_its_capture_out_and_no_other(image: ImageFacts | None, reason: str) -> None:
    """Only the capture whose picture is not what it claims stays outside, with the reason."""
    record = batch(captures=[capture(1), capture(2)])
    images = facts_of(record)
    bad = next(iter(images))
    if image is None:
        del images[bad]
    else:
        images[bad] = image
    mixed = plan_admission(read_incoming(key_of(record), record.to_bytes()), images, now=NOW)
    assert _refusals(mixed) == [reason]
    assert "c-1" in mixed.quarantine[0].detail
    assert [s.sample_id for s in mixed.samples] == ["c-2"]
    assert not mixed.is_bad_record


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (_with_embedding(np.array([1, np.nan], "<f2").tobytes()), "embedding_not_finite"),
        (_with_embedding(np.array([1, np.inf], "<f2").tobytes()), "embedding_not_finite"),
        (_with_embedding(np.zeros(9, "<f2").tobytes()), "embedding_length"),
        (capture(1, arms=[ArmOutcome(arm=Arm.RANDOM, probability=0.5, kept=False)]), "no_arm"),
        (capture(1, arms=[ArmOutcome(arm=Arm.RANDOM, probability=0.0, kept=True)]), "impossible_probability"),
        (capture(1, frame_index=2**60, image=capture(1).image), "out_of_range"),
        (capture(0), "duplicate_capture"),
    ],
)
def test_impossible_values_keep_a_capture_out(bad: CaptureRecord, reason: str) -> None:
    """Values that would poison estimates or embeddings are refused; the good capture before them stays."""
    record = batch(captures=[capture(0), bad])
    images = facts_of(batch(captures=[capture(0), capture(1)]))
    mixed = plan_admission(read_incoming(key_of(record), record.to_bytes()), images, now=NOW)
    assert _refusals(mixed) == [reason]
    assert [s.sample_id for s in mixed.samples] == ["c-0"]


def test_a_known_release_fixes_the_embedding_length() -> None:
    """What the catalog knows of a release outweighs the first capture of a batch."""
    record = batch(captures=[capture(1), capture(2)])
    refused = plan_admission(
        read_incoming(key_of(record), record.to_bytes()),
        facts_of(record),
        now=NOW,
        embedding_dims={"r1": 16, "other": 8},
    )
    assert _refusals(refused) == ["embedding_length", "embedding_length"]


def test_a_wrong_clock_is_flagged_not_refused() -> None:
    """A camera that boots in 1970 or runs ahead loses no picture."""
    times = [NOW - timedelta(days=365 * 56), NOW + timedelta(days=2), NOW + timedelta(minutes=5)]
    record = batch(captures=[capture(number, captured_at=at) for number, at in enumerate(times)])
    assert [s.flags for s in plan(record).samples] == [("clock_unset",), ("clock_ahead",), ()]


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_at_the_end_of_the_calendar_is_a_bad_record(at: str) -> None:
    """A time that no UTC date can hold ends in quarantine, not in a crash that comes back with every listing."""
    raw = json.loads(batch().to_bytes()) | {"created_at": at}
    assert _refusals(plan_admission(read_incoming(key_of(batch()), json.dumps(raw).encode()), {}, now=NOW)) == [
        "bad_schema"
    ]


def test_texts_are_made_safe_for_every_database() -> None:
    """NUL, which PostgreSQL refuses, is replaced in what people typed."""
    admitted = plan(batch(feedback=[feedback(1, "p", label="a\0b", user="\0")]))
    assert admitted.feedback[0].label == "a\N{REPLACEMENT CHARACTER}b"
    assert admitted.feedback[0].user == "\N{REPLACEMENT CHARACTER}"


def test_unknown_fields_change_nothing() -> None:
    """A newer agent's record with fields we do not know is admitted all the same."""
    record = batch(captures=[capture(1)])
    document = json.loads(record.to_bytes())
    document["news"] = document["captures"][0]["news"] = {"deep": [1, 2]}
    admitted = plan_admission(read_incoming(key_of(record), json.dumps(document).encode()), facts_of(record), now=NOW)
    assert len(admitted.samples) == 1


def test_planning_twice_gives_equal_refusals() -> None:
    """The same refusal bears the same id, so that quarantining twice leaves one row."""
    record = batch(captures=[capture(1)])
    first, second = (
        plan_admission(read_incoming(key_of(record), record.to_bytes()), {}, now=NOW + timedelta(hours=hours))
        for hours in range(2)
    )
    assert [q.quarantine_id for q in first.quarantine] == [q.quarantine_id for q in second.quarantine]


@given(
    raw=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(list(BatchRecord.model_fields)), inner),
    ).map(lambda value: json.dumps(value).encode()),
    key=st.text(max_size=40) | st.just("inbox/cam-1/boot1-00000001.json"),
)
def test_whatever_arrives_there_is_a_plan(raw: bytes, key: str) -> None:
    """Arbitrary bytes under arbitrary keys never raise, and always leave a trace."""
    planned = plan_admission(read_incoming(key, raw), {}, now=NOW)
    assert planned
    assert planned.quarantine or planned.batch is not None


@given(mask=st.lists(st.booleans(), min_size=6, max_size=6))
def test_every_capture_is_admitted_or_refused_once(mask: list[bool]) -> None:
    """Nothing gets lost between the two: samples and refusals add up to the captures."""
    record = batch(captures=[capture(number) for number in range(6)])
    images = {key: facts for (key, facts), there in zip(facts_of(record).items(), mask, strict=True) if there}
    planned = plan_admission(read_incoming(key_of(record), record.to_bytes()), images, now=NOW)
    assert len(planned.samples) == sum(mask)
    assert len(planned.samples) + len(planned.quarantine) == 6


def test_an_empty_plan_is_falsy() -> None:
    """A plan that changes nothing says so."""
    assert not AdmissionPlan("inbox/x")
    assert plan(batch())


def test_inspecting_a_good_image() -> None:
    """A JPEG gives digest, size and shape."""
    facts = inspect_image(jpeg(3))
    assert (facts.width, facts.height, facts.problem) == (WIDTH, HEIGHT, None)
    assert facts.size_bytes == len(jpeg(3))
    reference = ImageRef(sha256=facts.sha256, size_bytes=facts.size_bytes, width=WIDTH, height=HEIGHT)
    assert reference == capture(3).image


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff\xe0", jpeg(1)[:-200], _encoded("PNG"), _encoded("GIF"), jpeg(1)[:60] + b"\0" * 400]
)
def test_inspecting_bad_bytes_gives_a_problem(data: bytes) -> None:
    """Empty, cut, damaged and foreign files have a problem and never raise."""
    assert inspect_image(data).problem is not None


def test_a_decompression_bomb_is_refused_before_decoding() -> None:
    """A header that promises more pixels than allowed is refused, also beyond what Pillow itself warns of."""
    assert "pixels" in str(inspect_image(jpeg(1), max_pixels=WIDTH * HEIGHT - 1).problem)
    data = bytearray(jpeg(1))
    start = data.index(b"\xff\xc0") + 5
    for height, width in ((10_000, 10_000), (60_000, 60_000)):
        data[start : start + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        assert inspect_image(bytes(data)).problem is not None


@given(data=st.binary(max_size=300))
def test_inspecting_arbitrary_bytes_never_raises(data: bytes) -> None:
    """Bytes after a JPEG's first marker are anything."""
    assert inspect_image(b"\xff\xd8\xff" + data).size_bytes == len(data) + 3


def test_batch_row_bears_the_wire_name() -> None:
    """The catalog's name of a batch is the contract's."""
    planned = plan(batch(3))
    assert planned.batch is not None
    assert planned.batch.batch_id == batch_id("cam-1", "boot1", 3)  # type: ignore[arg-type]
