"""What every section of the configuration shares: no unknown keys, paths that start at the file's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationInfo

MIB = 1024 * 1024

ShortName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""A device or camera name: short enough that every id built from it is still a safe object key."""


def anchor(path: Path, info: ValidationInfo) -> Path:
    """Return where a relative path of the configuration starts: its file's folder, when the reader told it."""
    context: dict[str, Path] = info.context or {}
    return context.get("base", Path()) / path.expanduser()


AnchoredPath = Annotated[Path, AfterValidator(anchor)]
"""A path that, when relative, starts at the configuration file's folder."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
