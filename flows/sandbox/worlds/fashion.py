"""The world of garments: three cameras before Fashion-MNIST, one class a frame."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from curate.catalog.labels import load_label_spec
from curate.catalog.models import FeedbackRow, Sample
from curate.contracts.prediction import ClassificationPrediction
from flows.sandbox.fashion_annotators import FashionWorkConfig
from flows.sandbox.fashion_mnist import CLASS_NAMES, FashionMnist, load_fashion_mnist
from flows.sandbox.fashion_users import FashionUsersConfig
from flows.sandbox.fleet import AgentSite
from flows.sandbox.heldout import RoundFacts
from flows.sandbox.journal import ACCURACY, Sighting
from flows.sandbox.script import DemoScript
from flows.sandbox.simulator import change_control_file
from flows.sandbox.world import seed_samples
from flows.sandbox.world_schedule import Schedule, WorldConfig, WorldControl
from flows.sandbox.world_writer import WriterConfig, schedule_dusk
from flows.sandbox.worlds.base import Exam, Field, Json, Simulator

if TYPE_CHECKING:
    from flows._wiring import Services

LABELS_FILE = Path(__file__).parents[3] / "configs" / "labels.yaml"


class FashionWorld:
    """See `DemoWorld`."""

    metric = ACCURACY
    offline_camera = "cam-2"
    words: Mapping[str, str] = {
        "over_time": "Share of frames answered rightly",
        "control": "The same recipe on equally many labels, chosen by Gleaner or at random among the uploads. Judged "
        "on frames of garments that no camera ever showed.",
        "boxes": "",
        "pictures": "small",
    }

    def __init__(self, script: DemoScript, data: FashionMnist, cache: Path, world: WorldConfig) -> None:
        self._script = script
        self._data = data
        self._cache = cache
        self.world = world

    @classmethod
    def load(cls, script: DemoScript, cache: Path) -> FashionWorld:
        """Find the photographs, or fetch them into `cache`. Raises `DatasetError` when nobody has them."""
        return cls(script, load_fashion_mnist(cache), cache, WorldConfig(seed=script.seed))

    @property
    def cameras(self) -> tuple[str, ...]:
        """Each sees its own mix of classes."""
        return tuple(camera.camera_id for camera in self.world.cameras)

    @property
    def drift_camera(self) -> str:
        """The one that dusk falls on."""
        return self.world.drift_camera

    def cloud_config(self) -> Json:
        """Small frames in fast bursts."""
        longest_burst_s = self.world.max_burst_frames / self._script.fps
        return {
            "labels_file": str(LABELS_FILE),
            "training": {"network": {"standardise": True}},  # dusk falls
            "split": {"block_s": longest_burst_s},
            # What a camera saw within a burst's length is one scene although it hardly looks alike, at dusk least of
            # all, and a busy machine shows frames late.
            "selection": {
                "burst_duplicate_cosine": 0.65,
                "scene_gap_s": 1.2 * longest_burst_s,
                "scene_cosine": 0.4,
                "half_life_s": 0.6 * self._script.window_s,  # dusk is to outweigh what came before its window
                "audit_share": 0.3,  # of a small budget
            },
            "gate": {"tolerance": 0.1},  # sixty audits a round do not rule out less
            "capture_policy": {"version": "demo", "random_probability": 0.06, "uncertain_budget_fraction": 0.05},
        }

    def write_first_labels(self, folder: Path) -> None:
        """Write `<class>/<number>.png`."""
        names = load_label_spec(LABELS_FILE).class_names
        seed = seed_samples(self.world, self._script.seed_labels, self._script.seed, self._data)
        for number, (image, label) in enumerate(zip(seed.images, seed.labels.tolist(), strict=True)):
            target = folder / names[label] / f"{number:04d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target)

    def agent_config(self, site: AgentSite, field: Field) -> Json:  # noqa: ARG002 (no camera is asked for frames)
        """Each camera is a folder that the world fills."""
        site.frames_dir.mkdir(parents=True, exist_ok=True)
        camera = {"camera_id": site.device_id, "kind": "folder", "path": str(site.frames_dir), "max_lag_frames": 300}
        return {"camera": camera}

    def cast(self, field: Field) -> tuple[Simulator, ...]:
        """Everyone knows truth from the schedule, by camera and frame number."""
        users = FashionUsersConfig(
            world=self.world,
            agents={camera: site.api_address for camera, site in field.sites.items()},
            class_names=CLASS_NAMES,
            journal_dir=field.journal_dir,
        )
        annotators = FashionWorkConfig(
            world=self.world,
            seed=self.world.seed,
            url=field.label_studio_url,
            token=field.label_studio_token,
            class_names=CLASS_NAMES,
        )
        return (
            Simulator("world", "flows.sandbox.world_writer", self._writer(field)),
            Simulator("users", "flows.sandbox.fashion_users", users),
            Simulator("annotators", "flows.sandbox.fashion_annotators", annotators),
        )

    def let_dusk_fall(self, field: Field) -> Json:
        """Say from which frame on."""
        return {"frame": schedule_dusk(self._writer(field), self.drift_camera)}

    def take_every(self, field: Field, step: int) -> None:
        """Frames keep their numbers."""
        change_control_file(field.control_file, WorldControl, frame_step=step)

    def dusk_began(self, sightings: Sequence[Sighting], drift: Json) -> datetime | None:
        """Go by the frame number."""
        dark = [s.at for s in sightings if s.camera_id == self.drift_camera and s.frame_index >= drift["frame"]]
        return min(dark, default=None)

    def exam(self, wired: Services, sightings: Sequence[Sighting]) -> Exam:  # noqa: ARG002 (uploads tell enough)
        """Held-out garments."""
        from flows.sandbox.fashion_exam import FashionExam  # noqa: PLC0415 (loads torch)

        return FashionExam(wired, self.world, self._data)

    def witness(self, wired: Services, labels: Mapping[str, Json]) -> FashionWitness:
        """Knows bursts and classes."""
        return FashionWitness(self.world, wired.settings.labels.class_names, labels)

    def conclude(self, facts: Sequence[RoundFacts]) -> Json:  # noqa: ARG002 (accuracy says it all)
        """Nothing to add."""
        return {}

    def _writer(self, field: Field) -> WriterConfig:
        return WriterConfig(
            world=self.world,
            folders={camera: site.frames_dir for camera, site in field.sites.items()},
            fps=field.fps,
            control_file=field.control_file,
            dataset_cache=self._cache,
        )


class FashionWitness:
    """Says what a sample shows: what the device thought, what people answered, what it really was."""

    def __init__(self, world: WorldConfig, class_names: Sequence[str], labels: Mapping[str, Json]) -> None:
        self._schedules = {camera.camera_id: Schedule(world, camera.camera_id) for camera in world.cameras}
        self._names = class_names
        self._labels = labels

    def scene_of(self, sample: Sample) -> Hashable | None:
        """The true burst."""
        schedule = self._schedules.get(sample.camera_id)
        return (sample.camera_id, schedule.burst_at(sample.frame_index).number) if schedule else None

    def describe(self, sample: Sample, verdicts: Sequence[FeedbackRow] = ()) -> Json:  # noqa: ARG002
        """One class each; a person's verdict is about the whole frame."""
        prediction = sample.prediction
        answer = prediction if isinstance(prediction, ClassificationPrediction) else None
        schedule = self._schedules.get(sample.camera_id)
        predicted = self._names[answer.class_index] if answer else None
        label: str | None = self._labels[sample.sample_id]["class"] if sample.sample_id in self._labels else None
        truth = self._names[schedule.burst_at(sample.frame_index).label] if schedule else None
        described: dict[str, Any] = {
            "predicted": predicted,
            "confidence": max(answer.probabilities) if answer else None,
            "label": label,
            "truth": truth,
            "right": predicted == (label or truth),
            "mistakes": int(predicted != truth),
            "boxes": [],
        }
        return described

    def thumbnail(self, sample: Sample, encoded: bytes) -> bytes:  # noqa: ARG002 (small as it is)
        """The upload itself."""
        return encoded
