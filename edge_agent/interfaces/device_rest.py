"""Everything under `/v1`: what the model says, what became of it, and what people answer."""

from __future__ import annotations

from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, StrictBool, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from edge_agent.capture.feedback_intake import FeedbackRequest
from edge_agent.capture.frame_ring import LivePrediction
from edge_agent.interfaces.agent_view import AgentView, prediction_document
from edge_agent.interfaces.bodies import read_json
from edge_agent.interfaces.paths import prediction_id_of, whole_number
from edge_agent.interfaces.pictures import Pictures

DEFAULT_LIMIT: Final = 200
MAX_LIMIT: Final = 2000
_MAX_CURSOR: Final = 2**53


class SwitchChange(BaseModel):
    """The body of `PUT /v1/switches`: the switches to flip."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    capture_allowed: StrictBool | None = None
    metered: StrictBool | None = None

    @model_validator(mode="after")
    def _flips_something(self) -> Self:
        if self.capture_allowed is None and self.metered is None:
            raise ValueError("name `capture_allowed`, `metered` or both")
        return self


def device_routes(view: AgentView, *, max_body_bytes: int) -> list[BaseRoute]:
    """Return everything under `/v1`."""
    rest = _DeviceRest(view, max_body_bytes)
    pictures = Pictures(view)
    one = "/v1/predictions/{prediction_id}"
    return [
        Route("/v1/status", rest.status),
        Route("/v1/cameras", rest.cameras),
        Route("/v1/cameras/{camera_id}/live.jpg", pictures.newest),
        Route("/v1/predictions", rest.list_predictions),
        Route(one, rest.get_prediction),
        Route(f"{one}/image", pictures.of_prediction),
        Route(f"{one}/explain", rest.explain),
        Route(f"{one}/feedback", rest.post_feedback, methods=["POST"]),
        Route("/v1/captures/{prediction_id}", rest.get_capture),
        Route("/v1/switches", rest.get_switches),
        Route("/v1/switches", rest.put_switches, methods=["PUT"]),
    ]


class _DeviceRest:
    def __init__(self, view: AgentView, max_body_bytes: int) -> None:
        self._view = view
        self._max_body_bytes = max_body_bytes

    def status(self, request: Request) -> Response:  # noqa: ARG002 - Starlette passes it
        return JSONResponse(dict(self._view.status()))

    def cameras(self, request: Request) -> Response:  # noqa: ARG002 - Starlette passes it
        """Answer how each camera stands, with its newest prediction."""
        facts = {camera["camera_id"]: camera for camera in self._view.status().get("cameras", ())}
        return JSONResponse({"cameras": [self._camera(name, facts.get(name, {})) for name in self._view.camera_ids]})

    def _camera(self, camera_id: str, facts: dict[str, Any]) -> dict[str, Any]:
        newest = self._view.predictions.newest(camera_id)
        return {"camera_id": camera_id, **facts, "newest": None if newest is None else prediction_document(newest)}

    async def list_predictions(self, request: Request) -> Response:
        """Answer what came after a cursor. Cursors start anew with each boot: `boot` says which one they belong to."""
        after = whole_number(request, "after", default=0, low=0, high=_MAX_CURSOR)
        limit = whole_number(request, "limit", default=DEFAULT_LIMIT, low=1, high=MAX_LIMIT)
        predictions, boot_id = self._view.predictions, self._view.boot_id
        newest = predictions.newest_cursor
        if after > newest or request.query_params.get("boot", boot_id) != boot_id:
            after = 0
        found = predictions.after(after, limit)
        return JSONResponse(
            {
                "boot_id": boot_id,
                "newest_cursor": newest,
                "missed": found[0].cursor - after - 1 if found else 0,
                "next_cursor": found[-1].cursor if found else after,
                "predictions": [prediction_document(prediction) for prediction in found],
            }
        )

    async def get_prediction(self, request: Request) -> Response:
        return JSONResponse(prediction_document(self._find(request)))

    async def explain(self, request: Request) -> Response:
        """Answer why the frame was kept or not."""
        return JSONResponse(dict(self._view.explain(self._find(request))))

    async def post_feedback(self, request: Request) -> Response:
        prediction_id = prediction_id_of(request)
        body = await read_json(request, FeedbackRequest, max_bytes=self._max_body_bytes)
        feedback = await run_in_threadpool(self._view.intake.receive, prediction_id, body)
        return JSONResponse(
            {"feedback_id": feedback.feedback_id, "frame_available": feedback.frame_available}, status_code=202
        )

    def get_capture(self, request: Request) -> Response:
        """Answer what became of the prediction's frame; `unknown` is an answer."""
        prediction_id = prediction_id_of(request)
        return JSONResponse({"prediction_id": prediction_id, "stage": self._view.captures.find(prediction_id).value})

    def get_switches(self, request: Request) -> Response:  # noqa: ARG002 - Starlette passes it
        return JSONResponse(self._view.switches.state().model_dump(mode="json"))

    async def put_switches(self, request: Request) -> Response:
        """Flip switches; durable when it answers."""
        change = await read_json(request, SwitchChange, max_bytes=self._max_body_bytes)
        state = await run_in_threadpool(
            self._view.switches.flip, capture_allowed=change.capture_allowed, metered=change.metered
        )
        return JSONResponse(state.model_dump(mode="json"))

    def _find(self, request: Request) -> LivePrediction:
        prediction = self._view.predictions.get(prediction_id_of(request))
        if prediction is None:
            raise HTTPException(404, "this prediction is unknown, or older than what the agent remembers")
        return prediction
