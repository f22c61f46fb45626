"""The Open Inference Protocol, version 2, over HTTP, with the binary tensor data extension."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from edge_agent.interfaces.bodies import read_body
from edge_agent.interfaces.inference_service import EXTENSIONS, SERVER_NAME, InferenceService, ModelInfo
from edge_agent.interfaces.posted_work import PostedWork
from edge_agent.interfaces.refusals import RefusedRequestError, explain_invalid
from edge_agent.interfaces.tensors import InferAnswer, InferRequest, InputTensor, OutputTensor, TensorInfo, pack_json

HEADER_LENGTH: Final = "inference-header-content-length"
"""How many bytes of the body are JSON; binary tensors follow."""
MAX_JSON_BYTES: Final = 1024 * 1024
"""Reading JSON holds the interpreter, and with it the camera's loop: a few milliseconds at most."""

MAX_JSON_NUMBERS: Final = 65_536
"""Of one output; for the same reason."""

_Parameters = dict[str, StrictBool | StrictInt | StrictFloat | StrictStr]
_Name = Annotated[str, Field(min_length=1, max_length=128)]
_Size = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class _Input(BaseModel):
    name: _Name
    datatype: _Name
    shape: list[_Size] = Field(max_length=8)
    parameters: _Parameters = Field(default_factory=dict)
    data: list[Any] | None = None


class _Output(BaseModel):
    name: _Name
    parameters: _Parameters = Field(default_factory=dict)


class _Header(BaseModel):
    """The JSON of a request; what it does not name is ignored, as the protocol asks."""

    id: str = Field(default="", max_length=256)
    parameters: _Parameters = Field(default_factory=dict)
    inputs: list[_Input] = Field(min_length=1, max_length=8)
    outputs: list[_Output] = Field(default_factory=list, max_length=32)


def inference_routes(service: InferenceService, work: PostedWork, *, max_body_bytes: int) -> list[BaseRoute]:
    """Return everything under `/v2`."""
    rest = _InferenceRest(service, work, max_body_bytes)
    routes: list[BaseRoute] = [
        Route("/v2", rest.server),
        Route("/v2/health/live", rest.live),
        Route("/v2/health/ready", rest.ready),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            Route(model, rest.model),
            Route(f"{model}/ready", rest.model_ready),
            Route(f"{model}/infer", rest.infer, methods=["POST"]),
        ]
    return routes


class _InferenceRest:
    def __init__(self, service: InferenceService, work: PostedWork, max_body_bytes: int) -> None:
        self._service = service
        self._work = work
        self._max_body_bytes = max_body_bytes

    async def server(self, request: Request) -> Response:  # noqa: ARG002 - Starlette passes it
        return JSONResponse(
            {"name": SERVER_NAME, "version": self._service.agent_version, "extensions": list(EXTENSIONS)}
        )

    async def live(self, request: Request) -> Response:  # noqa: ARG002 - Starlette passes it
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:  # noqa: ARG002 - Starlette passes it
        return _readiness(self._service.is_ready)

    async def model(self, request: Request) -> Response:
        return JSONResponse(_info_document(self._service.describe(*_model_of(request))))

    async def model_ready(self, request: Request) -> Response:
        return _readiness(self._service.is_model_ready(*_model_of(request)))

    async def infer(self, request: Request) -> Response:
        """Answer one posted frame. The body is read by the worker, so that this thread goes on serving."""
        name, version = _model_of(request)
        with self._work.place():
            body = await read_body(request, max_bytes=self._max_body_bytes)
            split = header_bytes(request.headers.get(HEADER_LENGTH), len(body))

            def answer() -> Response:
                header = parse_header(body[:split])
                asked = read_request(header, body[split:], name=name, version=version)
                return _respond(self._service.infer(asked), header)

            return await asyncio.wrap_future(self._work.submit(answer))


def _model_of(request: Request) -> tuple[str, str]:
    return str(request.path_params["name"])[:256], str(request.path_params.get("version", ""))[:256]


def _readiness(ready: bool) -> Response:
    return JSONResponse({"ready": ready}, status_code=200 if ready else 503)


def header_bytes(declared: str | None, body_bytes: int) -> int:
    """Return how many bytes of the body are JSON.

    Raises:
        RefusedRequestError: the declared length is none, or longer than the body.
        HTTPException: it is longer than `MAX_JSON_BYTES`.
    """
    if declared is None:
        count = body_bytes
    elif declared.isascii() and declared.isdigit() and len(declared) < 20 and int(declared) <= body_bytes:
        count = int(declared)
    else:
        raise RefusedRequestError("Inference-Header-Content-Length is no length within the body")
    if count > MAX_JSON_BYTES:
        raise HTTPException(413, f"more than {MAX_JSON_BYTES} bytes of JSON: send tensors in binary")
    return count


def parse_header(raw: bytes) -> _Header:
    """Return the request's JSON.

    Raises:
        RefusedRequestError: it is not such a document.
    """
    try:
        return _Header.model_validate_json(raw)
    except ValidationError as exc:
        raise RefusedRequestError(explain_invalid(exc)) from exc


def read_request(header: _Header, binary: bytes, *, name: str, version: str) -> InferRequest:
    """Return what is asked; `binary` is what follows the JSON.

    Raises:
        RefusedRequestError: a tensor has no data or two, or the sizes do not add up to `binary`.
    """
    tensors = []
    at = 0
    for item in header.inputs:
        size = item.parameters.get("binary_data_size")
        if (size is None) == (item.data is None):
            raise RefusedRequestError(f"input {item.name!r} needs either `data` or `binary_data_size`")
        if item.data is not None:
            raw = pack_json(item.name, item.datatype, item.data)
        elif isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= len(binary) - at:
            raw = binary[at : at + size]
            at += size
        else:
            raise RefusedRequestError(f"`binary_data_size` of input {item.name!r} is no length within the body")
        tensors.append(InputTensor(item.name, item.datatype, tuple(item.shape), raw))
    if at != len(binary):
        raise RefusedRequestError(f"{len(binary) - at} bytes of the body belong to no input")
    return InferRequest(name, version, header.id, tuple(tensors), tuple(output.name for output in header.outputs))


def _respond(answer: InferAnswer, header: _Header) -> Response:
    wishes = {output.name: output.parameters.get("binary_data") for output in header.outputs}
    default = header.parameters.get("binary_data_output")
    outputs, tail = [], []
    for output in answer.outputs:
        document = _output_document(output)
        wish = wishes.get(output.name)
        if (default if wish is None else wish) is True:
            raw = output.raw
            document["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            document["data"] = _json_data(output)
        outputs.append(document)
    told = {"model_name": answer.model_name, "model_version": answer.model_version, "outputs": outputs}
    head = json.dumps(told | ({"id": answer.request_id} if answer.request_id else {})).encode()
    if not tail:
        return Response(head, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(head))}
    return Response(b"".join([head, *tail]), media_type="application/octet-stream", headers=headers)


def _output_document(output: OutputTensor) -> dict[str, Any]:
    return {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}


def _json_data(output: OutputTensor) -> list[Any]:
    if math.prod(output.shape) > MAX_JSON_NUMBERS:
        raise RefusedRequestError(
            f"output {output.name!r} has more than {MAX_JSON_NUMBERS} numbers: ask for it in binary, or for others"
        )
    return output.data


def _info_document(info: ModelInfo) -> Mapping[str, Any]:
    def tensors(found: tuple[TensorInfo, ...]) -> list[dict[str, Any]]:
        return [{"name": item.name, "datatype": item.datatype, "shape": list(item.shape)} for item in found]

    return {
        "name": info.name,
        "versions": list(info.versions),
        "platform": info.platform,
        "inputs": tensors(info.inputs),
        "outputs": tensors(info.outputs),
    }
