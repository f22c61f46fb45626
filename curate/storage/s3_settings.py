"""Where the bucket is and who asks, for both S3 clients: boto3's in the cloud, the lean one on devices."""

from __future__ import annotations

import configparser
import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from curate.errors import ConfigError
from curate.storage.sigv4 import Credentials


class S3Settings(BaseModel):
    """Where the bucket is and who asks. Without keys and file, boto3's own chain of credentials decides in the cloud,
    and the environment on a device.

    `credentials_file` holds `{"access_key": ..., "secret_key": ...}` as JSON, with `session_token` where there is one,
    or AWS's shared ini format.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bucket: str = Field(min_length=3)
    endpoint_url: str | None = None
    """None means AWS. With an endpoint, buckets are addressed by path."""
    region: str = "us-east-1"
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    credentials_file: Path | None = None
    connect_timeout_s: float = Field(default=5.0, gt=0)
    read_timeout_s: float = Field(default=20.0, gt=0)
    max_attempts: int = Field(default=2, ge=1)
    """Attempts inside one call; small, because callers back off by themselves."""
    max_connections: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _one_source_of_credentials(self) -> Self:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key come together")
        if self.access_key is not None and self.credentials_file is not None:
            raise ValueError("give either keys or a credentials_file, not both")
        return self


def load_credentials(settings: S3Settings) -> Credentials | None:
    """Return the credentials that the settings give or name; None when they leave it to the surroundings.

    Raises:
        ConfigError: the file cannot be read.
    """
    if settings.credentials_file is not None:
        return _load_file(settings.credentials_file)
    if settings.access_key is None or settings.secret_key is None:
        return None
    return Credentials(settings.access_key.get_secret_value(), settings.secret_key.get_secret_value())


def _load_file(path: Path) -> Credentials:
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            values = json.loads(text)
            token = values.get("session_token")
            return Credentials(
                str(values["access_key"]), str(values["secret_key"]), None if token is None else str(token)
            )
        ini = configparser.ConfigParser(interpolation=None)
        ini.read_string(text)
        section = ini["default"]
        return Credentials(
            section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token")
        )
    except (OSError, UnicodeDecodeError, ValueError, KeyError, configparser.Error) as exc:
        # The parser's message may quote the file, and the file holds a secret.
        raise ConfigError(
            f"cannot read credentials from {path}: {type(exc).__name__}",
            hint='expected {"access_key": ..., "secret_key": ...} or an AWS credentials file with [default]',
        ) from None
