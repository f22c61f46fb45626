"""Model files that nobody honest would sign: refused in words, in bounded memory; what kills its process is found there
and not in the agent (P3)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fakes.hostile_models import monsters
from tests.fakes.memory import MIB
from tests.fakes.nightly import Tell, cases

SEED = 11
LOADED = cases(thin=150, full=10_000)
SCANNED = cases(thin=2500, full=100_000)
MAX_DEATHS = 10
LONGEST_S = cases(thin=250, full=7200)


def attempt(mode: str, count: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Try the cases, each in a process of its own kind; go on behind one that killed it. Returns outcomes and the
    names of the killers."""
    outcomes: list[dict[str, Any]] = []
    killers: list[str] = []
    first = 0
    while first < count and len(killers) < MAX_DEATHS:
        command = [sys.executable, "-m", "tests.fakes.hostile_models", mode, str(SEED), str(first), str(count - first)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST_S, check=False, cwd=Path(__file__).parents[2]
        )
        said = [json.loads(line) for line in done.stdout.splitlines()]
        assert said, done.stderr[-2000:]
        outcomes += [line for line in said if "outcome" in line]
        first = said[-1]["number"] + 1
        if done.returncode != 0:
            killers.append(f"{said[-1].get('name')} ({done.returncode})")
    return outcomes, killers


def test_no_model_file_brings_the_loader_down(tell: Tell) -> None:
    """What reads other files, runs foreign code, has wild shapes, is nested, cut off, a bomb, or damaged in a hundred
    places is refused by the one error the contract names; none of what was made by hand is loaded."""
    count = len(list(monsters())) + LOADED
    outcomes, killers = attempt("load", count)
    found = Counter(line["outcome"] for line in outcomes)
    by_hand = {line["outcome"] for line in outcomes[: len(list(monsters()))]}
    most = max(line["grown_bytes"] for line in outcomes)
    tell(f"models: {dict(found)}, {len(killers)} killed their process, {most / MIB:.0f} MiB at the peak")
    assert not [line for line in outcomes if line["outcome"].startswith("ESCAPED")]
    assert by_hand == {"refused"}
    assert killers == []
    assert most < 512 * MIB


def test_the_scanner_sees_what_the_reference_parser_sees(tell: Tell) -> None:
    """Over thousands of damaged and differently written files, whatever the scanner lets pass names no other file and
    no foreign operator when the reference parser reads it."""
    outcomes, killers = attempt("scan", SCANNED)
    found = Counter(line["outcome"] for line in outcomes)
    tell(f"scans: {dict(found)}")
    assert set(found) <= {"refused", "accepted", "accepted, no model"}
    assert killers == []
    assert found["accepted"] > SCANNED / 20
    assert found["refused"] > SCANNED / 5
