"""Puts one device's updater together from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.device_settings import DeviceSettings
from curate.contracts.sketch import EmbeddingSketch
from curate.errors import ConfigError
from curate.storage.ports import BlobStore
from edge_agent.config.agent import AgentConfig
from edge_agent.models.inference import LiveModel
from edge_agent.models.installer import UpdateLimits
from edge_agent.models.repository import SignedRepository
from edge_agent.models.slots import FactoryModel, Slots
from edge_agent.models.smoke import RunSettings
from edge_agent.models.trial_watch import TrialRules
from edge_agent.models.updater import Updater
from edge_agent.report import DeviceReport


def open_updater(
    config: AgentConfig,
    store: BlobStore,
    *,
    live: LiveModel,
    report: DeviceReport,
    policy_sink: Callable[[CapturePolicySpec], None],
    settings_sink: Callable[[DeviceSettings], None],
    sketch_sink: Callable[[EmbeddingSketch | None], None],
    is_metered: Callable[[], bool],
    wall_clock: Callable[[], datetime],
) -> Updater:
    """Return the updater that the configuration describes; nothing is loaded yet.

    Raises:
        ConfigError: the root of trust or the state folder cannot be used.
        TrustError: the root of trust is none.
    """
    tuf_folder, slots_folder = config.state_dir / "tuf", config.state_dir / "slots"
    try:
        trusted_root = config.trust.root_file.read_bytes()
        tuf_folder.mkdir(parents=True, exist_ok=True)
        slots_folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"cannot use {exc.filename}: {exc.strerror}",
            hint="trust.root_file is the file that starting the release repository returned.",
        ) from exc
    return Updater(
        device_id=config.device_id,
        store=store,
        repository=SignedRepository(store, tuf_folder, trusted_root, now=wall_clock),
        slots=Slots(slots_folder),
        state_file=config.state_dir / "updater.json",
        live=live,
        policy_sink=policy_sink,
        settings_sink=settings_sink,
        sketch_sink=sketch_sink,
        report=report,
        factory=_factory(config),
        is_metered=is_metered,
        running=_run_settings(config),
        variant=config.inference.variant,
        interval_s=config.update.interval_s,
        max_backoff_s=config.sync.max_backoff_s,
        limits=UpdateLimits(trial=_trial_rules(config)),
        wall_clock=wall_clock,
    )


def _factory(config: AgentConfig) -> FactoryModel:
    models = config.models
    return FactoryModel(
        models.factory_dir, manifest_sha256=models.factory_manifest_sha256, variant=config.inference.variant
    )


def _run_settings(config: AgentConfig) -> RunSettings:
    update = config.update
    return RunSettings(
        threads=config.inference.threads,
        providers=config.inference.providers,
        max_latency_s=update.max_latency_s,
        max_memory_bytes=update.max_memory_bytes,
        smoke_timeout_s=update.smoke_timeout_s,
    )


def _trial_rules(config: AgentConfig) -> TrialRules:
    update = config.update
    return TrialRules(
        window_s=update.trial_s,
        window_frames=update.trial_frames,
        max_latency_s=update.max_latency_s,
        max_slowdown=update.max_slowdown,
        hang_s=max(update.hang_s, update.max_latency_s),
    )
