"""The methods of GRPCInferenceService that are answered at once: health, metadata, configuration, statistics, index.

Each takes a serialised request and returns a serialised response, or raises InferenceError. Inference itself is in
`unary.py` and `infer_stream.py`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from google.protobuf.message import Message

from cantata.grammars import messages
from cantata.runtime.errors import invalid_argument, unavailable, unsupported
from cantata.runtime.frontends.grpc.handlers import serialised
from cantata.runtime.frontends.grpc.infer_request import parse_model_version
from cantata.runtime.frontends.grpc.unary import Handler
from cantata.runtime.model_spec import TensorSpec
from cantata.runtime.observe.snapshots import ModelStatistics
from cantata.runtime.repository.override import CONFIG_PARAMETER, FILE_PARAMETER_PREFIX
from cantata.runtime.server import Server

PREFIX = "/inference.GRPCInferenceService/"


class ServerService:
    """The answers about one server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def slow_handlers(self) -> dict[str, Handler]:
        """What answers the methods that load and unload models, or ask them whether they are ready, by their names."""
        return {
            "ServerReady": serialised(messages.ServerReadyRequest, self._server_ready),
            "ModelReady": serialised(messages.ModelReadyRequest, self._model_ready),
            "RepositoryModelLoad": serialised(messages.RepositoryModelLoadRequest, self._load_model),
            "RepositoryModelUnload": serialised(messages.RepositoryModelUnloadRequest, self._unload_model),
        }

    def quick_handlers(self) -> dict[str, Handler]:
        """What answers the other methods, by their names."""
        return {
            "ServerLive": serialised(messages.ServerLiveRequest, self._server_live),
            "ServerMetadata": serialised(messages.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": serialised(messages.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": serialised(messages.ModelConfigRequest, self._model_config),
            "ModelStatistics": serialised(messages.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": serialised(messages.RepositoryIndexRequest, self._repository_index),
        }

    def _server_live(self, _request: messages.ServerLiveRequest) -> Message:
        self._check_not_exiting()
        return messages.ServerLiveResponse(live=self._server.is_live())

    def _server_ready(self, _request: messages.ServerReadyRequest) -> Message:
        self._check_not_exiting()
        return messages.ServerReadyResponse(ready=self._server.is_ready())

    def _model_ready(self, request: messages.ModelReadyRequest) -> Message:
        self._check_not_exiting()
        version = parse_model_version(request.version)
        return messages.ModelReadyResponse(ready=self._server.is_model_ready(request.name, version))

    def _server_metadata(self, _request: messages.ServerMetadataRequest) -> Message:
        metadata = self._server.metadata()
        return messages.ServerMetadataResponse(
            name=metadata.name, version=metadata.version, extensions=metadata.extensions
        )

    def _model_metadata(self, request: messages.ModelMetadataRequest) -> Message:
        version = parse_model_version(request.version)
        model = self._server.model(request.name, version)
        versions = [model.version] if version != -1 else self._server.model_versions(model.name)
        return messages.ModelMetadataResponse(
            name=model.name,
            versions=[str(number) for number in versions],
            platform=model.platform,
            inputs=[_tensor_metadata(spec) for spec in model.spec.inputs.values()],
            outputs=[_tensor_metadata(spec) for spec in model.spec.outputs.values()],
        )

    def _model_config(self, request: messages.ModelConfigRequest) -> Message:
        model = self._server.model(request.name, parse_model_version(request.version))
        return messages.ModelConfigResponse(config=messages.model_config_to_message(model.config))

    def _model_statistics(self, request: messages.ModelStatisticsRequest) -> Message:
        version = parse_model_version(request.version)
        response = messages.ModelStatisticsResponse()
        for statistics in self._server.statistics(request.name, version):
            _fill_statistics(response.model_stats.add(), statistics)
        return response

    def _repository_index(self, request: messages.RepositoryIndexRequest) -> Message:
        _check_no_repository_name(request.repository_name)
        response = messages.RepositoryIndexResponse()
        for entry in self._server.repository_index(request.ready):
            response.models.add(
                name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
            )
        return response

    def _load_model(self, request: messages.RepositoryModelLoadRequest) -> Message:
        _check_no_repository_name(request.repository_name)
        parameters = {name: _load_parameter(name, value) for name, value in request.parameters.items()}
        self._server.load_model(request.model_name, parameters)
        return messages.RepositoryModelLoadResponse()

    def _unload_model(self, request: messages.RepositoryModelUnloadRequest) -> Message:
        _check_no_repository_name(request.repository_name)
        with_dependents = False
        if "unload_dependents" in request.parameters:
            parameter = request.parameters["unload_dependents"]
            if parameter.WhichOneof("parameter_choice") != "bool_param":
                raise invalid_argument(
                    "invalid value type for 'unload_dependents' parameter, expected bool_param."
                )
            with_dependents = parameter.bool_param
        self._server.unload_model(request.model_name, with_dependents)
        return messages.RepositoryModelUnloadResponse()

    def _check_not_exiting(self) -> None:
        if self._server.is_exiting:
            raise unavailable("Server exiting")


def _check_no_repository_name(name: str) -> None:
    if name:
        raise unsupported("'repository_name' specification is not supported")


def _load_parameter(name: str, parameter: messages.ModelRepositoryParameter) -> str | bytes:
    choice = parameter.WhichOneof("parameter_choice")
    if name != CONFIG_PARAMETER and not name.startswith(FILE_PARAMETER_PREFIX):
        raise invalid_argument(f"unrecognized load parameter '{name}'.")
    expected = "string_param" if name == CONFIG_PARAMETER else "bytes_param"
    if choice != expected:
        raise invalid_argument(f"invalid value type for load parameter '{name}', expected {expected}.")
    value: str | bytes = getattr(parameter, expected)
    return value


def _tensor_metadata(spec: TensorSpec) -> Any:
    return messages.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.datatype.name, shape=spec.full_dims
    )


def _fill_statistics(message: messages.ModelStatistics, statistics: ModelStatistics) -> None:
    """The snapshot's fields are named and nested as the message's; only its map needs more than its constructor."""
    fields = asdict(statistics)
    by_index = fields.pop("response_stats")
    message.MergeFrom(messages.ModelStatistics(**fields))
    for index, figures in by_index.items():
        message.response_stats[index].MergeFrom(messages.InferResponseStatistics(**figures))
