"""How much a proof by many cases does: a thin share in `make test`, all of it in `make nightly`."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

NIGHTLY = os.environ.get("GLEANER_NIGHTLY") == "1"

Tell = Callable[[str], None]


def cases(*, thin: int, full: int) -> int:
    """Return how many cases to run tonight."""
    return full if NIGHTLY else thin


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Say a count out loud although pytest swallows what tests print: the README quotes these lines."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n  [{text}]", end="")

    return say
