"""An embedding on the wire: little-endian float16 in base64, a quarter of what a JSON list would cost."""

from __future__ import annotations

import base64
from typing import Self

from pydantic import Field, model_validator

from curate.contracts.document import Document

BYTES_PER_VALUE = 2


class Embedding(Document):
    """`dim` float16 values, little-endian, base64. numpy reads it with `np.frombuffer(e.raw(), "<f2")`."""

    dim: int = Field(ge=1, le=4096)
    data: str

    @classmethod
    def from_raw(cls, raw: bytes) -> Self:
        """Wrap little-endian float16 bytes."""
        return cls(dim=len(raw) // BYTES_PER_VALUE, data=pack_values(raw))

    def raw(self) -> bytes:
        """Return the little-endian float16 bytes, `2 * dim` of them."""
        return unpack_values(self.data)

    @model_validator(mode="after")
    def _length_matches(self) -> Self:
        verify_values(self.data, self.dim)
        return self


def pack_values(raw: bytes) -> str:
    """Return little-endian float16 bytes as they stand in a document."""
    return base64.b64encode(raw).decode()


def unpack_values(data: str) -> bytes:
    """Return the little-endian float16 bytes of a document.

    Raises:
        ValueError: it is not base64.
    """
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as exc:
        raise ValueError("the data is not base64") from exc


def verify_values(data: str, count: int) -> None:
    """Raise ValueError when the data do not hold so many values."""
    size, expected = len(unpack_values(data)), count * BYTES_PER_VALUE
    if size != expected:
        raise ValueError(f"the data hold {size} bytes, expected {expected}")
