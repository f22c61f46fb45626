"""The sections about who may talk to the agent, and how."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from edge_agent.config.base import MIB, AnchoredPath, Section

_Topic = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", max_length=64)]


class ApiConfig(Section):
    """The HTTP API, its page and its metrics. On loopback everybody may use it; beyond, whoever has a token."""

    host: str = "127.0.0.1"
    port: int = Field(default=8600, ge=0, le=65535)
    token_file: AnchoredPath | None = None
    tls_cert: AnchoredPath | None = None
    tls_key: AnchoredPath | None = None
    max_body_bytes: int = Field(default=16 * 1024, ge=256)
    recent_predictions: int = Field(default=4096, ge=2000)
    max_silence_s: float = Field(default=60.0, gt=0.0)
    max_posted_bytes: int = Field(default=8 * MIB, ge=1024, le=256 * MIB)
    max_posted_pixels: int = Field(default=8_300_000, ge=1024)
    max_posts_waiting: int = Field(default=3, ge=0, le=64)

    @field_validator("host")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        ipaddress.IPv4Address(value)
        return value

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.IPv4Address(self.host).is_loopback

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if not self.is_loopback and self.token_file is None:
            raise ValueError("beyond loopback a `token_file` is needed; 127.0.0.1 needs none")
        if (self.tls_cert is None) is not (self.tls_key is None):
            raise ValueError("`tls_cert` and `tls_key` go together")
        return self


class GrpcConfig(Section):
    """The Open Inference Protocol over gRPC, on the API's address, with its tokens and its certificate."""

    port: int | None = Field(default=None, ge=0, le=65535)


class MqttConfig(Section):
    """What is told to an MQTT broker, and to Home Assistant through it."""

    host: str | None = Field(default=None, min_length=1, max_length=253)
    port: int = Field(default=1883, ge=1, le=65535)
    username: str | None = Field(default=None, min_length=1, max_length=256)
    password_file: AnchoredPath | None = None
    tls: bool = False
    ca_file: AnchoredPath | None = None
    topic_prefix: _Topic = "gleaner"
    discovery_prefix: _Topic | None = "homeassistant"
    prediction_interval_s: float = Field(default=1.0, ge=0.05, le=3600.0)
    state_interval_s: float = Field(default=30.0, ge=1.0, le=3600.0)
    image_interval_s: float | None = Field(default=None, ge=0.5, le=3600.0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.password_file is not None and self.username is None:
            raise ValueError("`password_file` needs a `username`")
        if self.ca_file is not None and not self.tls:
            raise ValueError("`ca_file` needs `tls: true`")
        return self
