"""Reading a request's path and query, with a clear word for what is wrong."""

from __future__ import annotations

import re

from starlette.exceptions import HTTPException
from starlette.requests import Request

from curate.contracts.ids import SAFE_NAME


def prediction_id_of(request: Request) -> str:
    """Return the path's prediction id.

    Raises:
        HTTPException: it is none.
    """
    value = str(request.path_params["prediction_id"])
    if not re.fullmatch(SAFE_NAME, value):
        raise HTTPException(422, "a prediction id is 1 to 128 letters, digits, _ or -")
    return value


def whole_number(request: Request, name: str, *, default: int, low: int, high: int) -> int:
    """Return a number of the query.

    Raises:
        HTTPException: it is none, or outside its range.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise HTTPException(422, f"`{name}` must be a whole number from {low} to {high}")
    return value
