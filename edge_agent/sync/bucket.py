"""From configuration to a blob store, and a word on whether it answers."""

from __future__ import annotations

from pydantic import ValidationError

from curate.contracts.paths import desired_key
from curate.errors import AccessDeniedError, BlobNotFoundError, ConfigError, StorageError
from curate.storage.local import LocalBlobStore
from curate.storage.ports import BlobStore, ServerClock
from curate.storage.s3_lean import LeanS3BlobStore
from curate.storage.s3_settings import S3Settings
from edge_agent.config.sections import BucketConfig


def open_store(config: BucketConfig, clock: ServerClock | None = None) -> BlobStore:
    """Build the store the configuration names. Does not talk to it yet.

    With a `clock` requests are signed at its time, and the bucket's answers teach it.

    Raises:
        ConfigError: a setting or the credentials file is not usable.
    """
    if config.kind == "folder" and config.path is not None:
        return LocalBlobStore(config.path)
    try:
        settings = S3Settings(
            bucket=config.bucket or "",
            endpoint_url=config.endpoint_url,
            region=config.region,
            credentials_file=config.credentials_file,
            connect_timeout_s=config.connect_timeout_s,
            read_timeout_s=config.read_timeout_s,
        )
    except ValidationError as exc:
        problem = exc.errors(include_url=False, include_input=False)[0]
        raise ConfigError(f"bucket: {'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}") from exc
    return LeanS3BlobStore(settings, clock)


def describe_access(store: BlobStore, device_id: str) -> str:
    """Ask for the device's assignment and say in words what came back.

    Raises:
        StorageError: the bucket cannot be reached or refused; message and hint say what to do.
    """
    key = desired_key(device_id)
    try:
        store.get(key, max_bytes=1024 * 1024)
    except BlobNotFoundError:
        return f"the bucket answers; nothing is assigned to {device_id} yet ({key} does not exist)"
    except AccessDeniedError as exc:
        raise AccessDeniedError(
            f"the bucket answers, but {device_id} may not read {key}: {exc}",
            hint="Check the credentials, and that they are this device's own.",
        ) from exc
    except StorageError as exc:
        raise StorageError(
            f"the bucket does not answer: {exc}",
            hint="Check endpoint_url, the network and this machine's clock.",
            retryable=exc.retryable,
        ) from exc
    return f"the bucket answers; {device_id} has an assignment"
