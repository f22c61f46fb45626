"""The HTTP API as a whole: its parts behind one door, and every failure as a status with words.

Starlette lives here and in the modules whose routes are put together here.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curate.errors import Error
from edge_agent.capture.feedback_intake import UnknownBoxError
from edge_agent.capture.feedback_limits import FeedbackRefusedError
from edge_agent.interfaces.agent_view import AgentView
from edge_agent.interfaces.auth import TRUSTED, Doorkeeper
from edge_agent.interfaces.device_rest import device_routes
from edge_agent.interfaces.inference_rest import inference_routes
from edge_agent.interfaces.inference_service import InferenceService
from edge_agent.interfaces.metrics import CONTENT_TYPE, MetricsFacts, render_metrics
from edge_agent.interfaces.page import load_page
from edge_agent.interfaces.posted_work import PostedWork
from edge_agent.interfaces.refusals import (
    BusyError,
    InferenceFailedError,
    RefusedRequestError,
    UnknownModelError,
)
from edge_agent.interfaces.tokens import TokenGuard, prove_identity
from edge_agent.machine import read_temperatures_c

log = logging.getLogger(__name__)

_STATUS: Final[Mapping[type[Error], int]] = {
    UnknownBoxError: 422,
    UnknownModelError: 404,
    RefusedRequestError: 400,
    InferenceFailedError: 500,
    BusyError: 503,
    Error: 503,
}
"""The nearest of an error's classes decides; what is not the client's mistake may pass."""
_RETRY_AFTER_S: Final[Mapping[type[Error], int]] = {BusyError: 1, Error: 10}
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # A page from elsewhere shall not embed what the camera sees.
    (b"cross-origin-resource-policy", b"same-site"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """How the API is reached, and its bounds."""

    host: str
    max_body_bytes: int
    max_posted_bytes: int
    guard: TokenGuard | None = None
    """None: only this machine can reach it, and everybody there may."""
    secure: bool = False
    """Whether it is served over TLS."""
    extra_counters: Callable[[], Mapping[str, float]] = dict
    """Of other interfaces, for `/metrics`."""
    instance: str = field(default_factory=lambda: secrets.token_hex(16))
    """Known to this process and to whoever reads its address file: so the command line knows the agent from a stranger
    who was given its port."""


def create_app(view: AgentView, service: InferenceService, work: PostedWork, options: ApiOptions) -> Starlette:
    """Return the ASGI application."""
    front = _Front(view, options.extra_counters, options.instance)
    return Starlette(
        routes=[
            Route("/", load_page().answer),
            Route("/livez", front.live),
            Route("/healthz", front.health),
            Route("/metrics", front.metrics),
            *device_routes(view, max_body_bytes=options.max_body_bytes),
            *inference_routes(service, work, max_body_bytes=options.max_posted_bytes),
        ],
        middleware=_middleware(options),
        exception_handlers={
            HTTPException: _answer_http,
            FeedbackRefusedError: _answer_flood,
            Error: _answer_error,
            Exception: _answer_unforeseen,
        },
    )


def _middleware(options: ApiOptions) -> list[Middleware]:
    names = [options.host, "127.0.0.1", "localhost"]
    # A page in a browser on this machine can reach loopback under a name of its own (DNS rebinding). Where a token is
    # asked for, that page has none, and people reach the device by names we do not know.
    local = [Middleware(TrustedHostMiddleware, allowed_hosts=names)] if options.guard is None else []
    door = Middleware(Doorkeeper, guard=options.guard, secure=options.secure)
    return [Middleware(_SafeHeaders), *local, door]


class _Front:
    def __init__(self, view: AgentView, extra_counters: Callable[[], Mapping[str, float]], instance: str) -> None:
        self._view = view
        self._extra_counters = extra_counters
        self._instance = instance

    async def live(self, request: Request) -> Response:
        """Answer, and prove who answers when a challenge asks for that."""
        challenge = request.query_params.get("challenge")
        proof = {} if challenge is None else {"proof": prove_identity(self._instance, challenge)}
        return JSONResponse({"status": "ok"} | proof)

    def health(self, request: Request) -> Response:
        """Answer 503 with the reasons when the agent does not do its job."""
        health = self._view.health()
        reasons = {"reasons": list(health.reasons)} if request.scope.get(TRUSTED) else {}
        return JSONResponse({"status": health.status} | reasons, status_code=200 if health.is_healthy else 503)

    def metrics(self, request: Request) -> Response:  # noqa: ARG002 - Starlette passes it
        facts = MetricsFacts(
            counters=self._view.counters(),
            latencies=self._view.latencies(),
            health=self._view.health(),
            status=self._view.status(),
            extra=self._extra_counters(),
            temperature_c=max(read_temperatures_c(), default=None),
        )
        return Response(render_metrics(facts), media_type=CONTENT_TYPE)


class _SafeHeaders:
    """Adds to every answer what keeps browsers from being clever."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        await self._app(scope, receive, send_safely)


_E = TypeVar("_E", bound=Exception)
_V = TypeVar("_V")


async def _answer_http(request: Request, exc: Exception) -> Response:  # noqa: ARG001 - Starlette passes it
    known = _narrow(exc, HTTPException)
    return JSONResponse({"error": known.detail}, status_code=known.status_code, headers=known.headers)


async def _answer_flood(request: Request, exc: Exception) -> Response:  # noqa: ARG001 - Starlette passes it
    known = _narrow(exc, FeedbackRefusedError)
    headers = {"Retry-After": str(math.ceil(known.retry_after_s))}
    return JSONResponse(_told(known), status_code=429, headers=headers)


async def _answer_error(request: Request, exc: Exception) -> Response:
    known = _narrow(exc, Error)
    status = _nearest(_STATUS, known)
    if status < 500:
        return JSONResponse(_told(known), status_code=status)
    log.warning("a request was not answered", extra={"path": request.url.path, "error": str(known)})
    headers = {"Retry-After": str(_nearest(_RETRY_AFTER_S, known))} if status == 503 else None
    return JSONResponse(_told(known), status_code=status, headers=headers)


async def _answer_unforeseen(request: Request, exc: Exception) -> Response:  # noqa: ARG001 - Starlette passes it
    # Starlette raises it again after this, for the log.
    return JSONResponse({"error": "the agent failed on this request; its log says more"}, status_code=500)


def _told(error: Error) -> dict[str, Any]:
    return {"error": str(error)} | ({"hint": error.hint} if error.hint else {})


def _nearest(table: Mapping[type[Error], _V], error: Error) -> _V:
    return next(table[kind] for kind in type(error).__mro__ if kind in table)


def _narrow(exc: Exception, kind: type[_E]) -> _E:
    if not isinstance(exc, kind):
        raise exc
    return exc
