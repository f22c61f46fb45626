"""The documents say what is there: links lead somewhere, promises name tests that exist, settings exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    """Every relative link leads to something in the repository."""
    targets = _LINK.findall(document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_promise_names_a_test() -> None:
    """Each test that the README gives as the holder of a promise exists."""
    named = _TEST.findall((ROOT / "README.md").read_text())
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).exists() or (name and f"def {name}(" not in (ROOT / path).read_text())
    ]
    assert (missing, len(named) > 10) == ([], True)


def test_every_decision_is_listed() -> None:
    """The list of decisions names each record, and records are numbered without a gap."""
    folder = ROOT / "docs" / "adr"
    records = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert [int(name[:4]) for name in records] == list(range(1, len(records) + 1))
    listed = (folder / "README.md").read_text()
    assert [name for name in records if f"({name})" not in listed] == []


def test_every_reason_is_explained() -> None:
    """Each reason for skipping, dropping or quarantining that the code can give stands in docs/operations.md."""
    from edge_agent.cameras.base import SkipReason
    from edge_agent.capture.keeper import BACKLOG, UNENCODABLE

    ingest = "".join((ROOT / "curate" / "catalog" / name).read_text() for name in ("ingest.py", "admissions.py"))
    refusals = set(re.findall(r'return (?:None, \()?\(?"([a-z]+_[a-z_]+)", ', ingest))
    refusals |= set(re.findall(r'device_id, "([a-z_]+)", detail', ingest))
    spool = (ROOT / "edge_agent" / "spool" / "spool.py").read_text()
    drops = set(re.findall(r'return "([a-z_]+)"\n', spool)) | set(re.findall(r'"(disk_[a-z]+)"', spool))
    reasons = {*map(str, SkipReason), BACKLOG, UNENCODABLE, *refusals, *drops}
    text = (ROOT / "docs" / "operations.md").read_text()
    assert len(refusals) > 10
    assert sorted(reason for reason in reasons if f"`{reason}`" not in text) == []
