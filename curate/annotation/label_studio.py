"""The annotation backend over Label Studio. The only home of its client."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from json import JSONDecodeError
from typing import Any

import httpx
from label_studio_sdk.base_client import LabelStudioBase
from label_studio_sdk.client import LabelStudio
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.core.parse_error import ParsingError
from label_studio_sdk.core.request_options import RequestOptions
from pydantic import AwareDatetime, BaseModel, ValidationError

from curate.annotation.formats import format_of, image_size, import_request
from curate.annotation.models import AnnotationTask, BackendAnnotation, CollectedAnnotations, SentTask
from curate.annotation.settings import ImageStorageSettings, LabelStudioSettings
from curate.catalog.labels import LabelSpec
from curate.errors import AnnotationError, AnnotationUnavailableError

_logger = logging.getLogger(__name__)

_STORAGE_TITLE = "Gleaner captures"
_FIND_CHUNK = 50
"""Samples looked up in one request: the filter travels in the address, which servers limit to about 8 kB."""
_STORAGE_HINT = (
    "Label Studio wants to reach the bucket and see at least one capture in it; its log says what is missing"
)
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_TASK_FIELDS = "id,data,updated_at"
_ANSWER_FIELDS = "id,data,updated_at,annotations,result,was_cancelled,completed_by,created_at,lead_time"
"""Naming the fields, those of the annotations too, makes a page four times faster."""
_PASSING_STATUS = frozenset({408, 409, 429})


class _Answer(BaseModel):
    """An annotation as the API returns it."""

    id: int
    result: list[dict[str, Any]] | None = None
    was_cancelled: bool = False
    completed_by: int | dict[str, Any] | None = None
    created_at: AwareDatetime
    updated_at: AwareDatetime
    lead_time: float | None = None


class _Task(BaseModel):
    """A task as the API returns it; the client's own types differ from call to call."""

    id: int
    data: dict[str, Any]
    updated_at: AwareDatetime
    annotations: list[_Answer] | None = None
    """Label Studio also counts them, but loses count when a project is deleted meanwhile: the answers are the truth."""

    @property
    def sample_id(self) -> str | None:
        """The sample it asks about; None for a task somebody else put into the project."""
        return self.data.get("sample_id")


class LabelStudioBackend:
    """An `AnnotationBackend` in one Label Studio project, found by its title.

    Raises AnnotationUnavailableError when the server cannot be reached or fails in passing, AnnotationError when
    it refuses.
    """

    def __init__(self, settings: LabelStudioSettings, labels: LabelSpec) -> None:
        self._settings = settings
        self._labels = labels
        self._format = format_of(labels)
        self._project_id: int | None = None
        self._http = httpx.Client(timeout=settings.timeout_s, follow_redirects=True)
        # No hidden retries: a repeated POST makes a second task, and callers back off by themselves.
        self._client: LabelStudioBase = LabelStudio(  # type: ignore[no-untyped-call]  # its __init__ has no types
            base_url=settings.url.rstrip("/"),
            api_key=settings.load_token(),
            timeout=settings.timeout_s,
            max_retries=0,
            httpx_client=self._http,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ensure_project(self) -> str:
        """Create or find the project and bring its configuration and storage up to date; return its address."""
        with _translated("preparing the project"):
            project_id = self._find_project() or self._create_project()
            self._update_project(project_id)
        if self._settings.storage is not None:
            with _translated("connecting the bucket", hint=_STORAGE_HINT):
                self._ensure_storage(project_id, self._settings.storage)
        self._project_id = project_id
        return f"{self._settings.url.rstrip('/')}/projects/{project_id}/data"

    def find_tasks(self, sample_ids: Sequence[str]) -> list[SentTask]:
        """Return the tasks that ask about these samples, oldest first."""
        found: list[_Task] = []
        for start in range(0, len(sample_ids), _FIND_CHUNK):
            chunk = list(sample_ids[start : start + _FIND_CHUNK])
            found += self._list_tasks([_condition("data.sample_id", "in_list", "List", chunk)])
        return [_sent(task) for task in sorted(found, key=lambda task: task.id) if task.sample_id is not None]

    def send_tasks(self, tasks: Sequence[AnnotationTask]) -> list[SentTask]:
        """Import the tasks in one request. After any error some or all of them may be there: look before resending."""
        if not tasks:
            return []
        if self._project_id is None:
            self.ensure_project()
        requests: list[Any] = [import_request(task, self._labels) for task in tasks]
        options = RequestOptions(max_retries=0, timeout=self._settings.send_timeout_s)
        with _translated("sending tasks"):
            answer = self._client.projects.import_tasks(
                id=self._project() or 0, request=requests, return_task_ids=True, request_options=options
            )
        task_ids = getattr(answer, "task_ids", None) or []
        if len(task_ids) != len(tasks):
            raise AnnotationUnavailableError(
                f"Label Studio answered {len(task_ids)} ids for {len(tasks)} tasks", hint="look up what it holds"
            )
        return [SentTask(task.sample_id, str(task_id)) for task, task_id in zip(tasks, task_ids, strict=True)]

    def delete_tasks(self, backend_task_ids: Sequence[str]) -> None:
        """Remove the tasks; those that are gone already count as removed."""
        for task_id in backend_task_ids:
            with _translated(f"deleting task {task_id}"):
                try:
                    self._client.tasks.delete(id=task_id)
                except ApiError as exc:
                    if exc.status_code != 404:
                        raise

    def collect(self, since: datetime | None) -> CollectedAnnotations:
        """Return the answers of tasks changed since a little before `since`.

        The watermark is by the server's clock: the newest change it knew before the tasks were read, so a change
        during the reading is read again by the next poll. An answer that cannot be read counts as a skip.
        """
        horizon = self._newest_change()
        if horizon is None:
            return CollectedAnnotations((), since or _BEGINNING)
        start = max(since - timedelta(seconds=self._settings.overlap_s), _BEGINNING) if since else _BEGINNING
        changed = self._list_tasks([_changed_since(start)])
        annotations = [self._annotation(task, answer) for task in changed for answer in task.annotations or ()]
        watermark = max(since, horizon) if since is not None else horizon
        return CollectedAnnotations(tuple(annotation for annotation in annotations if annotation), watermark)

    def count_tasks(self) -> int:
        """Return how many tasks the project holds."""
        with _translated("counting tasks"):
            return self._page({}, page_size=1)[1]

    def _project(self) -> int | None:
        """Reading must not create: before the first send there may be neither a project nor a capture."""
        if self._project_id is None:
            self._project_id = self._find_project()
        return self._project_id

    def _find_project(self) -> int | None:
        """Titles are not unique: the oldest project with ours is the one, for every process."""
        title = self._settings.project_title
        found: list[Any] = self._client.projects.list(title=title, include="id,title", page_size=100).items or []
        return min((int(project.id) for project in found if project.title == title), default=None)

    def _create_project(self) -> int:
        project: Any = self._client.projects.create(title=self._settings.project_title, **self._wanted())
        created = int(project.id)
        oldest = self._find_project()
        if oldest is None or oldest == created:
            return created
        # Another process created it at the same time. Ours is put aside, not deleted: while Label Studio deletes a
        # project it counts nobody's answers, and after two deletions at once it never does again.
        self._client.projects.update(id=created, title=f"{self._settings.project_title[:30]} (unused, {created})")
        return oldest

    def _wanted(self) -> dict[str, Any]:
        return {
            "description": "Camera frames that Gleaner asks about. Managed by Gleaner: sent and collected by itself.",
            "label_config": self._format.label_config(self._labels),
            "expert_instruction": self._format.instruction,
            "show_instruction": False,
            # The queue is sent in order of rank. "Uncertainty sampling" turns random with a second annotator.
            "sampling": "Sequential sampling",
            "maximum_annotations": 1,
            "show_collab_predictions": True,
            "show_skip_button": True,
            # For boxes "nothing is there" is an answer. A page that needs one says so itself.
            "enable_empty_annotation": True,
            # One person's "cannot tell" settles the question, as it does in the ledger.
            "skip_queue": "IGNORE_SKIPPED",
        }

    def _update_project(self, project_id: int) -> None:
        project = self._client.projects.get(id=project_id)
        changes = {name: value for name, value in self._wanted().items() if getattr(project, name, None) != value}
        if changes:
            _logger.info("updating the Label Studio project: %s", ", ".join(changes))
            self._client.projects.update(id=project_id, **changes)

    def _ensure_storage(self, project_id: int, storage: ImageStorageSettings) -> None:
        """Let Label Studio resolve `s3://` addresses when an image is viewed. Never synchronised: we send the tasks."""
        keys = storage.load_keys()
        mark = f"Managed by Gleaner, {storage.fingerprint(keys)}"
        wanted: dict[str, Any] = {
            "title": _STORAGE_TITLE,
            "description": mark,
            "bucket": storage.bucket,
            "prefix": storage.prefix,
            "region_name": storage.region,
            "use_blob_urls": True,
            "presign": True,
            "presign_ttl": storage.presign_ttl_min,
        }
        if storage.endpoint_url is not None:
            wanted["s3endpoint"] = storage.endpoint_url
        if keys is not None:
            wanted["aws_access_key_id"] = keys.access_key
            wanted["aws_secret_access_key"] = keys.secret_key.get_secret_value()
        ours = [s for s in self._client.import_storage.s3.list(project=project_id) if s.title == _STORAGE_TITLE]
        if not ours:
            self._client.import_storage.s3.create(project=project_id, **wanted)
        elif (oldest := min(ours, key=lambda each: each.id)).description != mark:
            self._client.import_storage.s3.update(id=oldest.id, project=project_id, **wanted)

    def _newest_change(self) -> datetime | None:
        with _translated("looking for changes"):
            tasks, _ = self._page({"ordering": ["-tasks:updated_at"]}, page_size=1)
        return tasks[0].updated_at if tasks else None

    def _list_tasks(self, conditions: list[dict[str, Any]]) -> list[_Task]:
        """Read all pages, with the answers. Ordered by id, a task that changes meanwhile does not jump pages."""
        query = {"filters": {"conjunction": "and", "items": conditions}, "ordering": ["tasks:id"]}
        size = self._settings.page_size
        tasks: dict[int, _Task] = {}
        number, total = 1, 1
        with _translated("listing tasks"):
            while (number - 1) * size < total:
                page, total = self._page(query, page_size=size, number=number, with_answers=True)
                tasks.update({task.id: task for task in page})
                number += 1
        return list(tasks.values())

    def _page(
        self, query: dict[str, Any], *, page_size: int, number: int = 1, with_answers: bool = False
    ) -> tuple[list[_Task], int]:
        """Return one page and how many tasks there are on all pages."""
        if self._project() is None:
            return [], 0
        page: Any = self._client.tasks.list(
            project=self._project(),
            fields="all" if with_answers else "task_only",
            include=_ANSWER_FIELDS if with_answers else _TASK_FIELDS,
            page=number,
            page_size=page_size,
            query=json.dumps(query),
        )
        return [_Task.model_validate(item.model_dump()) for item in page.items or []], int(page.response.total)

    def _annotation(self, task: _Task, answer: _Answer) -> BackendAnnotation | None:
        if task.sample_id is None:
            return None
        label = None if answer.was_cancelled else self._read(task, answer)
        who = answer.completed_by.get("id") if isinstance(answer.completed_by, dict) else answer.completed_by
        return BackendAnnotation(
            annotation_id=str(answer.id),
            backend_task_id=str(task.id),
            sample_id=task.sample_id,
            annotator=str(who) if who is not None else None,
            label=label,
            was_cancelled=label is None,
            created_at=answer.created_at,
            updated_at=answer.updated_at,
            lead_time_s=answer.lead_time,
        )

    def _read(self, task: _Task, answer: _Answer) -> dict[str, Any] | None:
        """One bad answer must not stop the others, and the round must not wait for it forever."""
        try:
            return self._format.parse(answer.result or [], self._labels, image_size(task.data))
        except AnnotationError as exc:
            _logger.warning("task %s, answer %s counts as skipped until it is corrected: %s", task.id, answer.id, exc)
            return None


def _sent(task: _Task) -> SentTask:
    return SentTask(str(task.sample_id), str(task.id), is_answered=bool(task.annotations))


def _condition(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def _changed_since(moment: datetime) -> dict[str, Any]:
    text = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return _condition("updated_at", "greater_or_equal", "Datetime", text)


@contextmanager
def _translated(action: str, hint: str | None = None) -> Iterator[None]:
    """Turn the client's failures into ours."""
    try:
        yield
    except ApiError as exc:
        raise _refusal(action, exc, hint) from exc
    except httpx.HTTPError as exc:
        raise AnnotationUnavailableError(
            f"{action}: Label Studio cannot be reached ({type(exc).__name__}: {exc})", hint="is it running?"
        ) from exc
    except (ParsingError, ValidationError, JSONDecodeError) as exc:
        raise AnnotationError(
            f"{action}: Label Studio answered something unknown: {exc}", hint="is this version of it supported?"
        ) from exc


def _refusal(action: str, error: ApiError, hint: str | None) -> AnnotationError:
    status = error.status_code or 0
    if status >= 500 or status in _PASSING_STATUS or status < 400:  # below 400: a page that is not the API's
        return AnnotationUnavailableError(f"{action}: Label Studio failed with {status}", hint=hint)
    if status in {401, 403}:
        return AnnotationError(
            f"{action}: Label Studio does not accept the token ({status})",
            hint="use a legacy token, or enable legacy tokens for the organization in Label Studio",
        )
    return AnnotationError(f"{action}: Label Studio refused with {status}: {_detail(error.body)}", hint=hint)


def _detail(body: Any) -> str:
    detail = body.get("validation_errors") or body.get("detail") or body if isinstance(body, dict) else body
    return str(detail)[:500]
