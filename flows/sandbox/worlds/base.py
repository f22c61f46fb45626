"""What the demo needs of a world. Everything else about a run is the same for all of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from curate.catalog.models import DatasetVersion, FeedbackRow, Sample
from flows.sandbox.fleet import AgentSite
from flows.sandbox.heldout import HeldOutScore, RoundFacts
from flows.sandbox.journal import Metric, Sighting
from flows.sandbox.simulator import SimulatorConfig

if TYPE_CHECKING:  # torch loads only when there is work for it
    import numpy as np

    from curate.training.data import LabelledFrames
    from flows._wiring import Services

Json = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """Where a run's cast works: decided by the run, used by the world."""

    root: Path
    sites: Mapping[str, AgentSite]
    """Camera id to its agent."""
    camera_port: int
    """A free port, for a world whose cameras are asked for frames."""
    fps: float
    label_studio_url: str
    label_studio_token: str

    @property
    def journal_dir(self) -> Path:
        """Where the simulated people note what they saw."""
        return self.root / "journal"

    @property
    def control_file(self) -> Path:
        """What the driver decides while the world runs."""
        return self.root / "world.json"


@dataclass(frozen=True)
class Simulator:
    """One process of the cast: `python -m module` with its configuration. Names: `world`, `users`, `annotators`."""

    name: str
    module: str
    config: SimulatorConfig


@dataclass(frozen=True)
class Lesson:
    """What one round learned from, and what had been uploaded when it chose."""

    round_number: int
    selected_at: datetime | None
    """None for the round of imported labels."""
    dataset: DatasetVersion
    uploads: Sequence[Sample]


@dataclass(frozen=True)
class ModelFiles:
    """One model as it was compressed: what runs on devices, and what that was made from."""

    int8: Path
    original: Path


class Exam(Protocol):
    """Scores models on frames that nothing of the run ever saw."""

    def score(self, model: ModelFiles) -> HeldOutScore:
        """Return what a model reaches."""

    def draws_for(self, round_number: int) -> RandomDraw | None:
        """Return who labels frames at random for a round's control; None where the world spares the time."""


class RandomDraw(Protocol):
    """Frames drawn at random from what a round could have asked about, labelled with the annotators' errors."""

    def draw(self, lesson: Lesson, count: int, rng: np.random.Generator) -> LabelledFrames:
        """Return that many frames, or all there are; none that was drawn before."""


class Witness(Protocol):
    """Knows what a sample really showed. Only the report asks it."""

    def scene_of(self, sample: Sample) -> Hashable | None:
        """Return the true scene of a device's capture, the same for frames that show the same; else None."""

    def describe(self, sample: Sample, verdicts: Sequence[FeedbackRow] = ()) -> Json:
        """Return JSON values for one picture of the report, `verdicts` being what people said of it.

        Keys: `predicted`, `confidence`, `label` (what annotators said) and `truth` as words, each may be None; `right`
        about the whole and `mistakes` counted; `boxes` to be drawn over the picture, in shares of its sides.
        """

    def thumbnail(self, sample: Sample, encoded: bytes) -> bytes:
        """Return the JPEG that the report shows of an uploaded one."""


class DemoWorld(Protocol):
    """One simulated world: its cameras, its people, its truth."""

    @property
    def metric(self) -> Metric:
        """What "good" means here."""

    @property
    def words(self) -> Mapping[str, str]:
        """What the report's page says of this world: `over_time`, `control`; `curves` and `boxes` where it has such;
        `pictures` is `small` or `large`.
        """

    @property
    def cameras(self) -> tuple[str, ...]:
        """Ids of the cameras; each has an agent, and a device, of its own and of the same name."""

    @property
    def offline_camera(self) -> str:
        """The one that loses its link for a while."""

    @property
    def drift_camera(self) -> str:
        """The one that dusk falls on."""

    def cloud_config(self) -> Json:
        """Return the sections of `curate.yaml` that this world decides: labels, recipe, policies."""

    def write_first_labels(self, folder: Path) -> None:
        """Write the first labelled pictures as a user would bring them to `import-labels`."""

    def agent_config(self, site: AgentSite, field: Field) -> Json:
        """Return the sections of `agent.yaml` that this world decides; `camera` at least."""

    def cast(self, field: Field) -> Sequence[Simulator]:
        """Return who plays: the cameras' world, the users and the annotators."""

    def let_dusk_fall(self, field: Field) -> Json:
        """Let dusk fall on the drift camera within seconds; return what the timeline should know about it."""

    def take_every(self, field: Field, step: int) -> None:
        """Let the cameras take every `step`-th frame only; what they look at goes on at the same pace."""

    def dusk_began(self, sightings: Sequence[Sighting], drift: Json) -> datetime | None:
        """Return when people first saw the drift camera at dusk, given the timeline's event."""

    def exam(self, wired: Services, sightings: Sequence[Sighting]) -> Exam:
        """Return the judge of this run's models."""

    def witness(self, wired: Services, labels: Mapping[str, Json]) -> Witness:
        """Return who knows the truth of samples; `labels` holds what annotators said, by sample id."""

    def conclude(self, facts: Sequence[RoundFacts]) -> Json:
        """Return what only this world's report tells: keys that the page shows where they are."""
