"""Every interface of one agent, wired together: what is off is not even imported."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from curate.errors import ConfigError, Error
from edge_agent.config.agent import AgentConfig
from edge_agent.interfaces.agent_view import AgentView
from edge_agent.interfaces.api import ApiOptions, create_app
from edge_agent.interfaces.api_server import ApiServer
from edge_agent.interfaces.inference_service import InferenceService
from edge_agent.interfaces.posted_work import PostedWork
from edge_agent.interfaces.tokens import TokenGuard, load_tokens

log = logging.getLogger(__name__)


class _GrpcServer(Protocol):
    port: int

    def start(self) -> None: ...

    def stop(self, timeout_s: float) -> None: ...


class _Bridge(Protocol):
    def counters(self) -> Mapping[str, float]: ...

    def run(self, stop: threading.Event) -> None: ...


class Interfaces:
    """HTTP always; gRPC and MQTT when the configuration says so."""

    def __init__(self, config: AgentConfig, view: AgentView, service: InferenceService) -> None:
        """Bind every port at once.

        Raises:
            Error: a port, a token file, a certificate or an optional library is missing.
        """
        api = config.api
        guard = None if api.token_file is None else TokenGuard(load_tokens(api.token_file))
        if guard is not None and api.tls_cert is None and not api.is_loopback:
            log.warning("tokens and pictures cross the network in the open: set api.tls_cert and api.tls_key")
        self._work = PostedWork(api.max_posts_waiting)
        self._bridge = _open_bridge(config, view, service.agent_version)
        self._grpc = _open_grpc(config, service, self._work, guard)
        options = ApiOptions(
            host=api.host,
            max_body_bytes=api.max_body_bytes,
            max_posted_bytes=api.max_posted_bytes,
            guard=guard,
            secure=api.tls_cert is not None,
            extra_counters=self._bridge.counters if self._bridge else dict,
        )
        try:
            self._api = ApiServer(
                create_app(view, service, self._work, options),
                host=api.host,
                port=api.port,
                address_file=config.state_dir / "api.json",
                instance=options.instance,
                tls_cert=api.tls_cert,
                tls_key=api.tls_key,
            )
        except Error:
            if self._grpc is not None:
                self._grpc.stop(0.0)
            raise

    @property
    def api_port(self) -> int:
        """Where HTTP listens."""
        return self._api.port

    @property
    def grpc_port(self) -> int | None:
        """Where gRPC listens, if it does."""
        return None if self._grpc is None else self._grpc.port

    @property
    def loops(self) -> Mapping[str, Callable[[threading.Event], None]]:
        """What needs a thread of its own until it is told to stop, by name."""
        return {"mqtt": self._bridge.run} if self._bridge else {}

    def start(self) -> None:
        """Begin to answer."""
        self._api.start()
        if self._grpc is not None:
            self._grpc.start()

    def stop(self, timeout_s: float) -> None:
        """Stop answering."""
        if self._grpc is not None:
            self._grpc.stop(timeout_s / 4)
        self._api.stop(timeout_s)
        self._work.stop()


def _open_grpc(
    config: AgentConfig, service: InferenceService, work: PostedWork, guard: TokenGuard | None
) -> _GrpcServer | None:
    if config.grpc.port is None:
        return None
    try:
        from edge_agent.interfaces.inference_grpc import GrpcAddress, InferenceGrpcServer  # noqa: PLC0415 - optional
    except ImportError as exc:
        raise _missing("grpc.port", "grpc", exc) from exc
    api = config.api
    try:
        certificate = api.tls_cert.read_bytes() if api.tls_cert else None
        key = api.tls_key.read_bytes() if api.tls_key else None
    except OSError as exc:
        raise ConfigError(f"the certificate cannot be used: {exc}") from exc
    return InferenceGrpcServer(
        service,
        work,
        GrpcAddress(api.host, config.grpc.port, certificate, key),
        guard=guard,
        max_message_bytes=api.max_posted_bytes,
    )


def _open_bridge(config: AgentConfig, view: AgentView, agent_version: str) -> _Bridge | None:
    if config.mqtt.host is None:
        return None
    try:
        from edge_agent.interfaces.mqtt import MqttBridge  # noqa: PLC0415 - optional
    except ImportError as exc:
        raise _missing("mqtt.host", "mqtt", exc) from exc
    return MqttBridge(config.mqtt, view, agent_version=agent_version, max_message_bytes=config.api.max_body_bytes)


def _missing(setting: str, extra: str, exc: ImportError) -> ConfigError:
    return ConfigError(
        f"{setting} is set, and what it needs is not installed: {exc}",
        hint=f"pip install 'edge-gleaner[agent,{extra}]', or take {setting} out.",
    )
