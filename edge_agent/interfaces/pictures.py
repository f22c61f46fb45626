"""Pictures for people: the frame behind a prediction, and the newest of a camera. Few at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edge_agent.capture.frame_finder import FoundImage
from edge_agent.interfaces.agent_view import AgentView
from edge_agent.interfaces.paths import prediction_id_of

MAX_VIEWERS: Final = 8
"""Pictures on their way at once; each is held in memory until it is sent."""
_SEND_TIMEOUT_S: Final = 20.0


class Pictures:
    """Answers with frames as they are held: what the person who taps should see."""

    def __init__(self, view: AgentView) -> None:
        self._view = view
        self._viewers = threading.BoundedSemaphore(MAX_VIEWERS)

    def of_prediction(self, request: Request) -> Response:
        """Answer the frame behind a prediction."""
        return self._show(prediction_id_of(request))

    def newest(self, request: Request) -> Response:
        """Answer the newest frame of a camera; the header `X-Prediction-Id` says which."""
        camera_id = str(request.path_params["camera_id"])
        if camera_id not in self._view.camera_ids:
            raise HTTPException(404, "this device has no such camera")
        newest = self._view.predictions.newest(camera_id)
        if newest is None:
            raise HTTPException(503, "no frame of this camera was answered yet", headers={"Retry-After": "2"})
        return self._show(newest.prediction_id)

    def _show(self, prediction_id: str) -> Response:
        if not self._viewers.acquire(blocking=False):
            raise HTTPException(503, "too many pictures are on their way", headers={"Retry-After": "1"})
        try:
            found = self._view.frames.find(prediction_id)
        except Exception:
            self._viewers.release()
            raise
        if found is None:
            self._viewers.release()
            raise HTTPException(404, "no frame is held for this prediction: it was not kept, or it has left the device")
        return _Picture(found, prediction_id, self._viewers.release)


class _Picture(Response):
    """Gives its place free once it is sent, or takes too long."""

    def __init__(self, found: FoundImage, prediction_id: str, release: Callable[[], None]) -> None:
        super().__init__(found.encoded, media_type=found.media_type, headers={"X-Prediction-Id": prediction_id})
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the picture."""
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await super().__call__(scope, receive, send)
        finally:
            self._release()
