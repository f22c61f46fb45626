"""What a run of the demo leaves behind, made in a second: a real catalog, a bucket in a folder, journals, heartbeats.

Devices, people and models are played: answers are right with a given chance, everything else goes the product's way.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from curate.annotation.models import AnnotationTask, BackendAnnotation, CollectedAnnotations, SentTask
from curate.annotation.settings import LabelStudioSettings
from curate.catalog.images import encode_jpeg
from curate.catalog.ingest import inspect_image, plan_admission, read_incoming
from curate.catalog.labels import load_label_spec
from curate.catalog.models import (
    IMPORTED,
    AnnotationRow,
    ModelRow,
    ModelStatus,
    RoundPhase,
    Sample,
    SampleStatus,
    SelectedRow,
    SelectionRole,
)
from curate.catalog.splits import LabelledSample, SplitPolicy, assign_groups, plan_splits
from curate.catalog.store import Catalog
from curate.contracts.capture import Arm, ArmOutcome, BatchRecord, CaptureRecord, ImageRef
from curate.contracts.feedback import Feedback, FeedbackReason, Verdict
from curate.contracts.paths import capture_key, inbox_key, reported_key
from curate.contracts.prediction import ClassificationPrediction
from curate.contracts.telemetry import DeviceCounters, ReportedState, UpdateEvent
from curate.settings import Settings
from curate.storage.local import LocalBlobStore
from curate.storage.s3_settings import S3Settings
from flows._wiring import Services
from flows.sandbox.fashion_mnist import FashionMnist
from flows.sandbox.heldout import HeldOutScore
from flows.sandbox.journal import Sighting, note
from flows.sandbox.report import DemoFacts
from flows.sandbox.script import DemoScript
from flows.sandbox.world import CameraWorld, seed_samples
from flows.sandbox.world_schedule import WorldConfig
from flows.sandbox.worlds.fashion import FashionWorld

OPENED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LABELS_FILE = Path(__file__).parents[1] / "configs" / "labels.yaml"
RELEASES = ("r0000-aaaaaa", "r0001-bbbbbb", "r0002-cccccc")
DAY, DUSK = (0.72, 0.78, 0.81), (0.45, 0.48, 0.70)


def placeholder_garments(reserved: int) -> FashionMnist:
    """Grey squares, one level a class: enough for pictures that only tests look at."""
    labels = np.tile(np.arange(10, dtype=np.uint8), 4 + reserved // 10)
    images = np.zeros((len(labels), 28, 28), np.uint8)
    images[:, 4:24, 4:24] = (60 + 18 * labels)[:, None, None]
    return FashionMnist(train_images=images, train_labels=labels, test_images=images, test_labels=labels)


@dataclass
class MemoryBackend:
    """An annotation backend that holds its tasks in a list."""

    tasks: list[SentTask] = field(default_factory=list)
    answers: list[BackendAnnotation] = field(default_factory=list)

    def ensure_project(self) -> str:
        return "memory:"

    def find_tasks(self, sample_ids: Sequence[str]) -> list[SentTask]:
        return [task for task in self.tasks if task.sample_id in set(sample_ids)]

    def send_tasks(self, tasks: Sequence[AnnotationTask]) -> list[SentTask]:
        sent = [SentTask(task.sample_id, str(len(self.tasks) + n)) for n, task in enumerate(tasks, start=1)]
        self.tasks += sent
        return sent

    def delete_tasks(self, backend_task_ids: Sequence[str]) -> None:
        self.tasks = [task for task in self.tasks if task.backend_task_id not in backend_task_ids]

    def collect(self, since: datetime | None) -> CollectedAnnotations:
        return CollectedAnnotations(tuple(self.answers), since or OPENED)

    def count_tasks(self) -> int:
        return len(self.tasks)


class Leftovers:
    """Plays a demo of two rounds under `root`; `window_frames` is the length of each of its three windows."""

    def __init__(self, root: Path, data: FashionMnist, world: WorldConfig, *, window_frames: int, fps: float) -> None:
        self.root, self.world, self.fps, self.window_frames = root, world, fps, window_frames
        self.backend = MemoryBackend()
        self.store = LocalBlobStore(root / "bucket")
        self.catalog = Catalog.open(f"sqlite:///{root / 'catalog.db'}")
        self.drift_frame = window_frames + window_frames // 2
        self.random = np.random.default_rng(7)
        self.names = load_label_spec(LABELS_FILE).class_names
        self._data = data
        self._dataset: Any = None
        self._play()

    def at(self, frame: float) -> datetime:
        return OPENED + timedelta(seconds=frame / self.fps)

    def facts(self) -> DemoFacts:
        return DemoFacts(
            root=self.root,
            wired=Services(
                settings=Settings(
                    bucket=S3Settings(bucket="gleaner"),
                    label_studio=LabelStudioSettings(url="http://127.0.0.1:1", token="unused"),
                    labels_file=LABELS_FILE,
                    cache_dir=self.root / "cache",
                ),
                store=self.store,
                catalog=self.catalog,
                open_annotation=lambda: self.backend,
            ),
            script=DemoScript(seed=0),
            world=FashionWorld(DemoScript(seed=0), self._data, self.root / "cache", self.world),
            started_s=time.monotonic() - 412.3,
            events=self.events(),
            prefect_runs=Counter({"completed": 31, "crashed": 1}),
        )

    def events(self) -> list[dict[str, Any]]:
        window = self.window_frames
        rows: list[tuple[float, str, dict[str, Any]]] = [
            (-40 * self.fps, "demo_started", {"seed": 0}),
            (-12 * self.fps, "stack_ready", {}),
            (0, "field_open", {}),
            (window * 0.5, "link_down", {"camera": "cam-2"}),
            (window * 0.7, "killed", {"name": "worker"}),
            (window * 0.72, "restarted", {"name": "worker"}),
            (window - 1, "round_opened", {"number": 1}),
            (window, "round_closed", {"number": 1, "release": RELEASES[1], "gate": {"reasons": ["better by 6"]}}),
            (window * 1.4, "drift", {"camera": self.world.drift_camera, "frame": self.drift_frame}),
            (window * 1.5, "link_up", {"camera": "cam-2"}),
            (window * 2, "round_closed", {"number": 2, "release": RELEASES[2], "gate": {"reasons": []}}),
            (window * 2.1, "all_updated", {"release": RELEASES[2]}),
            (window * 3, "world_ended", {}),
        ]
        return [{"at": self.at(frame).isoformat(), "kind": kind, **facts} for frame, kind, facts in rows]

    def scores(self) -> tuple[dict[str, HeldOutScore], dict[int, HeldOutScore]]:
        def accuracy(number: int, less: float = 0.0) -> HeldOutScore:
            days = {f"{camera.camera_id}/day": DAY[number] - less for camera in self.world.cameras}
            return HeldOutScore({**days, f"{self.world.drift_camera}/dusk": DUSK[number] - less})

        return {f"m{n}": accuracy(n) for n in range(3)}, {n: accuracy(n, 0.02 * n) for n in range(3)}

    def _play(self) -> None:
        self._round_zero()
        for number in (1, 2, 3):
            for camera in self.world.cameras:
                self._watch(camera.camera_id, number)
            if number < 3:
                self._turn(number)
        self.catalog.join_feedback()

    def _round_zero(self) -> None:
        now = self.at(-20 * self.fps)
        self.catalog.open_round(0, budget=20, seed=0, now=now)
        facts = {"answered": 20, "imported": 20}
        first = seed_samples(self.world, 20, 0, self._data)
        labelled = [self._import(image, label, now) for image, label in zip(first.images, first.labels, strict=True)]
        groups = {entry.sample.sample_id: entry.sample.sample_id for entry in labelled}
        self._dataset = plan_splits(None, labelled, groups, SplitPolicy(), seed=0, round_number=0, now=now)
        self.catalog.save_dataset_version(self._dataset)
        self._release(0, now)
        self.catalog.advance_round(0, RoundPhase.CLOSED, facts, now=now)

    def _import(self, image: np.ndarray, label: int, now: datetime) -> LabelledSample:
        data = encode_jpeg(image)
        digest = hashlib.sha256(data).hexdigest()
        sample_id, key = f"{IMPORTED}-{digest[:32]}", capture_key(IMPORTED, digest)
        self.store.put(key, data)
        sample = Sample(
            sample_id=sample_id,
            device_id=IMPORTED,
            camera_id=sample_id,
            frame_index=0,
            captured_at=now,
            boot_id=IMPORTED,
            batch_sequence=0,
            image_key=key,
            image_sha256=digest,
            image_bytes=len(data),
            width=32,
            height=32,
            release_id=None,
            prediction=None,
            embedding=None,
            arms=(),
            random_probability=None,
            inclusion_probability=1.0,
            reasons=(),
            status=SampleStatus.LABELLED,
            ingested_at=now,
        )
        answer = {"class": self.names[label]}
        self.catalog.add_samples([sample])
        self.catalog.save_annotations([AnnotationRow(sample_id, sample_id, IMPORTED, answer, False, now, now)])
        return LabelledSample(sample, SelectionRole.ACTIVE, answer)

    def _watch(self, camera: str, number: int) -> None:
        """One window of one camera: everything is journalled, some is captured, one batch is ingested."""
        lens = CameraWorld(self.world, camera, self._data)
        lens.drift_from_frame = self.drift_frame if camera == self.world.drift_camera else None
        captures, verdicts, journal = [], [], []
        for index in range((number - 1) * self.window_frames, number * self.window_frames):
            frame = lens.frame(index)
            skill = (DAY if frame.condition == "day" else DUSK)[number - 1]
            right = self.random.random() < skill
            predicted = frame.label if right else int((frame.label + self.random.integers(1, 10)) % 10)
            answers = ((1.0, predicted == frame.label),)
            seen = Sighting(camera, index, RELEASES[number - 1], self.at(index), answers, mistakes=not answers[0][1])
            journal.append(note(seen))
            dismissed = self.random.random() < (0.3 if not right else 0.03)
            if dismissed:
                verdicts.append(self._verdict(camera, index, right, frame.label))
            if dismissed or self.random.random() < 0.1:
                captures.append(self._capture(camera, index, number, predicted, frame.image, dismissed=dismissed))
        folder = self.root / "journal"
        folder.mkdir(exist_ok=True)
        with (folder / f"{camera}.jsonl").open("a") as file:
            file.write("\n".join(journal) + "\n")
        self._ingest(camera, number, captures, verdicts)

    def _capture(
        self, camera: str, index: int, number: int, predicted: int, image: np.ndarray, *, dismissed: bool
    ) -> CaptureRecord:
        data = encode_jpeg(image)
        digest = hashlib.sha256(data).hexdigest()
        self.store.put(capture_key(camera, digest), data)
        sure = float(self.random.uniform(0.35, 0.95))
        probabilities = [(1 - sure) / 9] * 10
        probabilities[predicted] = sure
        arm = Arm.DISMISSED if dismissed else Arm.UNCERTAIN if index % 2 else Arm.RANDOM
        return CaptureRecord(
            capture_id=f"{camera}-boot-{index}",
            camera_id=camera,
            frame_index=index,
            captured_at=self.at(index),
            boot_id="boot",
            monotonic_s=index / self.fps,
            image=ImageRef(sha256=digest, size_bytes=len(data), width=32, height=32),
            prediction=ClassificationPrediction(
                prediction_id=f"boot-{index}", release_id=RELEASES[number - 1], probabilities=probabilities
            ),
            arms=[ArmOutcome(arm=arm, probability=0.04, kept=True)],
            inclusion_probability=0.04,
            reasons=[f"kept by the {arm.value} arm"],
        )

    def _verdict(self, camera: str, index: int, right: bool, label: int) -> Feedback:
        corrected = not right and index % 4 == 0
        return Feedback(
            feedback_id=f"fb-{camera}-{index}",
            prediction_id=f"boot-{index}",
            verdict=Verdict.CORRECTED if corrected else Verdict.DISMISSED,
            reason=FeedbackReason.NOT_INTERESTING if right else FeedbackReason.WRONG_CLASS,
            label=self.names[label] if corrected else None,
            received_at=self.at(index + 10),
            frame_available=True,
        )

    def _ingest(self, camera: str, number: int, captures: list[CaptureRecord], verdicts: list[Feedback]) -> None:
        counters = self._counters(camera, number, captures, len(verdicts))
        now = self.at(number * self.window_frames - 1)
        record = BatchRecord(
            device_id=camera,
            boot_id="boot",
            sequence=number,
            created_at=now,
            captures=captures,
            feedback=verdicts,
            counters=counters,
        )
        images = {
            capture_key(camera, c.image.sha256): inspect_image(self.store.get(capture_key(camera, c.image.sha256)))
            for c in captures
        }
        self.catalog.admit_batch(
            plan_admission(read_incoming(inbox_key(camera, "boot", number), record.to_bytes()), images, now=now)
        )
        swaps = [
            UpdateEvent(
                at=now, outcome="swapped", release_id=RELEASES[n], swap_gap_ms=3.1 * n + len(camera), frames_lost=0
            )
            for n in range(1, number)
        ]
        state = ReportedState(
            device_id=camera,
            boot_id="boot",
            reported_at=now,
            agent_version="0.1.0",
            release_id=RELEASES[number - 1],
            counters=counters,
            updates=swaps,
        )
        self.store.put(reported_key(camera), state.to_bytes())

    def _counters(self, camera: str, number: int, captures: list[CaptureRecord], verdicts: int) -> DeviceCounters:
        kept = len(captures) + sum(each.count for each in self.catalog.sample_counts() if each.device_id == camera)
        told = verdicts + len(self.catalog.feedback(device_id=camera))
        arms = Counter(arm for s in self.catalog.samples(devices=[camera]) for arm in s.arms)
        arms.update(outcome.arm.value for capture in captures for outcome in capture.arms)
        return DeviceCounters(
            frames_seen=number * self.window_frames + 9,
            frames_inferred=number * self.window_frames,
            frames_skipped={"no_model": 9},
            bytes_seen=number * self.window_frames * 1400,
            selected=kept + 2,
            captured=dict(arms),
            dropped={"backlog": 2},
            spooled=kept,
            acknowledged=kept,
            uploaded=kept,
            bytes_uploaded=kept * 1500,
            feedback_spooled=told,
            feedback_acknowledged=told,
        )

    def _turn(self, number: int) -> None:
        """One round: choose, ask, learn, release."""
        now = self.at(number * self.window_frames)
        self.catalog.open_round(number, budget=40, seed=0, now=now)
        pool = self.catalog.samples(status=SampleStatus.POOL)
        chosen = [pool[i] for i in self.random.permutation(len(pool))[:40]]
        rows = [_selected(number, rank, sample) for rank, sample in enumerate(chosen, start=1)]
        self.catalog.save_selection(number, rows)
        tasks = [AnnotationTask(row.sample_id, "s3://x/y", row.rank, 32, 32, None) for row in rows]
        self.catalog.mark_sent({sent.sample_id: sent.backend_task_id for sent in self.backend.send_tasks(tasks)})
        self._answer(chosen, now)
        self._learn(number, rows, chosen, now)
        facts = {
            "selected_at": now.isoformat(),
            "answered": 40,
            "field_accuracy": {
                "estimate": DAY[number - 1] - 0.02,
                "ci95": [DAY[number - 1] - 0.11, DAY[number - 1] + 0.07],
                "n": 12,
                "bursts": 9,
                "release": RELEASES[number - 1],
            },
        }
        self.catalog.advance_round(number, RoundPhase.CLOSED, facts, now=now)

    def _answer(self, chosen: Sequence[Sample], now: datetime) -> None:
        task_of = {task.sample_id: task.backend_task_id for task in self.backend.tasks}
        for place, sample in enumerate(chosen):
            skipped = place == 5
            label = None if skipped else {"class": self.names[self._truth(sample)]}
            row = AnnotationRow(f"a-{sample.sample_id}", sample.sample_id, "1", label, skipped, now, now)
            self.catalog.save_annotations([row])
            self.backend.answers.append(
                BackendAnnotation(
                    row.annotation_id, task_of[sample.sample_id], sample.sample_id, "1", label, skipped, now, now
                )
            )

    def _truth(self, sample: Sample) -> int:
        return CameraWorld(self.world, sample.camera_id, self._data).frame(sample.frame_index).label

    def _learn(self, number: int, rows: list[SelectedRow], chosen: list[Sample], now: datetime) -> None:
        roles = {row.sample_id: row for row in rows}
        labelled = [
            LabelledSample(s, roles[s.sample_id].role, {"class": self.names[self._truth(s)]}, 0.04) for s in chosen
        ]
        groups = assign_groups(self.catalog.samples(), {}, 1.0)
        self._dataset = plan_splits(
            self._dataset, labelled, groups, SplitPolicy(), seed=0, round_number=number, now=now
        )
        self.catalog.save_dataset_version(self._dataset)
        self._release(number, now)

    def _release(self, number: int, now: datetime) -> None:
        self.catalog.save_model(
            ModelRow(
                model_id=f"m{number}",
                round_number=number,
                dataset_version=self._dataset.version,
                created_at=now,
                status=ModelStatus.RELEASED,
                artifacts={},
                metrics={
                    "float_bytes": 1_205_000,
                    "int8_bytes": 345_000,
                    "float_p50_ms": 1.92,
                    "int8_p50_ms": 0.81,
                    "parity_top1": 0.991,
                    "parity_images": 512,
                    "scheme": "qdq",
                },
                release_id=RELEASES[number],
                release_number=number + 1,
                gate={"promote": True, "reasons": ["accuracy changed by +0.060"]},
            )
        )


def _selected(number: int, rank: int, sample: Sample) -> SelectedRow:
    audit = rank % 3 == 0
    reasons = (
        ("random audit: one of 12 drawn",) if audit else ("uherding: margin uncertainty 0.93", "one of 7 captures")
    )
    role = SelectionRole.AUDIT if audit else SelectionRole.ACTIVE
    return SelectedRow(number, sample.sample_id, rank, role, 0.5, 0.04 if audit else None, reasons, None, rank % 9 + 1)
