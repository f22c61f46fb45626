"""One family of errors: every failure Gleaner expects is an `Error` that says whether trying again can help."""

from __future__ import annotations


class Error(Exception):
    """Root of all expected failures.

    `retryable` is the single switch that the agent's backoff and Prefect's retry condition read;
    `hint` is the next step for a person.
    """

    retryable: bool = False

    def __init__(self, message: str, *, hint: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if retryable is not None:
            self.retryable = retryable


class ConfigError(Error):
    """A configuration file or setting is wrong."""


class ContractError(Error):
    """A wire document does not follow its schema."""


class StorageError(Error):
    """The blob store failed."""


class StorageUnavailableError(StorageError):
    """The blob store cannot be reached or answered with a passing fault."""

    retryable = True


class BlobNotFoundError(StorageError):
    """No blob lies at that key."""


class BlobExistsError(StorageError):
    """A create-only write found the key taken."""


class AccessDeniedError(StorageError):
    """The credentials do not allow this operation."""


class BlobRefusedError(StorageError):
    """The blob store refuses this one blob, or anything like it, for what it is: others may pass."""


class BlobTooLargeError(StorageError):
    """The blob is larger than whoever asked for it wants to read."""


class ClockSkewError(StorageError):
    """The blob store refuses what was signed at so wrong a time."""

    retryable = True


class CatalogError(Error):
    """The catalog refused or failed an operation."""


class SelectionError(Error):
    """A selection cannot be made from what was given."""


class AnnotationError(Error):
    """The annotation backend refused or failed an operation."""


class AnnotationUnavailableError(AnnotationError):
    """The annotation backend cannot be reached or answered with a passing fault."""

    retryable = True


class TrainingError(Error):
    """A model cannot be trained from what was given."""


class CompressionError(Error):
    """A model cannot be exported, quantised or compared."""


class ReleaseError(Error):
    """A release cannot be built, signed or published."""


class TrustError(ReleaseError):
    """A signature, a digest or a version did not prove what it claims."""


class AgentError(Error):
    """The edge agent cannot do what was asked."""


class SpoolFullError(AgentError):
    """The spool has no room for one more capture."""


class SelfCheckError(AgentError):
    """A model failed its self-check on this device."""
