"""The protocol's messages: the compiled set is current, they live beside a client's, and reflection finds them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from cantata.grammars import messages
from cantata.grammars.messages import DESCRIPTORS, METHODS

PROTOS = Path(messages.__file__).parent / "protos"
SERVICES = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
)


def test_the_compiled_files_are_current() -> None:
    pytest.importorskip("grpc_tools")
    from cantata.grammars.protos.compile import compiled_files

    for name, content in compiled_files().items():
        if name.endswith(".binpb"):
            assert (PROTOS / name).read_bytes() == content, (
                f"{name}: run python -m cantata.grammars.protos.compile"
            )
        assert (PROTOS / name).exists()


@pytest.mark.parametrize(
    "modules",
    [("cantata.grammars.messages", "tritonclient.grpc"), ("tritonclient.grpc", "cantata.grammars.messages")],
)
def test_a_client_may_be_imported_in_the_same_process(modules: tuple[str, str]) -> None:
    pytest.importorskip("tritonclient.grpc")
    code = f"""
import {modules[0]}, {modules[1]}
from tritonclient.grpc import service_pb2
ours = cantata.grammars.messages.ModelInferRequest(model_name="m", raw_input_contents=[b"x"])
theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
assert theirs.model_name == "m" and theirs.DESCRIPTOR is not ours.DESCRIPTOR
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def described(file: FileDescriptorProto) -> dict[str, Any]:
    """Everything that a file declares, by name, regardless of the order in it."""
    declared: dict[str, Any] = {}

    def describe(message: Any, scope: str) -> None:
        name = f"{scope}{message.name}."
        for field in message.field:
            oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            declared[name + field.name] = (field.number, field.type, field.label, field.type_name, oneof)
        for enum in message.enum_type:
            declared.update({f"{name}{enum.name}.{value.name}": value.number for value in enum.value})
        for nested in message.nested_type:
            describe(nested, name)

    for message in file.message_type:
        describe(message, "")
    for enum in file.enum_type:
        declared.update({f"{enum.name}.{value.name}": value.number for value in enum.value})
    for service in file.service:
        for method in service.method:
            streams = (method.client_streaming, method.server_streaming)
            declared[f"{service.name}.{method.name}"] = (method.input_type, method.output_type, streams)
    return declared


@pytest.mark.parametrize(
    ("file", "module"), [("model_config.proto", "model_config_pb2"), ("grpc_service.proto", "service_pb2")]
)
def test_the_protocol_is_that_of_the_stock_client(file: str, module: str) -> None:
    grpc = pytest.importorskip("tritonclient.grpc")
    ours, theirs = FileDescriptorProto(), FileDescriptorProto()
    DESCRIPTORS.pool.FindFileByName(file).CopyToProto(ours)
    getattr(grpc, module).DESCRIPTOR.CopyToProto(theirs)
    assert described(ours) == described(theirs)


def test_every_message_is_an_attribute() -> None:
    assert messages.ModelInferRequest.DESCRIPTOR.full_name == "inference.ModelInferRequest"
    assert messages.ModelConfig.DESCRIPTOR.full_name == "inference.ModelConfig"
    assert messages.HealthCheckResponse(status="SERVING").status == 1
    assert (
        messages.ServerReflectionRequest.DESCRIPTOR.full_name == "grpc.reflection.v1.ServerReflectionRequest"
    )


def test_every_method_has_its_messages_and_streams() -> None:
    infer = METHODS["/inference.GRPCInferenceService/ModelInfer"]
    stream = METHODS["/inference.GRPCInferenceService/ModelStreamInfer"]
    assert (infer.request, infer.response) == (messages.ModelInferRequest, messages.ModelInferResponse)
    assert (infer.is_request_streamed, infer.is_response_streamed) == (False, False)
    assert stream.response is messages.ModelStreamInferResponse
    assert (stream.is_request_streamed, stream.is_response_streamed) == (True, True)
    assert {path.split("/")[1] for path in METHODS} == set(SERVICES)
    assert len([path for path in METHODS if "GRPCInferenceService" in path]) == 20


def test_reflection_lists_the_services() -> None:
    assert DESCRIPTORS.service_names == SERVICES


@pytest.mark.parametrize(
    ("symbol", "files"),
    [
        ("inference.GRPCInferenceService", ["grpc_service.proto", "model_config.proto"]),
        ("inference.GRPCInferenceService.ModelInfer", ["grpc_service.proto", "model_config.proto"]),
        ("inference.ModelInferRequest.InferInputTensor", ["grpc_service.proto", "model_config.proto"]),
        ("inference.ModelConfig", ["model_config.proto"]),
        ("inference.ModelConfig.name", ["model_config.proto"]),
        ("inference.DataType", ["model_config.proto"]),
        ("grpc.health.v1.Health", ["health.proto"]),
        ("inference.ModelConfig.nothing", []),
        ("inference.Nothing", []),
        ("inference", []),
        ("", []),
    ],
)
def test_reflection_finds_a_symbol_and_what_its_file_imports(symbol: str, files: list[str]) -> None:
    found = DESCRIPTORS.serialized_files_of_symbol(symbol)
    assert [FileDescriptorProto.FromString(content).name for content in found] == files


def test_reflection_finds_a_file_by_name() -> None:
    found = DESCRIPTORS.serialized_files("grpc_service.proto")
    assert [FileDescriptorProto.FromString(content).name for content in found] == [
        "grpc_service.proto",
        "model_config.proto",
    ]
    assert DESCRIPTORS.serialized_files("nothing.proto") == []
