"""The life of one update: its phases, what happens to it, and what follows. Pure.

    IDLE ─Assigned▶ DOWNLOADING ─Fetched▶ VERIFIED ─Started▶ SMOKE ─Passed▶ TRIAL ─Settled▶ COMMITTED
                        ▲                    │                 │ Failed       │ Failed
                        └──────Damaged───────┴──────┬──────────┤              ▼
                                                    │          ▼           ROLLED_BACK
                                               Superseded   REFUSED
                                                    ▼
                                                   IDLE

What may kill the process (the check, the first frames) is counted durably by `Started` before it begins. The order of
a step's effects is part of the decision: the old model answers again before anything is written, and a slot is
emptied or made the one to start from only after the phase that says so is durable. Effects can be repeated, so those
of the last durable phase are applied again at a start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from curate.contracts.ids import SafeName, Sha256
from curate.errors import AgentError

SlotName: TypeAlias = Literal["a", "b"]

MAX_STARTS: Final = 3
"""How often the check, or the trial, of one release may begin; a pulled plug may explain one or two."""


class Phase(StrEnum):
    """How far an update has come. COMMITTED, ROLLED_BACK and REFUSED say how the last one ended."""

    IDLE = "idle"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    SMOKE = "smoke"
    TRIAL = "trial"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"


ACTIVE: Final = frozenset({Phase.DOWNLOADING, Phase.VERIFIED, Phase.SMOKE, Phase.TRIAL})
"""An update is under way and its slot holds nothing that may be started from."""
LOCAL: Final = frozenset({Phase.VERIFIED, Phase.SMOKE, Phase.TRIAL})
"""What comes next needs no network."""


class Effect(StrEnum):
    """What the shell does, in a step's order. Each can be repeated."""

    SAVE = "save"
    PLAY_INCUMBENT = "play incumbent"
    KEEP_SLOT = "keep slot"
    EMPTY_SLOT = "empty slot"
    REPORT = "report"


class Attempt(BaseModel):
    """The newest update and how far it came; durable."""

    model_config = ConfigDict(frozen=True)

    phase: Phase = Phase.IDLE
    release_id: SafeName | None = None
    number: int | None = None
    desired_sha256: Sha256 | None = None
    """The assignment it follows, by the digest of `desired.json`."""
    slot: SlotName | None = None
    starts: int = Field(default=0, ge=0)
    """How often the phase's work has begun."""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Assigned:
    """A release was assigned that is worth an attempt."""

    release_id: str
    number: int
    desired_sha256: str
    slot: SlotName


@dataclass(frozen=True, slots=True)
class Fetched:
    """Every file of the release is in its slot, verified."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """What was verified cannot be read any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Started:
    """The check or the trial is about to begin."""


@dataclass(frozen=True, slots=True)
class Postponed:
    """The check, or the loading for the trial, failed for a reason that may pass: no memory, no time, the disk."""

    reason: str


@dataclass(frozen=True, slots=True)
class Passed:
    """The check passed."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The release is no good on this device."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The agent ends in good order; that is no sign against the release."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The trial is over and nothing was wrong."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """Another release is assigned."""

    reason: str


Event: TypeAlias = Assigned | Fetched | Damaged | Started | Postponed | Passed | Failed | Stopped | Settled | Superseded


@dataclass(frozen=True, slots=True)
class Step:
    """Where an event leads and what has to be done for it."""

    attempt: Attempt
    effects: tuple[Effect, ...]


_SAVE: Final = (Effect.SAVE,)
_TELL: Final = (Effect.SAVE, Effect.REPORT)


def advance(attempt: Attempt, event: Event) -> Step:
    """Decide where an event leads.

    Raises:
        AgentError: nothing in this phase can have caused the event; the caller is wrong.
    """
    decide = _TABLE.get((attempt.phase, type(event)))
    if decide is None:
        raise AgentError(f"an update that is {attempt.phase} cannot be {type(event).__name__.lower()}")
    return decide(attempt, event)


def is_refused(attempt: Attempt, release_id: str, desired_sha256: str) -> bool:
    """Whether this device has given the release up; only another assignment lets it try again."""
    return attempt.phase in {Phase.REFUSED, Phase.ROLLED_BACK} and (attempt.release_id, attempt.desired_sha256) == (
        release_id,
        desired_sha256,
    )


def redo_effects(attempt: Attempt) -> tuple[Effect, ...]:
    """Return the effects on the disk that a process may have left undone when it died."""
    return _REDO.get(attempt.phase, ())


_REDO: Final[dict[Phase, tuple[Effect, ...]]] = {
    Phase.COMMITTED: (Effect.KEEP_SLOT,),
    Phase.ROLLED_BACK: (Effect.EMPTY_SLOT,),
    Phase.REFUSED: (Effect.EMPTY_SLOT,),
}


def _to(attempt: Attempt, phase: Phase, *, starts: int = 0, reason: str | None = None) -> Attempt:
    return attempt.model_copy(update={"phase": phase, "starts": starts, "reason": reason})


def _assigned(_: Attempt, event: Assigned) -> Step:
    attempt = Attempt(
        phase=Phase.DOWNLOADING,
        release_id=event.release_id,
        number=event.number,
        desired_sha256=event.desired_sha256,
        slot=event.slot,
    )
    return Step(attempt, _TELL)


def _fetched(attempt: Attempt, _: Fetched) -> Step:
    return Step(_to(attempt, Phase.VERIFIED), _TELL)


def _damaged(attempt: Attempt, event: Damaged) -> Step:
    return Step(_to(attempt, Phase.DOWNLOADING, reason=event.reason), _TELL)


def _lost(_: Attempt, event: Damaged) -> Step:
    """The committed slot is gone: whatever is assigned may be installed anew."""
    return Step(Attempt(reason=event.reason), _SAVE)


def _smoke_started(attempt: Attempt, _: Started) -> Step:
    if attempt.starts >= MAX_STARTS:
        return _refused(attempt, Failed(attempt.reason or f"its check was cut off {attempt.starts} times"))
    effects = _TELL if attempt.phase is Phase.VERIFIED else _SAVE
    return Step(_to(attempt, Phase.SMOKE, starts=attempt.starts + 1, reason=attempt.reason), effects)


def _postponed(attempt: Attempt, event: Postponed) -> Step:
    return Step(_to(attempt, Phase.SMOKE, starts=attempt.starts, reason=event.reason), _SAVE)


def _refused(attempt: Attempt, event: Failed) -> Step:
    effects = (Effect.SAVE, Effect.REPORT, Effect.EMPTY_SLOT)
    return Step(_to(attempt, Phase.REFUSED, reason=event.reason), effects)


def _passed(attempt: Attempt, _: Passed) -> Step:
    return Step(_to(attempt, Phase.TRIAL), _TELL)


def _trial_started(attempt: Attempt, _: Started) -> Step:
    if attempt.starts >= MAX_STARTS:
        return _rolled_back(attempt, Failed(f"the agent died {attempt.starts} times while it tried the release"))
    return Step(_to(attempt, Phase.TRIAL, starts=attempt.starts + 1), _SAVE)


def _trial_postponed(attempt: Attempt, event: Postponed) -> Step:
    """The process lives, so this start does not count against the release."""
    return Step(_to(attempt, Phase.TRIAL, starts=max(0, attempt.starts - 1), reason=event.reason), _SAVE)


def _stopped(attempt: Attempt, _: Stopped) -> Step:
    return Step(_to(attempt, attempt.phase, starts=max(0, attempt.starts - 1), reason=attempt.reason), _SAVE)


def _settled(attempt: Attempt, _: Settled) -> Step:
    return Step(_to(attempt, Phase.COMMITTED), (Effect.SAVE, Effect.REPORT, Effect.KEEP_SLOT))


def _rolled_back(attempt: Attempt, event: Failed | Superseded) -> Step:
    effects = (Effect.PLAY_INCUMBENT, Effect.SAVE, Effect.REPORT, Effect.EMPTY_SLOT)
    return Step(_to(attempt, Phase.ROLLED_BACK, reason=event.reason), effects)


def _dropped(_: Attempt, event: Superseded) -> Step:
    return Step(Attempt(reason=event.reason), _SAVE)


_TABLE: Final[dict[tuple[Phase, type], Callable[[Attempt, Any], Step]]] = {
    **{(phase, Assigned): _assigned for phase in Phase if phase not in ACTIVE},
    **{(phase, Damaged): _damaged for phase in LOCAL},
    **{(phase, Superseded): _dropped for phase in ACTIVE},
    (Phase.TRIAL, Superseded): _rolled_back,
    (Phase.COMMITTED, Damaged): _lost,
    (Phase.DOWNLOADING, Fetched): _fetched,
    (Phase.VERIFIED, Started): _smoke_started,
    (Phase.SMOKE, Started): _smoke_started,
    (Phase.SMOKE, Postponed): _postponed,
    (Phase.SMOKE, Failed): _refused,
    (Phase.SMOKE, Passed): _passed,
    (Phase.SMOKE, Stopped): _stopped,
    (Phase.TRIAL, Started): _trial_started,
    (Phase.TRIAL, Postponed): _trial_postponed,
    (Phase.TRIAL, Failed): _rolled_back,
    (Phase.TRIAL, Stopped): _stopped,
    (Phase.TRIAL, Settled): _settled,
}
