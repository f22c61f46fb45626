"""The world of the plaza: two cameras over a real place, and boxes around the people who cross it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.catalog.labels import load_label_spec
from curate.catalog.models import DatasetItem, DatasetVersion, Split
from flows.sandbox.fleet import AgentSite
from flows.sandbox.heldout import RoundFacts
from flows.sandbox.journal import Metric, Sighting
from flows.sandbox.plaza_annotators import PlazaAnnotatorsConfig
from flows.sandbox.plaza_camera import (
    CameraConfig,
    PlazaControl,
    camera_address,
)
from flows.sandbox.plaza_clip import find_clip, read_frames
from flows.sandbox.plaza_conclusion import conclude
from flows.sandbox.plaza_people import PERSON
from flows.sandbox.plaza_scene import FIELD_FRAMES, SEED_FRAMES, ClipReader, Condition, Scene
from flows.sandbox.plaza_sightings import average_precision
from flows.sandbox.plaza_truth import load_truth
from flows.sandbox.plaza_users import PlazaUsersConfig
from flows.sandbox.script import DemoScript
from flows.sandbox.simulator import change_control_file, load_control_file
from flows.sandbox.worlds.base import Exam, Field, Json, Simulator, Witness

if TYPE_CHECKING:
    from flows._wiring import Services

LABELS_FILE = Path(__file__).parents[1] / "plaza_labels.yaml"
CLIP_FOLDER = "plaza"
ROUND_RECIPE: Mapping[str, int] = {"epochs": 3, "steps_per_epoch": 40}
"""Short: each round goes on from the last one's model."""
SEED_PEOPLE = 4
"""The self-made frames are less crowded than the plaza is."""
AP50 = Metric("ap50", "AP50", average_precision)
_FIELD_LENGTH = FIELD_FRAMES[1] - FIELD_FRAMES[0] + 1
_RING_BYTES = 192 * 1024 * 1024


class PlazaWorld:
    """See `DemoWorld`."""

    metric = AP50
    cameras = ("plaza-1", "plaza-2")
    offline_camera = "plaza-2"
    drift_camera = "plaza-1"
    words: Mapping[str, str] = {
        "over_time": "AP50 of all boxes on the frames that people looked at, a fifth of all",
        "control": "The same recipe on equally many frames, chosen by Gleaner or at random among all that the cameras "
        "saw. Judged on the last quarter of the clip, which nothing of the run ever saw.",
        "curves": "On the held-out last quarter, int8 files as devices run them. The last release against the first, "
        "and against a model that was given the truth of every field frame.",
        "boxes": "Boxes: green found, orange on nobody, pink dismissed by a person, dashed yellow missed.",
        "pictures": "large",
    }

    def __init__(self, script: DemoScript, clip: Path) -> None:
        self._script = script
        self._clip = clip

    @classmethod
    def load(cls, script: DemoScript, cache: Path) -> PlazaWorld:
        """Find the clip, or fetch it into `cache`. Raises `DatasetError` when nobody has it."""
        return cls(script, find_clip(cache / CLIP_FOLDER))

    def cloud_config(self) -> Json:
        """Few labels, slow frames, one scene that hardly changes."""
        return {
            "labels_file": str(LABELS_FILE),
            "detection_training": {**ROUND_RECIPE, "threads": 1},  # agents and services share the two cores
            "split": {"block_s": 2.0},
            "selection": {"scene_gap_s": 2.0, "audit_share": 0.6, "half_life_s": self._script.window_s},
            # A dozen audits a round rule out large losses only.
            "gate": {"min_labels": 6, "min_parity": 0.9, "tolerance": 0.12},
            "capture_policy": {
                "version": "demo",
                "random_probability": 0.08,
                "uncertain_budget_fraction": 0.10,
                "uncertainty_score": "uncertainty",
                "cooldown_frames": 2,
            },
        }

    def write_first_labels(self, folder: Path) -> None:
        """Write self-made frames as a COCO folder."""
        from curate.catalog.images import encode_jpeg  # noqa: PLC0415 (the seed's maker loads torch)
        from curate.interchange.coco import export_coco  # noqa: PLC0415
        from flows.sandbox.plaza_seed import make_seed_frames  # noqa: PLC0415

        first, labels = read_frames(self._clip, *SEED_FRAMES), load_label_spec(LABELS_FILE)
        count, seed = self._script.seed_labels, self._script.seed
        made = make_seed_frames(first, count, seed, labels.height, labels.width, most_people=SEED_PEOPLE)
        images = {f"seed-{number:04d}": image for number, image in enumerate(made.images)}
        items = tuple(_seed_item(name, dict(label)) for name, label in zip(images, made.labels, strict=True))
        version = DatasetVersion(f"seed-{self._script.seed}", 0, datetime.now(UTC), items)
        export_coco(version, [PERSON], folder, lambda key: encode_jpeg(images[Path(key).stem]))

    def agent_config(self, site: AgentSite, field: Field) -> Json:
        """An IP camera, and memory for the frames of two minutes: dismissals come late."""
        source = camera_address(field.camera_port, site.device_id)
        return {
            "camera": {"camera_id": site.device_id, "kind": "video", "source": source},
            "ring": {"max_bytes": _RING_BYTES},
        }

    def cast(self, field: Field) -> tuple[Simulator, ...]:
        """Everyone recognises what a picture shows."""
        ahead = {camera: number * _FIELD_LENGTH // len(self.cameras) for number, camera in enumerate(self.cameras)}
        world = CameraConfig(
            clip=self._clip,
            cameras=ahead,
            port=field.camera_port,
            control_file=field.control_file,
            seed=self._script.seed,
            fps=field.fps,
        )
        users = PlazaUsersConfig(
            clip=self._clip,
            seed=self._script.seed,
            agents={camera: site.api_address for camera, site in field.sites.items()},
            journal_dir=field.journal_dir,
        )
        annotators = PlazaAnnotatorsConfig(
            clip=self._clip,
            seed=self._script.seed,
            url=field.label_studio_url,
            token=field.label_studio_token,
            class_names=(PERSON,),
        )
        return (
            Simulator("world", "flows.sandbox.plaza_camera", world),
            Simulator("users", "flows.sandbox.plaza_users", users),
            Simulator("annotators", "flows.sandbox.plaza_annotators", annotators),
        )

    def let_dusk_fall(self, field: Field) -> Json:
        """At once."""
        control = load_control_file(field.control_file, PlazaControl)
        dusk = tuple(sorted({*control.dusk, self.drift_camera}))
        change_control_file(field.control_file, PlazaControl, dusk=dusk)
        return {}

    def take_every(self, field: Field, step: int) -> None:
        """The clip goes on."""
        change_control_file(field.control_file, PlazaControl, frame_step=step)

    def dusk_began(self, sightings: Sequence[Sighting], drift: Json) -> datetime | None:  # noqa: ARG002
        """Go by what was seen."""
        scenes = ((s.at, Scene.parse(s.scene)) for s in sightings if s.camera_id == self.drift_camera and s.scene)
        return min((at for at, scene in scenes if scene.condition == "dusk"), default=None)

    def exam(self, wired: Services, sightings: Sequence[Sighting]) -> Exam:
        """The last quarter of the clip."""
        from flows.sandbox.plaza_exam import PlazaExam  # noqa: PLC0415 (loads torch)

        cells: dict[str, Condition] = {f"{camera}/day": "day" for camera in self.cameras}
        cells[f"{self.drift_camera}/dusk"] = "dusk"
        return PlazaExam(
            wired,
            self._clip,
            load_truth(),
            self._script.seed,
            cells=cells,
            control_rounds=frozenset({self._script.rounds}),
            sightings=sightings,
        )

    def witness(self, wired: Services, labels: Mapping[str, Json]) -> Witness:
        """Recognises uploads."""
        from flows._blobs import fetch_image  # noqa: PLC0415 (the flows' services load much)
        from flows.sandbox.plaza_witness import PlazaWitness  # noqa: PLC0415

        return PlazaWitness(partial(fetch_image, wired), ClipReader.of_field(self._clip), load_truth(), labels)

    def conclude(self, facts: Sequence[RoundFacts]) -> Json:
        """Curves, the gap that was closed, all measures of each release."""
        return conclude(facts)


def _seed_item(name: str, label: dict[str, Any]) -> DatasetItem:
    return DatasetItem(name, f"{name}.jpg", label, Split.TRAIN, name, "seed", "seed")
