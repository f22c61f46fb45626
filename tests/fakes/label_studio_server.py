"""A real Label Studio as its administrator sees it, and a person who answers there."""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from curate.annotation.formats import FORMATS
from curate.annotation.label_studio import LabelStudioBackend
from curate.annotation.models import AnnotationTask
from curate.annotation.settings import LabelStudioSettings
from curate.catalog.labels import LabelSpec
from curate.contracts.prediction import ClassificationPrediction
from flows.sandbox.stack_config import label_studio_config
from flows.sandbox.stack_state import Stack

LABELS = LabelSpec(class_names=("coat", "bag", "boot"), height=32, width=32)


def picture() -> bytes:
    """Return a small PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 40, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def question(number: int, *, release: str = "r-1", bucket: str = "gleaner") -> AnnotationTask:
    """Return the task about sample `s-<number>`; the device guessed 'bag'."""
    return AnnotationTask(
        sample_id=f"s-{number}",
        image_url=f"s3://{bucket}/captures/cam-1/{number}.png",
        rank=number,
        width=32,
        height=32,
        pre_annotation=ClassificationPrediction(
            prediction_id=f"p-{number}", release_id=release, probabilities=[0.2, 0.7, 0.1]
        ),
        context={"camera": "cam-1", "frame": str(number), "captured_at": "2026-03-01T12:00:00+00:00"},
    )


@dataclass(frozen=True)
class LabelStudioServer:
    """The running server as its administrator sees it."""

    stack: Stack
    opened: list[LabelStudioBackend] = field(default_factory=list)

    def settings(self, **changes: Any) -> LabelStudioSettings:
        """Settings for a project of its own."""
        fresh = {"project_title": f"Test {uuid.uuid4().hex[:12]}"}
        return LabelStudioSettings.model_validate(label_studio_config(self.stack) | fresh | changes)

    def backend(self, **changes: Any) -> LabelStudioBackend:
        """A backend on a project of its own, closed with the server."""
        self.opened.append(LabelStudioBackend(self.settings(**changes), LABELS))
        return self.opened[-1]

    def client(self) -> httpx.Client:
        """A client with the administrator's token."""
        headers = {"Authorization": f"Token {self.stack.secrets.label_studio_token}"}
        return httpx.Client(base_url=self.stack.label_studio_url, headers=headers, timeout=30.0)

    def answer(self, backend_task_id: str, label: dict[str, Any] | None) -> None:
        """Answer as a person would in the browser; None skips. A second answer replaces the first."""
        regions = FORMATS["classification"].encode(label) if label else []
        self.post_answer(backend_task_id, {"result": regions, "was_cancelled": label is None})

    def post_answer(self, backend_task_id: str, body: dict[str, Any]) -> None:
        """Save an annotation, over the one that is there."""
        with self.client() as client:
            known = client.get(f"/api/tasks/{backend_task_id}/").raise_for_status().json()["annotations"]
            if known:
                client.patch(f"/api/annotations/{known[0]['id']}/", json=body).raise_for_status()
            else:
                client.post(f"/api/tasks/{backend_task_id}/annotations/", json=body).raise_for_status()
