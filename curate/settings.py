"""The cloud's configuration: arguments over environment (`GLEANER_...`) over YAML over defaults."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from curate.annotation.settings import LabelStudioSettings
from curate.catalog.labels import LabelSpec, load_label_spec
from curate.catalog.splits import SplitPolicy
from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.device_settings import DeviceSettings
from curate.errors import ConfigError
from curate.release.gate import GatePolicy
from curate.release.repository import Expiry
from curate.selection.base import SelectionPolicy
from curate.selection.drift.watch import DriftPolicy
from curate.storage.s3_settings import S3Settings
from curate.training.detector_recipe import DetectorRecipe
from curate.training.recipe import TrainingRecipe

CONFIG_VARIABLE = "GLEANER_CONFIG"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RoundSettings(_Section):
    """How large one turn of the loop is."""

    budget: int = Field(default=200, ge=1, description="Labels asked of people in one round.")
    seed: int = Field(default=0, ge=0, description="Makes selection and training repeatable.")
    wait_for_labels_s: float = Field(
        default=0.0, ge=0, description="How long one flow run waits for annotators before leaving it to the next run."
    )
    poll_interval_s: float = Field(default=2.0, gt=0)
    label_quorum: float = Field(
        default=1.0, gt=0, le=1, description="Share of the round's tasks that must be answered before training."
    )


class IngestSettings(_Section):
    """What is taken from devices."""

    wait_for_images_s: float = Field(
        default=24 * 3600.0,
        ge=0,
        description="A batch that names an image which is not in the bucket waits so long for it; 0: it is refused.",
    )


class ScheduleSettings(_Section):
    """How often the deployments run by themselves, in seconds."""

    ingest_s: float = Field(default=60.0, gt=0)
    collect_s: float = Field(default=300.0, gt=0)
    round_s: float = Field(default=24 * 3600.0, gt=0)
    supervise_s: float = Field(default=600.0, gt=0)
    drift_s: float = Field(default=24 * 3600.0, gt=0)
    fleet_sketch_s: float | None = Field(
        default=6 * 3600.0,
        gt=0,
        description="Devices with a novel arm are told no more often what the fleet has sent; null: never.",
    )
    savings_s: float | None = Field(
        default=7 * 24 * 3600.0, gt=0, description="Measuring what choosing saves trains a model more; null: never."
    )


class ScaleSettings(_Section):
    """Where a pool is chosen from that one machine cannot hold."""

    dask_scheduler: str | None = Field(
        default=None, description="A Dask scheduler, such as tcp://scheduler:8786; null: this machine chooses."
    )
    rows_per_part: int = Field(default=100_000, ge=1, description="Captures that a worker reads at a time.")
    rows_per_shard: int = Field(
        default=250_000, ge=1000, description="Captures that a worker chooses from; about 3 kB of memory each."
    )


class Settings(BaseSettings):
    """Everything the flows need to know. Secrets come from files or the environment, never from YAML."""

    model_config = SettingsConfigDict(
        env_prefix="GLEANER_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    catalog_url: str = "sqlite:///.gleaner/catalog.db"
    cache_dir: Path = Path(".gleaner/cache")
    image_cache_bytes: int = Field(
        default=4 * 1024**3, ge=0, description="Room under `cache_dir` for pictures; 0 fetches each one every time."
    )
    key_dir: Path = Path(".gleaner/keys")
    labels_file: Path = Path("configs/labels.yaml")
    bucket: S3Settings
    label_studio: LabelStudioSettings
    round: RoundSettings = RoundSettings()
    ingest: IngestSettings = IngestSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    selection: SelectionPolicy = SelectionPolicy()
    scale: ScaleSettings = ScaleSettings()
    split: SplitPolicy = SplitPolicy()
    drift: DriftPolicy = DriftPolicy()
    training: TrainingRecipe = TrainingRecipe()
    detection_training: DetectorRecipe = DetectorRecipe()
    gate: GatePolicy = GatePolicy()
    capture_policy: CapturePolicySpec = CapturePolicySpec()
    device_settings: DeviceSettings = DeviceSettings()
    expiry: Expiry = Expiry()

    @cached_property
    def labels(self) -> LabelSpec:
        """What the fleet's model answers, from `labels_file`."""
        return load_label_spec(self.labels_file)

    @property
    def recipe(self) -> TrainingRecipe | DetectorRecipe:
        """How models of the labels' kind are trained."""
        recipes: tuple[TrainingRecipe | DetectorRecipe, ...] = (self.training, self.detection_training)
        return {recipe.kind: recipe for recipe in recipes}[self.labels.kind]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (the framework passes it)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, YAML named by GLEANER_CONFIG."""
        yaml_file = os.environ.get(CONFIG_VARIABLE)
        yaml_source = (YamlConfigSettingsSource(settings_cls, yaml_file=yaml_file),) if yaml_file else ()
        return (init_settings, env_settings, *yaml_source)


def load_settings() -> Settings:
    """Read the settings.

    Raises:
        ConfigError: a setting is missing, unknown or wrong.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    if named and not Path(named).is_file():
        raise ConfigError(f"{CONFIG_VARIABLE} names {named}, which does not exist", hint="see configs/curate.yaml")
    try:
        return Settings()
    except ValidationError as exc:
        problems = exc.errors(include_url=False, include_input=False)
        lines = "\n".join(f"  {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problems)
        raise ConfigError(
            f"the configuration is wrong:\n{lines}", hint="configs/curate.yaml explains every setting"
        ) from exc
