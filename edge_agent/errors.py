"""Failures that only the camera knows."""

from __future__ import annotations

from curate.errors import AgentError


class CorruptFileError(AgentError):
    """A file the agent wrote no longer says what it said."""


class SpoolUnavailableError(AgentError):
    """The disk under the spool refused; it may have room again later."""

    retryable = True


class RedactionError(AgentError):
    """A picture could not be redacted, so it must not be kept or shown."""
