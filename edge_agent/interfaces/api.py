"""The HTTP API for programs on this device: what the model says, and what people answer. Only home of Starlette."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from curate.contracts.ids import SAFE_NAME
from curate.errors import AgentError
from edge_agent.capture.feedback_intake import FeedbackIntake, FeedbackRequest, UnknownBoxError
from edge_agent.capture.frame_finder import FrameFinder
from edge_agent.capture.frame_ring import LivePrediction, PredictionLog

log = logging.getLogger(__name__)

DEFAULT_LIMIT: Final = 200
MAX_LIMIT: Final = 2000
_MAX_CURSOR: Final = 2**53


def create_app(
    *,
    boot_id: str,
    status: Callable[[], Mapping[str, Any]],
    predictions: PredictionLog,
    intake: FeedbackIntake,
    frames: FrameFinder,
    host: str,
    max_body_bytes: int,
) -> Starlette:
    """Return the ASGI application. `status` gives what `GET /v1/status` answers, as JSON values."""
    api = _Api(boot_id, status, predictions, intake, frames, max_body_bytes)
    return Starlette(
        routes=[
            Route("/healthz", api.health),
            Route("/v1/status", api.status),
            Route("/v1/predictions", api.list_predictions),
            Route("/v1/predictions/{prediction_id}", api.get_prediction),
            Route("/v1/predictions/{prediction_id}/image", api.get_image),
            Route("/v1/predictions/{prediction_id}/feedback", api.post_feedback, methods=["POST"]),
        ],
        # A page in a browser on this machine can reach loopback under a name of its own (DNS rebinding).
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[host, "127.0.0.1", "localhost"])],
        exception_handlers={
            HTTPException: _answer_error,
            UnknownBoxError: _answer_unknown_box,
            AgentError: _answer_unavailable,
        },
    )


def prediction_document(prediction: LivePrediction) -> dict[str, Any]:
    """Return one prediction as the API tells it."""
    return {
        "cursor": prediction.cursor,
        "prediction_id": prediction.prediction_id,
        "camera_id": prediction.camera_id,
        "frame_index": prediction.frame_index,
        "captured_at": prediction.captured_at.isoformat(),
        "release_id": prediction.release_id,
        "kind": prediction.spec.kind,
        "scores": dict(prediction.answer.scores),
        "captured": prediction.decision.arms,
    } | prediction.describe()


class _Api:
    def __init__(
        self,
        boot_id: str,
        status: Callable[[], Mapping[str, Any]],
        predictions: PredictionLog,
        intake: FeedbackIntake,
        frames: FrameFinder,
        max_body_bytes: int,
    ) -> None:
        self._boot_id = boot_id
        self._status = status
        self._predictions = predictions
        self._intake = intake
        self._frames = frames
        self._max_body_bytes = max_body_bytes

    async def health(self, request: Request) -> Response:  # noqa: ARG002 - Starlette passes it
        return JSONResponse({"status": "ok"})

    def status(self, request: Request) -> Response:  # noqa: ARG002 - Starlette passes it
        return JSONResponse(dict(self._status()))

    async def list_predictions(self, request: Request) -> Response:
        """Answer what came after a cursor. Cursors start anew with each boot: `boot` says which one they belong to."""
        after = _whole_number(request, "after", default=0, low=0, high=_MAX_CURSOR)
        limit = _whole_number(request, "limit", default=DEFAULT_LIMIT, low=1, high=MAX_LIMIT)
        newest = self._predictions.newest_cursor
        if after > newest or request.query_params.get("boot", self._boot_id) != self._boot_id:
            after = 0
        found = self._predictions.after(after, limit)
        return JSONResponse(
            {
                "boot_id": self._boot_id,
                "newest_cursor": newest,
                "missed": found[0].cursor - after - 1 if found else 0,
                "next_cursor": found[-1].cursor if found else after,
                "predictions": [prediction_document(prediction) for prediction in found],
            }
        )

    async def get_prediction(self, request: Request) -> Response:
        prediction = self._predictions.get(_prediction_id(request))
        if prediction is None:
            raise HTTPException(404, "this prediction is unknown, or older than what the agent remembers")
        return JSONResponse(prediction_document(prediction))

    def get_image(self, request: Request) -> Response:
        """Answer the frame as it is held: what the person who taps should see."""
        found = self._frames.find(_prediction_id(request))
        if found is None:
            raise HTTPException(404, "no frame is held for this prediction: it was not kept, or it has left the device")
        # A page from elsewhere shall not embed what the camera sees.
        headers = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-site"}
        return Response(found.encoded, media_type=found.media_type, headers=headers)

    async def post_feedback(self, request: Request) -> Response:
        prediction_id = _prediction_id(request)
        body = await self._read_body(request)
        try:
            parsed = FeedbackRequest.model_validate_json(body)
        except ValidationError as exc:
            raise HTTPException(422, _explain(exc)) from exc
        feedback = await run_in_threadpool(self._intake.receive, prediction_id, parsed)
        return JSONResponse(
            {"feedback_id": feedback.feedback_id, "frame_available": feedback.frame_available}, status_code=202
        )

    async def _read_body(self, request: Request) -> bytes:
        # A cross-site page may send a form or plain text without asking first, JSON it may not.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "send the verdict as application/json")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise HTTPException(413, f"the body is larger than {self._max_body_bytes} bytes")
        return bytes(body)


_E = TypeVar("_E", bound=Exception)


async def _answer_error(request: Request, exc: Exception) -> Response:  # noqa: ARG001 - Starlette passes it
    known = _narrow(exc, HTTPException)
    return JSONResponse({"error": known.detail}, status_code=known.status_code, headers=known.headers)


async def _answer_unavailable(request: Request, exc: Exception) -> Response:  # noqa: ARG001 - Starlette passes it
    known = _narrow(exc, AgentError)
    log.warning("feedback was not stored", extra={"error": str(known)})
    return JSONResponse({"error": str(known), "hint": known.hint}, status_code=503, headers={"Retry-After": "10"})


async def _answer_unknown_box(request: Request, exc: Exception) -> Response:  # noqa: ARG001 - Starlette passes it
    return JSONResponse({"error": str(_narrow(exc, UnknownBoxError))}, status_code=422)


def _narrow(exc: Exception, kind: type[_E]) -> _E:
    if not isinstance(exc, kind):
        raise exc
    return exc


def _prediction_id(request: Request) -> str:
    value = str(request.path_params["prediction_id"])
    if not re.fullmatch(SAFE_NAME, value):
        raise HTTPException(422, "a prediction id is 1 to 128 letters, digits, _ or -")
    return value


def _whole_number(request: Request, name: str, *, default: int, low: int, high: int) -> int:
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


def _explain(error: ValidationError) -> str:
    problems = json.loads(error.json(include_url=False, include_context=False, include_input=False))
    return "; ".join(f"{'.'.join(str(part) for part in p['loc']) or 'body'}: {p['msg']}" for p in problems)
