"""Why a request is refused, in words. Each class is one status in HTTP and one in gRPC."""

from __future__ import annotations

import json
from typing import Final

from pydantic import ValidationError

from curate.errors import AgentError

_MAX_TOLD: Final = 5
"""Mistakes that are named; a document may have thousands."""


class RefusedRequestError(AgentError):
    """The request does not say what it must, or says it in a form that cannot be read."""


class UnknownModelError(RefusedRequestError):
    """The device has no model of that name and version now."""


class BusyError(AgentError):
    """As many posted requests as the device takes are under way; the camera's own frames come first."""

    retryable = True


class NoModelError(AgentError):
    """The device has no model yet."""

    retryable = True


class InferenceFailedError(AgentError):
    """The model did not answer this request."""


def explain_invalid(error: ValidationError) -> str:
    """Return what is wrong with a document, and where; never the document itself."""
    problems = json.loads(error.json(include_url=False, include_context=False, include_input=False))[:_MAX_TOLD]
    return "; ".join(f"{'.'.join(str(part) for part in p['loc']) or 'body'}: {p['msg']}" for p in problems)
