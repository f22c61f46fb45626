"""Who answers frames: the model that was restored, one on trial beside it, and the way back."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from curate.errors import AgentError
from edge_agent.machine import available_memory_bytes
from edge_agent.models.inference import LiveModel, LoadedModel
from edge_agent.models.loading import ModelLoader
from edge_agent.models.slots import SlotContent
from edge_agent.models.smoke import SmokeResult
from edge_agent.models.trial_probe import TrialProbe
from edge_agent.models.trial_watch import Judgement, TrialRules, TrialWatch
from edge_agent.models.tuning import measure_median_s
from edge_agent.report import DeviceReport

log = logging.getLogger(__name__)

_MEASURE_S: Final = 0.5
MEMORY_RESERVE_BYTES: Final = 32 * 1024 * 1024
"""What a change of model leaves free for everybody else."""


@dataclass(frozen=True)
class Seated:
    """A model and where it came from."""

    model: LoadedModel
    content: SlotContent


@dataclass(frozen=True)
class _Trial:
    challenger: Seated
    incumbent: Seated | None
    """None when there was none, or no memory for both."""
    probe: TrialProbe


class LiveSeat:
    """Changes what answers between two frames. The update loop owns it; its properties may be read from any thread."""

    def __init__(
        self,
        live: LiveModel,
        loader: ModelLoader,
        report: DeviceReport,
        *,
        memory: Callable[[], int | None] = available_memory_bytes,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live = live
        self._loader = loader
        self._report = report
        self._memory = memory
        self._monotonic = monotonic
        self._kept: Seated | None = None
        self._trial: _Trial | None = None

    @property
    def kept(self) -> SlotContent | None:
        """What was restored or committed; a release on trial is not."""
        return self._kept.content if self._kept else None

    @property
    def on_trial(self) -> bool:
        """Whether a release on trial answers now."""
        return self._trial is not None

    @property
    def trial_answers(self) -> int | None:
        """Frames that the release on trial has answered; None without one."""
        trial = self._trial
        return trial.probe.answers if trial else None

    def restore(self, content: SlotContent) -> None:
        """Let a model that this device has accepted before answer.

        Raises:
            AgentError: it does not pass its check.
        """
        self._seat(Seated(self._loader.load_proven(content), content))

    def begin_trial(self, content: SlotContent, shown: SmokeResult, rules: TrialRules) -> None:
        """Load a checked release and let it answer under watch; the old model answers meanwhile.

        Without memory for both the old one stops first, and frames in between get no answer.

        Raises:
            SelfCheckError: it does not load here; the old model answers again.
        """
        incumbent = self._kept
        old_p50_s = incumbent.model.p50_s if incumbent else None
        has_room = _fits(shown.peak_bytes, self._memory())
        if incumbent is not None and not has_room:
            log.warning("no memory for two models: the old one stops first", extra={"needed": shown.peak_bytes})
            self._vacate(incumbent)
        model = None
        try:
            model = self._loader.load(content, shown)
        finally:
            if model is None and not has_room:
                self._reload(incumbent)
        watch = TrialWatch(rules, started_s=self._monotonic(), incumbent_p50_s=old_p50_s)
        probe = TrialProbe(watch, model.kind, model.spec, monotonic=self._monotonic)
        model.observe(probe)
        self._trial = _Trial(Seated(model, content), incumbent if has_room else None, probe)
        self._show(model)

    def judge(self) -> Judgement | None:
        """Judge the release on trial as of now; None without one."""
        trial = self._trial
        if trial is None:
            return None
        judgement = trial.probe.judge()
        if judgement.compares and trial.incumbent is not None:
            with suppress(AgentError):  # it fails on a frame: what it took before stands
                trial.probe.note_incumbent(_measure(trial.incumbent.model))
            judgement = trial.probe.judge()
        return judgement

    def keep_challenger(self) -> None:
        """End the trial: the release on trial is the one from now on."""
        if self._trial is None:
            return
        self._trial.challenger.model.observe(None)
        self._kept, self._trial = self._trial.challenger, None

    def give_up_challenger(self) -> None:
        """End the trial: whoever answered before answers again. Answers under way in the other are cut off."""
        trial, self._trial = self._trial, None
        if trial is None:
            return
        if trial.incumbent is not None:
            self._seat(trial.incumbent)
        else:
            self._vacate(trial.challenger)
            self._reload(self._kept)
        trial.challenger.model.abort()

    def _seat(self, seated: Seated) -> None:
        self._kept = seated
        self._show(seated.model)

    def _show(self, model: LoadedModel) -> None:
        self._live.replace(model)
        self._report.set_release(model.release_id)
        if model.notes:
            log.warning("the model runs otherwise than asked for", extra={"notes": model.notes})

    def _vacate(self, seated: Seated) -> None:
        """Stop a model and give its memory back, also when somebody still holds it."""
        self._live.replace(None)
        self._report.set_release(None)
        seated.model.retire()
        gc.collect()

    def _reload(self, seated: Seated | None) -> None:
        """Load again what had to make room."""
        if seated is None:
            return
        try:
            self._seat(replace(seated, model=self._loader.load_proven(seated.content)))
        except AgentError as exc:
            self._kept = None
            log.warning("the old model does not come back: %s", exc)


def _measure(model: LoadedModel) -> float:
    """Return the median seconds of an answer to a black frame, now."""
    frame = np.zeros((model.spec.height, model.spec.width, 3), np.uint8)
    return measure_median_s(lambda: model.infer(frame), budget_s=_MEASURE_S)


def _fits(needed_bytes: int, available_bytes: int | None) -> bool:
    return available_bytes is None or needed_bytes + MEMORY_RESERVE_BYTES <= available_bytes
