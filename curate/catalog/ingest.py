"""What of a batch may enter the catalog. Pure: bytes and facts in, a plan out; the flow fetches and applies.

Everything here comes from devices that may be broken, old or stolen: whatever arrives, the plan says what to
admit, what to quarantine and why, and never raises.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from curate.catalog.models import BatchRow, BatchStatus, FeedbackRow, QuarantineRow, Sample
from curate.contracts.capture import Arm, BatchRecord, CaptureRecord
from curate.contracts.feedback import Feedback
from curate.contracts.ids import SAFE_NAME
from curate.contracts.paths import capture_key, parse_inbox_key
from curate.contracts.paths import inbox_key as make_inbox_key
from curate.errors import ContractError

MAX_PIXELS = 50_000_000
CLOCK_UNSET_BEFORE = datetime(2024, 1, 1, tzinfo=UTC)
"""No camera running this took a picture earlier: its clock had not been set."""
CLOCK_TOLERANCE = timedelta(minutes=10)
_LARGEST_INTEGER = 2**53
"""Beyond this JSON readers disagree, and not far beyond it databases give up."""


@dataclass(frozen=True)
class ImageFacts:
    """What an image's bytes turned out to be."""

    sha256: str
    size_bytes: int
    width: int
    height: int
    problem: str | None = None
    """Why it cannot be used; None for a JPEG that decodes."""


@dataclass(frozen=True, eq=False)
class Incoming:
    """One commit record as it lay in the inbox, read once. `record` is None when it cannot be taken."""

    key: str
    raw: bytes
    record: BatchRecord | None
    refusal: tuple[str, str] = ("", "")
    """Reason and detail of a record that cannot be taken."""

    @property
    def image_keys(self) -> tuple[str, ...]:
        """Keys of the images that a plan needs facts of, without repeats; none for a bad record."""
        if self.record is None:
            return ()
        device = self.record.device_id
        return tuple(dict.fromkeys(capture_key(device, c.image.sha256) for c in self.record.captures))


@dataclass(frozen=True)
class AdmissionPlan:
    """What taking one record means. Falsy when there is nothing to do."""

    inbox_key: str
    batch: BatchRow | None = None
    """None when the key does not name a batch; then nothing is acknowledged."""
    samples: tuple[Sample, ...] = ()
    feedback: tuple[FeedbackRow, ...] = ()
    quarantine: tuple[QuarantineRow, ...] = ()

    def __bool__(self) -> bool:
        """Whether applying it can change anything."""
        return self.batch is not None or bool(self.quarantine)

    @property
    def embedding_dims(self) -> dict[str, int]:
        """Length of the embeddings by release, as far as these samples tell."""
        return {
            sample.release_id: len(sample.embedding)
            for sample in self.samples
            if sample.release_id is not None and sample.embedding is not None
        }

    @property
    def is_bad_record(self) -> bool:
        """Whether the record itself belongs in quarantine, rather than some of its captures."""
        return self.batch is None or self.batch.status is BatchStatus.QUARANTINED


def oversized_image(sha256: str, size_bytes: int, problem: str) -> ImageFacts:
    """Facts of a picture that nobody reads, because it is too large to be one."""
    return ImageFacts(sha256, size_bytes, 0, 0, problem)


def inspect_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Read a JPEG to its end. Never raises for bad bytes, and refuses more than `max_pixels` before reading them.

    It is decoded at the least scale, which reads every coefficient but computes few pixels: damage shows all the same.
    """
    digest = hashlib.sha256(data).hexdigest()
    width = height = 0
    problem = None
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            width, height = image.size
            if width * height > max_pixels:
                problem = f"{width} x {height} is more than {max_pixels} pixels"
            else:
                image.draft("L", (1, 1))
                image.load()
    except UnidentifiedImageError:
        problem = "not a JPEG"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        problem = f"does not decode: {exc}"
    return ImageFacts(digest, len(data), width, height, problem)


def read_incoming(inbox_key: str, raw_record: bytes) -> Incoming:
    """Read what lay in the inbox; whatever it is, something comes back."""
    record, refusal = _read_record(inbox_key, raw_record)
    return Incoming(inbox_key, raw_record, record, refusal)


def plan_admission(
    incoming: Incoming,
    images: Mapping[str, ImageFacts],
    *,
    now: datetime,
    embedding_dims: Mapping[str, int] | None = None,
) -> AdmissionPlan:
    """Decide what of one batch enters the catalog.

    `images` holds facts by image key for `image_keys`; a key left out means that nothing lies there.
    `embedding_dims` gives the embedding's length by release; an unlisted release goes by its first capture here.
    """
    record = incoming.record
    if record is None:
        return _refuse_record(incoming, now=now)
    samples, quarantine = _plan_captures(
        incoming.key, record, images, now=now, embedding_dims=dict(embedding_dims or {})
    )
    return AdmissionPlan(
        inbox_key=incoming.key,
        batch=BatchRow(
            device_id=record.device_id,
            boot_id=record.boot_id,
            sequence=record.sequence,
            digest=hashlib.sha256(incoming.raw).hexdigest(),
            status=BatchStatus.INGESTED,
            taken_at=now,
            created_at=record.created_at,
            counters=record.counters,
            captures=len(record.captures),
            feedback=len(record.feedback),
        ),
        samples=tuple(samples),
        feedback=tuple(_unique_feedback(record)),
        quarantine=tuple(quarantine),
    )


def quarantine_row(key: str, device_id: str | None, reason: str, detail: str, at: datetime) -> QuarantineRow:
    """A refusal whose id follows from its content, so that refusing twice leaves one row."""
    name = hashlib.sha256("\0".join((key, reason, detail)).encode(errors="replace")).hexdigest()[:32]
    return QuarantineRow(name, device_id, _plain(key), reason, _plain(detail), at)


def _identity(inbox_key: str) -> tuple[str, str, int] | None:
    """Device, boot and sequence, if the key is exactly the one such a batch has and can be acknowledged."""
    parsed = parse_inbox_key(inbox_key)
    if parsed is None or make_inbox_key(*parsed) != inbox_key or not 1 <= parsed[2] <= _LARGEST_INTEGER:
        return None
    return parsed if all(re.fullmatch(SAFE_NAME, name) for name in parsed[:2]) else None


def _read_record(inbox_key: str, raw_record: bytes) -> tuple[BatchRecord | None, tuple[str, str]]:
    """The record, or why there is none: (reason, detail)."""
    identity = _identity(inbox_key)
    if identity is None:
        return None, ("bad_key", "the key does not name a batch")
    try:
        record = BatchRecord.from_bytes(raw_record)
    except (ContractError, OverflowError) as exc:  # a time so near year 1 or 9999 that UTC has no date for it
        return None, ("bad_schema", str(exc))
    if (record.device_id, record.boot_id, record.sequence) != identity:
        claimed = f"{record.device_id}/{record.boot_id}-{record.sequence}"
        return None, ("key_mismatch", f"the record says it is {claimed}")
    return record, ("", "")


def _refuse_record(incoming: Incoming, *, now: datetime) -> AdmissionPlan:
    key, (reason, detail) = incoming.key, incoming.refusal
    identity = _identity(key)
    if identity is None:
        return AdmissionPlan(key, quarantine=(quarantine_row(key, None, reason, detail, now),))
    device, boot, sequence = identity
    digest = hashlib.sha256(incoming.raw).hexdigest()
    return AdmissionPlan(
        key,
        batch=BatchRow(device, boot, sequence, digest, BatchStatus.QUARANTINED, taken_at=now),
        quarantine=(quarantine_row(key, device, reason, detail, now),),
    )


def _plan_captures(
    inbox_key: str,
    record: BatchRecord,
    images: Mapping[str, ImageFacts],
    *,
    now: datetime,
    embedding_dims: dict[str, int],
) -> tuple[list[Sample], list[QuarantineRow]]:
    samples: dict[str, Sample] = {}
    quarantine = []
    for capture in record.captures:
        embedding = _embedding(capture)
        image = images.get(capture_key(record.device_id, capture.image.sha256))
        refusal = (
            _refuse_duplicate(capture, samples)
            or _refuse_image(capture, image)
            or _refuse_values(capture)
            or _refuse_embedding(capture, embedding, embedding_dims)
        )
        if refusal is None:
            samples[capture.capture_id] = _sample(record, capture, embedding, now)
        else:
            reason, detail = refusal
            quarantine.append(
                quarantine_row(inbox_key, record.device_id, reason, f"{capture.capture_id}: {detail}", now)
            )
    return list(samples.values()), quarantine


def _refuse_duplicate(capture: CaptureRecord, samples: Mapping[str, Sample]) -> tuple[str, str] | None:
    return ("duplicate_capture", "named twice in this batch") if capture.capture_id in samples else None


def _refuse_image(capture: CaptureRecord, image: ImageFacts | None) -> tuple[str, str] | None:
    stated = capture.image
    if image is None:
        return "image_missing", f"nothing lies at {stated.sha256}"
    if image.sha256 != stated.sha256:
        return "image_digest", f"the image's digest is {image.sha256}"
    if image.size_bytes != stated.size_bytes:
        return "image_size", f"{image.size_bytes} bytes, not {stated.size_bytes}"
    if image.problem is not None:
        return "image_undecodable", image.problem
    if (image.width, image.height) != (stated.width, stated.height):
        return "image_shape", f"{image.width} x {image.height}, not {stated.width} x {stated.height}"
    return None


def _refuse_values(capture: CaptureRecord) -> tuple[str, str] | None:
    kept = [outcome for outcome in capture.arms if outcome.kept]
    if not kept:
        return "no_arm", "no arm kept it"
    if capture.arm_probability(Arm.RANDOM) == 0.0:
        return "impossible_probability", "the random arm kept it with probability 0"
    if capture.frame_index > _LARGEST_INTEGER:
        return "out_of_range", "frame_index is too large"
    return None


def _embedding(capture: CaptureRecord) -> NDArray[np.float32] | None:
    wire = capture.prediction.embedding
    return None if wire is None else np.frombuffer(wire.raw(), np.dtype("<f2")).astype(np.float32)


def _refuse_embedding(
    capture: CaptureRecord, embedding: NDArray[np.float32] | None, dims: dict[str, int]
) -> tuple[str, str] | None:
    """Checks against the release's length, and learns it from the first good capture."""
    if embedding is None:
        return None
    if not np.isfinite(embedding).all():
        return "embedding_not_finite", "the embedding holds infinities or NaN"
    expected = dims.setdefault(capture.prediction.release_id, len(embedding))
    if len(embedding) != expected:
        return "embedding_length", f"{len(embedding)} values, not {expected}"
    return None


def _sample(
    record: BatchRecord, capture: CaptureRecord, embedding: NDArray[np.float32] | None, now: datetime
) -> Sample:
    return Sample(
        sample_id=capture.capture_id,
        device_id=record.device_id,
        camera_id=capture.camera_id,
        frame_index=capture.frame_index,
        captured_at=capture.captured_at,
        boot_id=record.boot_id,
        batch_sequence=record.sequence,
        image_key=capture_key(record.device_id, capture.image.sha256),
        image_sha256=capture.image.sha256,
        image_bytes=capture.image.size_bytes,
        width=capture.image.width,
        height=capture.image.height,
        release_id=capture.prediction.release_id,
        prediction=capture.prediction.model_copy(update={"embedding": None}),
        embedding=embedding,
        arms=tuple(dict.fromkeys(outcome.arm.value for outcome in capture.arms if outcome.kept)),
        random_probability=capture.arm_probability(Arm.RANDOM),
        inclusion_probability=capture.inclusion_probability,
        reasons=tuple(capture.reasons),
        ingested_at=now,
        flags=_clock_flags(capture.captured_at, now),
    )


def _clock_flags(captured_at: datetime, now: datetime) -> tuple[str, ...]:
    """A wrong clock is no reason to lose a picture, only to doubt its time."""
    if captured_at < CLOCK_UNSET_BEFORE:
        return ("clock_unset",)
    return ("clock_ahead",) if captured_at > now + CLOCK_TOLERANCE else ()


def _unique_feedback(record: BatchRecord) -> list[FeedbackRow]:
    return list({item.feedback_id: _feedback_row(record.device_id, item) for item in record.feedback}.values())


def _feedback_row(device_id: str, item: Feedback) -> FeedbackRow:
    return FeedbackRow(
        feedback_id=item.feedback_id,
        device_id=device_id,
        prediction_id=item.prediction_id,
        verdict=item.verdict.value,
        reason=None if item.reason is None else item.reason.value,
        label=None if item.label is None else _plain(item.label),
        user=None if item.user is None else _plain(item.user),
        received_at=item.received_at,
        frame_available=item.frame_available,
        quarantined=item.quarantined,
        box_id=item.box_id,
    )


def _plain(text: str) -> str:
    """Text every database takes: PostgreSQL refuses NUL, encoders refuse lone surrogates."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
