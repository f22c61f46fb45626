"""Is a new model any good at its first frames? Pure: answers and times in, a verdict out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final

_LATENCIES: Final = 256
_PATIENCE: Final = 10.0
"""Where frames are rare a trial ends after this many windows of time with what it has seen."""


@dataclass(frozen=True, slots=True)
class TrialRules:
    """What a release must live through before it is kept."""

    window_s: float = 60.0
    window_frames: int = 200
    """Both must pass. With 0 and 0 there is no trial."""
    max_bad_share: float = 0.1
    """Share of answers that may be none: NaN, wrong shapes, an error of the runtime."""
    min_bad: int = 5
    """Fewer bad answers prove nothing."""
    max_same: int = 30
    """Answers in a row that may be equal, to the bit, to frames that clearly differ."""
    max_latency_s: float = 5.0
    """Bound of the median answer."""
    max_slowdown: float | None = 4.0
    """How many times slower than the incumbent the median answer may be; None does not compare."""
    min_slowdown_s: float = 0.02
    """A smaller difference in latency is nobody's concern, however large the ratio."""
    min_timed: int = 20
    """Fewer answers say nothing of latency."""
    hang_s: float = 30.0
    """An answer that takes longer never comes."""


class Verdict(StrEnum):
    """What to do with a release on trial."""

    GO_ON = "go on"
    KEEP = "keep"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reason."""

    verdict: Verdict
    reason: str = ""
    compares: bool = False
    """The reason is a comparison with what the incumbent was measured at; measured anew it may not hold."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer, as the watch needs it."""

    latency_s: float
    problem: str | None = None
    """Why it is none."""
    input_moved: bool = False
    """The frame clearly differs from the one before."""
    output_moved: bool = True
    """The answer differs from the one before, in any bit."""


class TrialWatch:
    """Follows one trial. Times are monotonic seconds."""

    def __init__(self, rules: TrialRules, *, started_s: float, incumbent_p50_s: float | None = None) -> None:
        self._rules = rules
        self._started_s = started_s
        self._incumbent_p50_s = incumbent_p50_s
        self._latencies_s: deque[float] = deque(maxlen=_LATENCIES)
        self._same = 0
        self._bad = 0
        self._last_problem = ""
        self.answers = 0
        """Frames answered so far, well or badly."""

    def note(self, seen: Seen) -> None:
        """Take note of one answer."""
        self.answers += 1
        if seen.problem is not None:
            self._bad += 1
            self._last_problem = seen.problem
            return
        self._latencies_s.append(seen.latency_s)
        if seen.output_moved:
            self._same = 0
        elif seen.input_moved:
            self._same += 1

    def note_incumbent(self, p50_s: float) -> None:
        """Take note of what the incumbent takes now; a busy device slows both down."""
        self._incumbent_p50_s = max(p50_s, self._incumbent_p50_s or 0.0)

    def judge(self, now_s: float, *, waiting_since_s: float | None = None) -> Judgement:
        """Judge the release; `waiting_since_s` is when the oldest unanswered frame was given to the model."""
        problem = self._find_hang(now_s, waiting_since_s) or self._find_bad() or self._find_same() or self._find_slow()
        if problem:
            return Judgement(Verdict.GIVE_UP, problem)
        if slower := self._find_slower():
            return Judgement(Verdict.GIVE_UP, slower, compares=True)
        return Judgement(Verdict.KEEP if self._is_over(now_s) else Verdict.GO_ON)

    def _is_over(self, now_s: float) -> bool:
        age_s = now_s - self._started_s
        if age_s >= self._rules.window_s and self.answers >= self._rules.window_frames:
            return True
        return age_s >= _PATIENCE * self._rules.window_s and self.answers > 0

    def _find_hang(self, now_s: float, waiting_since_s: float | None) -> str:
        if waiting_since_s is None or now_s - waiting_since_s < self._rules.hang_s:
            return ""
        return f"a frame has had no answer for {now_s - waiting_since_s:.0f} s"

    def _find_bad(self) -> str:
        if self._bad < self._rules.min_bad or self._bad <= self._rules.max_bad_share * self.answers:
            return ""
        return f"{self._bad} of {self.answers} answers are none, the last: {self._last_problem}"

    def _find_same(self) -> str:
        if self._same < self._rules.max_same:
            return ""
        return f"the answer stayed the same over {self._same} frames that differ"

    def _find_slow(self) -> str:
        if len(self._latencies_s) < self._rules.min_timed:
            return ""
        p50_s = median(self._latencies_s)
        if p50_s <= self._rules.max_latency_s:
            return ""
        return f"an answer takes {p50_s:.3f} s, more than {self._rules.max_latency_s:.3f} s"

    def _find_slower(self) -> str:
        if len(self._latencies_s) < self._rules.min_timed:
            return ""
        p50_s = median(self._latencies_s)
        old_s, ratio = self._incumbent_p50_s, self._rules.max_slowdown
        if old_s is None or ratio is None or p50_s - old_s < self._rules.min_slowdown_s or p50_s <= ratio * old_s:
            return ""
        return f"an answer takes {p50_s:.3f} s, the old model took {old_s:.3f} s"
