"""From a slot to a model that may answer: the check in a process of its own, its proof beside the slot, the load."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from curate.errors import AgentError, SelfCheckError
from edge_agent.durable import make_folder, persist_bytes, seal, unseal
from edge_agent.errors import CorruptFileError
from edge_agent.machine import describe_processor
from edge_agent.models.inference import RUNTIME_VERSION, LoadedModel, load_model
from edge_agent.models.self_check import load_golden, verify_model
from edge_agent.models.slots import SlotContent, Slots
from edge_agent.models.smoke import RunSettings, SmokeRequest, SmokeResult
from edge_agent.models.smoke_process import Smoke, run_smoke

log = logging.getLogger(__name__)


class _Proof(BaseModel):
    """What a model showed, and under which conditions that still counts."""

    model_config = ConfigDict(frozen=True)

    model_sha256: str
    golden_sha256: str
    conditions: str
    result: SmokeResult


class ModelLoader:
    """Checks and loads what lies in slots. Not thread-safe: the update loop owns it."""

    def __init__(self, slots: Slots, settings: RunSettings, *, smoke: Smoke = run_smoke) -> None:
        self._slots = slots
        self._settings = settings
        self._smoke = smoke
        self._conditions = _describe_conditions(settings)

    def prove(self, content: SlotContent) -> SmokeResult:
        """Return what the model has shown on this device, from its proof or by checking it now.

        Raises:
            SelfCheckError: it failed; `retryable` when another moment may be better.
            AgentError: the disk refused the proof.
        """
        known = self._load_proof(content)
        if known is not None:
            return known
        result = self._smoke(
            SmokeRequest(
                manifest=content.manifest,
                model=content.model.resolve(),
                golden=content.golden.resolve(),
                settings=self._settings,
            )
        )
        if not result.ok:
            raise SelfCheckError(result.reason or "it failed its check", retryable=result.may_pass)
        self._persist_proof(content, result)
        return result

    def load(self, content: SlotContent, shown: SmokeResult | None) -> LoadedModel:
        """Load the model into this process; it answers its golden inputs here, too.

        Args:
            content: what to load.
            shown: what it showed when it was checked; None when that could not be found out.

        Raises:
            SelfCheckError: it does not load, or answers otherwise.
        """
        threads = shown.threads if shown else self._settings.untuned_threads
        try:
            golden = load_golden(content.golden, content.manifest.model)
            model = load_model(content.model, content.manifest, threads=threads, providers=self._settings.providers)
            verify_model(model, golden, max_latency_s=math.inf)
        except MemoryError as exc:
            raise SelfCheckError("there is no memory for the model") from exc
        return model

    def load_proven(self, content: SlotContent) -> LoadedModel:
        """Load what has answered here before. A check that cannot be done right now does not stop it.

        Raises:
            SelfCheckError: it fails its check.
        """
        shown = None
        try:
            shown = self.prove(content)
        except AgentError as exc:
            if not exc.retryable:
                raise
            log.warning("the check of %s is put off: %s", content.manifest.release_id, exc)
        return self.load(content, shown)

    def _load_proof(self, content: SlotContent) -> SmokeResult | None:
        try:
            header, _ = unseal(self._proof_path(content).read_bytes())
            proof = _Proof.model_validate_json(header)
        except (OSError, CorruptFileError, ValidationError):
            return None
        wanted = _make_proof(content, self._conditions, proof.result)
        return proof.result if proof == wanted else None

    def _persist_proof(self, content: SlotContent, result: SmokeResult) -> None:
        path = self._proof_path(content)
        try:
            make_folder(path.parent)
            persist_bytes(path, seal(_make_proof(content, self._conditions, result).model_dump_json().encode()))
        except OSError as exc:
            raise AgentError(f"the proof of a check was not saved: {exc}", retryable=True) from exc

    def _proof_path(self, content: SlotContent) -> Path:
        return self._slots.proof_path(content.name)


def _make_proof(content: SlotContent, conditions: str, result: SmokeResult) -> _Proof:
    manifest = content.manifest
    return _Proof(
        model_sha256=manifest.variants[content.variant].sha256,
        golden_sha256=manifest.golden.sha256,
        conditions=conditions,
        result=result,
    )


def _describe_conditions(settings: RunSettings) -> str:
    """Say what a proof holds for: kernels differ between processors, runtimes and providers."""
    return f"{describe_processor()} onnxruntime {RUNTIME_VERSION} {','.join(settings.providers)} {settings.threads}"
