"""The Open Inference Protocol, version 2, over gRPC. The one home of grpc; imported only when `grpc.port` is set."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, Final

import grpc

from curate.errors import ConfigError, Error
from edge_agent.interfaces.inference_service import SERVER_NAME, InferenceService
from edge_agent.interfaces.posted_work import PostedWork
from edge_agent.interfaces.protos import open_inference_pb2 as pb
from edge_agent.interfaces.refusals import BusyError, NoModelError, RefusedRequestError, UnknownModelError
from edge_agent.interfaces.tensors import (
    BYTES,
    UINT8,
    InferAnswer,
    InferRequest,
    InputTensor,
    TensorInfo,
    pack_element,
)
from edge_agent.interfaces.tokens import BEARER, TokenGuard

log = logging.getLogger(__name__)

SERVICE: Final = "inference.GRPCInferenceService"
MAX_CALLS: Final = 8
"""Calls under way at once; each may hold one message in memory."""
_ANSWER_TIMEOUT_S: Final = 30.0
_STATUS: Final[tuple[tuple[type[Error], grpc.StatusCode], ...]] = (
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (RefusedRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (BusyError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (NoModelError, grpc.StatusCode.UNAVAILABLE),
    (Error, grpc.StatusCode.INTERNAL),
)


@dataclass(frozen=True, slots=True)
class GrpcAddress:
    """Where to listen, and with which certificate."""

    host: str
    port: int
    certificate: bytes | None = None
    key: bytes | None = None


class InferenceGrpcServer:
    """Serves from threads of its own. Without a guard everybody who reaches it is let in."""

    def __init__(
        self,
        service: InferenceService,
        work: PostedWork,
        address: GrpcAddress,
        *,
        guard: TokenGuard | None,
        max_message_bytes: int,
    ) -> None:
        """Bind at once.

        Raises:
            ConfigError: the port is taken or not allowed, or the certificate is none.
        """
        self._server = grpc.server(
            ThreadPoolExecutor(4, thread_name_prefix="grpc"),
            handlers=[_Calls(service, work).handler(guard)],
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        self.port = _listen(self._server, address)

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self, timeout_s: float) -> None:
        """Stop answering; calls under way get that long."""
        self._server.stop(timeout_s).wait(timeout_s)


def _listen(server: grpc.Server, address: GrpcAddress) -> int:
    place = f"{address.host}:{address.port}"
    try:
        if address.certificate is None or address.key is None:
            return server.add_insecure_port(place)
        credentials = grpc.ssl_server_credentials([(address.key, address.certificate)])
        return server.add_secure_port(place, credentials)
    except (RuntimeError, ValueError) as exc:
        raise ConfigError(
            f"gRPC cannot listen on {place}: {exc}", hint="Set grpc.port to a free port, or to 0 for any."
        ) from exc


class _Calls:
    def __init__(self, service: InferenceService, work: PostedWork) -> None:
        self._service = service
        self._work = work

    def handler(self, guard: TokenGuard | None) -> grpc.GenericRpcHandler:
        """Return the service, call by call."""
        calls: dict[str, tuple[Callable[[Any], Any], Any]] = {
            "ServerLive": (self._server_live, pb.ServerLiveRequest),
            "ServerReady": (self._server_ready, pb.ServerReadyRequest),
            "ModelReady": (self._model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self._server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self._model_metadata, pb.ModelMetadataRequest),
            "ModelInfer": (self._infer, pb.ModelInferRequest),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(call, guard), request_deserializer=kind.FromString, response_serializer=_serialize
            )
            for name, (call, kind) in calls.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _server_live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:  # noqa: ARG002 - an empty message
        return pb.ServerLiveResponse(live=True)

    def _server_ready(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:  # noqa: ARG002 - as above
        return pb.ServerReadyResponse(ready=self._service.is_ready)

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=self._service.is_model_ready(request.name, request.version))

    def _server_metadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:  # noqa: ARG002
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._service.agent_version)

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        info = self._service.describe(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=info.name,
            versions=info.versions,
            platform=info.platform,
            inputs=[_tensor_metadata(item) for item in info.inputs],
            outputs=[_tensor_metadata(item) for item in info.outputs],
        )

    def _infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        with self._work.place():
            future = self._work.submit(lambda: self._service.infer(read_request(request)))
            try:
                return _response(future.result(_ANSWER_TIMEOUT_S))
            except FutureTimeoutError as exc:
                future.cancel()
                raise BusyError(f"no answer within {_ANSWER_TIMEOUT_S:g} s") from exc


def _answering(call: Callable[[Any], Any], guard: TokenGuard | None) -> Callable[[Any, grpc.ServicerContext], Any]:
    """Return the call behind the guard, with our errors as gRPC's."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if guard is not None and not _is_admitted(context, guard):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "send the metadata `authorization: Bearer <token>`")
        try:
            return call(request)
        except Error as exc:
            code = next(code for kind, code in _STATUS if isinstance(exc, kind))
            context.abort(code, str(exc))

    return answer


def _is_admitted(context: grpc.ServicerContext, guard: TokenGuard) -> bool:
    given = str(dict(context.invocation_metadata() or ()).get("authorization", ""))
    if not given.lower().startswith(BEARER):
        return False
    # "ipv4:192.0.2.1:50312": a client has many ports.
    return guard.admits(given[len(BEARER) :], client=context.peer().rpartition(":")[0])


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _tensor_metadata(item: TensorInfo) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=item.name, datatype=item.datatype, shape=item.shape)


def read_request(request: pb.ModelInferRequest) -> InferRequest:
    """Return what is asked.

    Raises:
        RefusedRequestError: a tensor has no data or two, or data of another type.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise RefusedRequestError(f"{len(request.inputs)} inputs and {len(raw)} raw contents")
    if raw and any(item.HasField("contents") for item in request.inputs):
        raise RefusedRequestError("give raw contents or typed contents, not both")
    tensors = [
        InputTensor(item.name, item.datatype, tuple(item.shape), raw[position] if raw else _pack_contents(item))
        for position, item in enumerate(request.inputs)
    ]
    return InferRequest(
        model_name=request.model_name,
        model_version=request.model_version,
        request_id=request.id,
        inputs=tuple(tensors),
        outputs=tuple(output.name for output in request.outputs),
    )


def _pack_contents(item: pb.ModelInferRequest.InferInputTensor) -> bytes:
    packers: dict[str, Callable[[], bytes]] = {
        UINT8: lambda: bytes(item.contents.uint_contents),
        BYTES: lambda: b"".join(pack_element(element) for element in item.contents.bytes_contents),
    }
    if item.datatype not in packers:
        raise RefusedRequestError(f"input {item.name!r} has the datatype {item.datatype!r}, not UINT8 or BYTES")
    try:
        return packers[item.datatype]()
    except ValueError as exc:
        raise RefusedRequestError(f"input {item.name!r} must hold numbers from 0 to 255") from exc


def _response(answer: InferAnswer) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=answer.model_name, model_version=answer.model_version, id=answer.request_id
    )
    for output in answer.outputs:
        response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        response.raw_output_contents.append(output.raw)
    return response
