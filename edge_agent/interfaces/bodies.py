"""Reading what a client sends, within bounds of size and time."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from edge_agent.interfaces.refusals import explain_invalid

BODY_TIMEOUT_S: Final = 10.0
"""Who sends slower holds up nobody else for longer."""

_M = TypeVar("_M", bound=BaseModel)
_DRAINED_BYTES: Final = 64 * 1024
"""Of a body that is too large, this much is read and dropped: who still sends when the door closes hears no answer."""


async def read_body(request: Request, *, max_bytes: int, timeout_s: float = BODY_TIMEOUT_S) -> bytes:
    """Return the whole body.

    Raises:
        HTTPException: it is compressed (415), larger than `max_bytes` (413) or comes too slowly (408).
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "send the body without compression")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes + _DRAINED_BYTES:
        raise _too_large(max_bytes)
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= max_bytes:
                    body += chunk
                elif size > max_bytes + _DRAINED_BYTES:
                    break
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {timeout_s:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client went away") from None
    if size > max_bytes:
        raise _too_large(max_bytes)
    return bytes(body)


async def read_json(request: Request, model: type[_M], *, max_bytes: int) -> _M:
    """Return the body, read as that document.

    Raises:
        HTTPException: as `read_body`; not called application/json (415); not such a document (422).
    """
    # A cross-site page may send a form or plain text without asking first, JSON it may not.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send it as application/json")
    body = await read_body(request, max_bytes=max_bytes)
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        raise HTTPException(422, explain_invalid(exc)) from exc


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {max_bytes} bytes", headers={"Connection": "close"})
