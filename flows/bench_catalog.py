"""How fast the catalog takes what cameras sent and gives a million embeddings back: self-made captures, real ingest.

The pictures lie in a bucket (a folder) before the clock starts, as those of devices do, and the batches are as large as
an agent makes them.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import SecretStr

from curate.annotation.backend import AnnotationBackend
from curate.annotation.settings import LabelStudioSettings
from curate.catalog.ingest import inspect_image
from curate.catalog.models import IMPORTED, Sample
from curate.catalog.store import Catalog
from curate.contracts.capture import Arm, ArmOutcome, BatchRecord, CaptureRecord, ImageRef
from curate.contracts.embedding import Embedding
from curate.contracts.paths import capture_key, inbox_key
from curate.contracts.prediction import ClassificationPrediction
from curate.contracts.telemetry import DeviceCounters
from curate.errors import ConfigError
from curate.settings import Settings
from curate.storage.local import LocalBlobStore
from curate.storage.s3_settings import S3Settings
from flows._wiring import Services
from flows.bench_selection import StageTime, peak_memory_bytes
from flows.ingest_captures import admit_inbox

RELEASE = "r-bench"
CLASSES = 10
BATCH_CAPTURES = 32
"""What an agent puts into one batch by default."""
CAPTURES_PER_DEVICE = 2_000
PICTURES = 16
"""Distinct pictures; a comment makes every file its own."""
ADD_ROWS = 8192
START = datetime(2026, 1, 1, tzinfo=UTC)

Progress = Callable[[str, int, int], None]
"""Told the stage, and how many of how many are done."""


@dataclass(frozen=True)
class CatalogBench:
    """What admitting `records` captures and reading `embeddings` of them back cost.

    `picture` is the time that looking at one of the pictures takes by itself, in seconds; `peak_bytes` the largest
    resident set of the whole process.
    """

    database: str
    records: int
    admitted: int
    width: int
    height: int
    picture_bytes: int
    picture: StageTime
    admission: StageTime
    embeddings: int
    dim: int
    reading: StageTime
    peak_bytes: int

    @property
    def records_per_s(self) -> float:
        """Captures admitted a second by the clock on the wall."""
        return self.admitted / self.admission.wall_s

    @property
    def records_per_cpu_s(self) -> float:
        """Captures admitted a second of the processor, over all threads."""
        return self.admitted / self.admission.cpu_s


def run_catalog_bench(
    folder: Path,
    records: int,
    embeddings: int,
    dim: int,
    *,
    width: int,
    height: int,
    catalog_url: str | None,
    seed: int,
    progress: Progress,
) -> CatalogBench:
    """Fill an empty catalog through the ingest, then by import up to `embeddings`, and read those back.

    Raises:
        ConfigError: the catalog holds something already.
        CatalogError: the catalog cannot be reached.
    """
    url = catalog_url or f"sqlite:///{folder / 'catalog.db'}"
    with Catalog.open(url) as catalog:
        _require_empty(catalog)
        wired = _wire(folder, url, catalog)
        inbox = InboxWriter(folder / "bucket", dim, pictures(width, height, seed), seed)
        inbox.write(records, progress)
        with stage_time() as admission:
            counts = admit_inbox(wired, lambda done, total: progress("admit batches", done, total))
        missing = max(0, embeddings - records)
        for number, some in enumerate(_blocks(missing, ADD_ROWS)):
            progress("fill up by import", number * ADD_ROWS, missing)
            catalog.add_samples(inbox.samples(some))
        progress("read embeddings", 0, 0)
        drop_cached(folder / "catalog.db")
        with stage_time() as reading:
            columns = catalog.sample_columns(RELEASE, folder=folder)
        return CatalogBench(
            database=url.partition(":")[0],
            records=records,
            admitted=counts.get("samples", 0),
            width=width,
            height=height,
            picture_bytes=len(inbox.pictures[0]),
            picture=_time_picture(inbox.pictures),
            admission=admission[0],
            embeddings=len(columns),
            dim=columns.embeddings.shape[1],
            reading=reading[0],
            peak_bytes=peak_memory_bytes(),
        )


def _blocks(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


@contextmanager
def stage_time() -> Iterator[list[StageTime]]:
    """Time the block; the list holds the time once it has ended."""
    found: list[StageTime] = []
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    yield found
    found.append(StageTime(time.perf_counter() - wall_s, time.process_time() - cpu_s))


def drop_cached(path: Path) -> None:
    """Make the next reading of a file come from the disk, as far as the system lets us."""
    if path.exists() and hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pictures(width: int, height: int, seed: int) -> list[bytes]:
    """Return JPEGs as cameras make them: smooth, with some noise."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(PICTURES):
        coarse = rng.integers(0, 255, (max(2, height // 32), max(2, width // 32), 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue())
    return made


class InboxWriter:
    """Makes captures by their number: as devices upload them, or as samples to import."""

    def __init__(self, bucket: Path, dim: int, pictures: list[bytes], seed: int) -> None:
        self.pictures = pictures
        self._bucket = bucket
        self._dim = dim
        self._rng = np.random.default_rng(seed)
        with Image.open(io.BytesIO(pictures[0])) as first:
            self._size = first.size

    def write(self, records: int, progress: Progress) -> None:
        """Put pictures and batch records where devices would have put them."""
        for number, mine in enumerate(_blocks(records, CAPTURES_PER_DEVICE)):
            for sequence, some in enumerate(_blocks(len(mine), BATCH_CAPTURES), start=1):
                self._write_batch(f"cam-{number:04d}", sequence, mine[some.start : some.stop])
            progress("write pictures and batches", mine.stop, records)

    def samples(self, numbers: range) -> list[Sample]:
        """Return samples as an import brings them."""
        return [self._sample(number, values) for number, values in zip(numbers, self._draw(len(numbers)), strict=True)]

    def _write_batch(self, device: str, sequence: int, numbers: range) -> None:
        captures = []
        for number, values in zip(numbers, self._draw(len(numbers)), strict=True):
            picture = _signed(self.pictures[number % PICTURES], number)
            digest = hashlib.sha256(picture).hexdigest()
            self._put(capture_key(device, digest), picture)
            captures.append(
                self._capture(
                    number,
                    values,
                    ImageRef(sha256=digest, size_bytes=len(picture), width=self._size[0], height=self._size[1]),
                )
            )
        record = BatchRecord(
            device_id=device,
            boot_id="boot",
            sequence=sequence,
            created_at=_taken_at(numbers[-1]),
            captures=captures,
            counters=DeviceCounters(frames_seen=100 * sequence, frames_inferred=100 * sequence),
        )
        self._put(inbox_key(device, "boot", sequence), record.to_bytes())

    def _put(self, key: str, data: bytes) -> None:
        # Not by the store: its answer waits for the disk, and here nobody will miss a file.
        path = self._bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def _draw(self, count: int) -> Iterator[tuple[list[float], NDArray[np.float32]]]:
        """Yield a distribution and an embedding for each of so many captures."""
        distributions = self._rng.dirichlet(np.ones(CLASSES), count).round(6)
        embeddings = self._rng.standard_normal((count, self._dim), np.float32)
        yield from zip(distributions.tolist(), embeddings, strict=True)

    def _capture(self, number: int, values: tuple[list[float], NDArray[np.float32]], image: ImageRef) -> CaptureRecord:
        probabilities, embedding = values
        return CaptureRecord(
            capture_id=_name(number),
            camera_id="lens",
            frame_index=number,
            captured_at=_taken_at(number),
            boot_id="boot",
            monotonic_s=float(number),
            image=image,
            prediction=_predict(number, probabilities, Embedding.from_raw(embedding.astype("<f2").tobytes())),
            arms=[
                ArmOutcome(arm=Arm.RANDOM, probability=0.02, kept=number % 4 == 0),
                ArmOutcome(arm=Arm.UNCERTAIN, probability=1.0, kept=True),
                ArmOutcome(arm=Arm.DISMISSED, probability=0.0, kept=False),
            ],
            inclusion_probability=1.0,
            reasons=["margin 0.50 above 0.40"],
        )

    def _sample(self, number: int, values: tuple[list[float], NDArray[np.float32]]) -> Sample:
        probabilities, embedding = values
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        return Sample(
            sample_id=f"imported-{_name(number)}",
            device_id=IMPORTED,
            camera_id=f"lens-{number // CAPTURES_PER_DEVICE:04d}",
            frame_index=number,
            captured_at=_taken_at(number),
            boot_id="boot",
            batch_sequence=number // BATCH_CAPTURES + 1,
            image_key=capture_key(IMPORTED, digest),
            image_sha256=digest,
            image_bytes=len(self.pictures[0]),
            width=self._size[0],
            height=self._size[1],
            release_id=RELEASE,
            prediction=_predict(number, probabilities, None),
            embedding=embedding,
            arms=("uncertain",),
            random_probability=None,
            inclusion_probability=1.0,
            reasons=("margin 0.50 above 0.40",),
            ingested_at=START,
        )


def _name(number: int) -> str:
    """An id as devices make them: without order."""
    return hashlib.sha256(number.to_bytes(8, "big")).hexdigest()[:32]


def _taken_at(number: int) -> datetime:
    return START + timedelta(seconds=0.5 * number)


def _predict(number: int, probabilities: list[float], embedding: Embedding | None) -> ClassificationPrediction:
    first, second = sorted(probabilities, reverse=True)[:2]
    return ClassificationPrediction(
        prediction_id=f"p-{number}",
        release_id=RELEASE,
        probabilities=probabilities,
        scores={"margin": 1.0 - first + second, "entropy": 0.5},
        embedding=embedding,
    )


def _signed(picture: bytes, number: int) -> bytes:
    """The same picture with a comment, which gives it a digest of its own."""
    comment = number.to_bytes(8, "big")
    return b"".join((picture[:2], b"\xff\xfe", (len(comment) + 2).to_bytes(2, "big"), comment, picture[2:]))


def _time_picture(made: list[bytes]) -> StageTime:
    """Return what looking at one picture takes."""
    with stage_time() as found:
        for picture in made:
            inspect_image(picture)
    return StageTime(found[0].wall_s / len(made), found[0].cpu_s / len(made))


def _require_empty(catalog: Catalog) -> None:
    if catalog.sample_counts():
        raise ConfigError("the catalog holds samples already", hint="give the bench a database of its own")


def _wire(folder: Path, catalog_url: str, catalog: Catalog) -> Services:
    nobody = LabelStudioSettings(url="http://127.0.0.1:9", token=SecretStr("0" * 40))
    settings = Settings(
        catalog_url=catalog_url,
        cache_dir=folder / "cache",
        key_dir=folder / "keys",
        bucket=S3Settings(bucket="bench"),
        label_studio=nobody,
    )

    def open_annotation() -> AnnotationBackend:
        raise ConfigError("a bench asks nobody")

    return Services(settings, LocalBlobStore(folder / "bucket"), catalog, open_annotation)
