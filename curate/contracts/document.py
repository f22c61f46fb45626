"""The base of every wire document: frozen, versioned, tolerant of fields it does not know."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, ValidationError

from curate.errors import ContractError

_MAX_PROBLEM_LENGTH = 500


def _as_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError("the time lies outside the calendar in UTC") from exc


UtcDatetime = Annotated[AwareDatetime, AfterValidator(_as_utc)]


class Document(BaseModel):
    """A value that crosses the wire. Unknown fields are ignored: an old camera must read a new document."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """Serialise to UTF-8 JSON with a stable field order."""
        return self.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Parse a document.

        Raises:
            ContractError: the bytes are not JSON or do not follow the schema.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            problem = f"{where}: {first['msg']}"[:_MAX_PROBLEM_LENGTH]  # pydantic may quote what it refuses
            raise ContractError(f"not a valid {cls.__name__}: {problem} ({exc.error_count()} problem(s))") from exc
