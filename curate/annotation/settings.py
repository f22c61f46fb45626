"""How the annotation tool is reached. Importing this loads no client."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from curate.errors import ConfigError


class S3Keys(BaseModel):
    """The pair of keys in a credentials file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    access_key: str
    secret_key: SecretStr


class ImageStorageSettings(BaseModel):
    """The bucket as Label Studio and the annotator's browser see it.

    Keys are given directly or in `credentials_file`, JSON with `access_key` and `secret_key`; they only need to read
    under `prefix`. Without keys Label Studio uses its own machine's credentials.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bucket: str = Field(min_length=3)
    endpoint_url: str | None = None
    """None means AWS."""
    region: str = "us-east-1"
    prefix: str = "captures/"
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    credentials_file: Path | None = None
    presign_ttl_min: int = Field(default=15, ge=1)
    """How long the address that a browser gets for one image works."""

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Self:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key come together")
        if self.access_key is not None and self.credentials_file is not None:
            raise ValueError("give either keys or a credentials_file, not both")
        return self

    def load_keys(self) -> S3Keys | None:
        """Return the keys Label Studio shall use, None to leave them to it.

        Raises:
            ConfigError: the credentials file cannot be used.
        """
        if self.access_key is not None and self.secret_key is not None:
            return S3Keys(access_key=self.access_key.get_secret_value(), secret_key=self.secret_key)
        if self.credentials_file is None:
            return None
        try:
            return S3Keys.model_validate_json(self.credentials_file.read_bytes())
        except (OSError, ValidationError) as exc:
            # The parser's message may quote the file.
            raise ConfigError(
                f"cannot read the keys for images from {self.credentials_file}: {type(exc).__name__}",
                hint='it holds {"access_key": ..., "secret_key": ...}',
            ) from None

    def fingerprint(self, keys: S3Keys | None) -> str:
        """Return a short digest that changes with any setting or key: Label Studio never shows the keys it holds."""
        facts = self.model_dump(mode="json", exclude={"access_key", "secret_key", "credentials_file"})
        pair = [keys.access_key, keys.secret_key.get_secret_value()] if keys else []
        return hashlib.sha256(json.dumps([facts, pair], sort_keys=True).encode()).hexdigest()[:12]


class LabelStudioSettings(BaseModel):
    """One Label Studio project. The token is given by `token_file` or, from the environment, as `token`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern=r"^https?://[^\s/]+")
    token: SecretStr | None = None
    token_file: Path | None = None
    project_title: str = Field(default="Gleaner", min_length=3, max_length=50)
    storage: ImageStorageSettings | None = None
    """None leaves the project's image storage to a person."""
    timeout_s: float = Field(default=30.0, gt=0)
    send_timeout_s: float = Field(default=120.0, gt=0)
    """Long: an answer that comes after it leaves the send in doubt."""
    page_size: int = Field(default=200, ge=1, le=1000)
    overlap_s: float = Field(default=20.0, ge=0)
    """How far before the watermark a poll begins: answers are stamped before they are committed."""

    @model_validator(mode="after")
    def _one_source_of_the_token(self) -> Self:
        if (self.token is None) == (self.token_file is None):
            raise ValueError("give either token or token_file")
        return self

    def load_token(self) -> str:
        """Return the access token.

        Raises:
            ConfigError: the token file cannot be read or is empty.
        """
        if self.token is not None:
            return self.token.get_secret_value()
        try:
            token = self.token_file.read_text().strip() if self.token_file else ""
        except OSError as exc:
            raise ConfigError(f"cannot read the Label Studio token: {exc}") from exc
        if not token:
            raise ConfigError(f"{self.token_file} holds no token", hint="it holds nothing but a Label Studio token")
        return token
