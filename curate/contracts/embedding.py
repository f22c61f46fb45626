"""An embedding on the wire: little-endian float16 in base64, a quarter of what a JSON list would cost."""

from __future__ import annotations

import base64
import binascii
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
        return cls(dim=len(raw) // BYTES_PER_VALUE, data=base64.b64encode(raw).decode())

    def raw(self) -> bytes:
        """Return the little-endian float16 bytes, `2 * dim` of them."""
        return base64.b64decode(self.data, validate=True)

    @model_validator(mode="after")
    def _length_matches(self) -> Self:
        try:
            size = len(self.raw())
        except binascii.Error as exc:
            raise ValueError("embedding data is not base64") from exc
        if size != self.dim * BYTES_PER_VALUE:
            raise ValueError(f"embedding holds {size} bytes, expected {self.dim * BYTES_PER_VALUE}")
        return self
