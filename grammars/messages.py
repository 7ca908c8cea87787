"""The messages and methods of the gRPC services, from the compiled .proto files, and ModelConfig to and fro.

Every message of package `inference`, of health and of reflection (v1) is an attribute of this module. They live in a
descriptor pool of their own: clients register the same names in the default one, and must work in the same process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.descriptor import FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cantata.grammars import model_config
from cantata.grammars.schema import Cardinality, ConfigMessage, fields_of

if TYPE_CHECKING:
    from cantata.grammars.protos.grpc_service_pb2 import *  # noqa: F403
    from cantata.grammars.protos.health_pb2 import *  # noqa: F403
    from cantata.grammars.protos.model_config_pb2 import *  # noqa: F403
    from cantata.grammars.protos.model_config_pb2 import ModelConfig
    from cantata.grammars.protos.reflection_v1_pb2 import *  # noqa: F403

# Where names clash, the last of these wins: reflection's two versions have the same messages.
_EXPORTED_FILES: Final = ("model_config.proto", "grpc_service.proto", "health.proto", "reflection_v1.proto")


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """A method of a gRPC service: its path on the wire, its messages, and which side may send many."""

    path: str
    request: type[Message]
    response: type[Message]
    is_request_streamed: bool
    is_response_streamed: bool


class Descriptors:
    """The compiled .proto files: what server reflection answers with."""

    def __init__(self, descriptor_set: bytes) -> None:
        self.pool = DescriptorPool()
        self._files: dict[str, FileDescriptorProto] = {}
        for file in FileDescriptorSet.FromString(descriptor_set).file:
            self.pool.Add(file)
            self._files[file.name] = file

    @property
    def service_names(self) -> tuple[str, ...]:
        """The full names of every service, sorted."""
        names = [
            f"{file.package}.{service.name}" for file in self._files.values() for service in file.service
        ]
        return tuple(sorted(names))

    def files(self) -> list[FileDescriptor]:
        """Every file, those that are imported first."""
        return [self.pool.FindFileByName(name) for name in self._files]

    def serialized_files(self, name: str) -> list[bytes]:
        """A file by name and after it all that it imports, serialized; empty where there is no such file."""
        if name not in self._files:
            return []
        imported = [
            content
            for dependency in self._files[name].dependency
            for content in self.serialized_files(dependency)
        ]
        return [self._files[name].SerializeToString(), *imported]

    def serialized_files_of_symbol(self, symbol: str) -> list[bytes]:
        """The file that declares a service, method, message, field or enum, as `serialized_files` returns it."""
        while symbol:
            try:
                return self.serialized_files(self.pool.FindFileContainingSymbol(symbol).name)
            except KeyError:
                symbol = self._declarer_of(symbol)
        return []

    def _declarer_of(self, symbol: str) -> str:
        """The message or service that a member named `symbol` belongs to; empty if there is none."""
        owner, _, name = symbol.rpartition(".")
        try:
            message = self.pool.FindMessageTypeByName(owner)
            return owner if name in message.fields_by_name or name in message.oneofs_by_name else ""
        except KeyError:
            pass
        try:
            return owner if name in self.pool.FindServiceByName(owner).methods_by_name else ""
        except KeyError:
            return ""


DESCRIPTORS: Final = Descriptors(
    resources.files("cantata.grammars.protos").joinpath("descriptors.binpb").read_bytes()
)

for _file_name in _EXPORTED_FILES:
    for _name, _descriptor in DESCRIPTORS.pool.FindFileByName(_file_name).message_types_by_name.items():
        globals()[_name] = GetMessageClass(_descriptor)


def _method(method: MethodDescriptor) -> Method:
    return Method(
        f"/{method.containing_service.full_name}/{method.name}",
        GetMessageClass(method.input_type),
        GetMessageClass(method.output_type),
        method.client_streaming,
        method.server_streaming,
    )


# Every method of every service by its path, `/inference.GRPCInferenceService/ModelInfer`.
METHODS: Final[Mapping[str, Method]] = {
    method.path: method
    for file in DESCRIPTORS.files()
    for service in file.services_by_name.values()
    for method in map(_method, service.methods)
}


def model_config_to_message(config: model_config.ModelConfig) -> ModelConfig:
    """The protobuf message of a configuration."""
    message = ModelConfig()
    _fill(message, config)
    return message


def message_to_model_config(message: ModelConfig) -> model_config.ModelConfig:
    """The configuration that a protobuf message holds. Raises ValueError for an unknown number of an enum."""
    return model_config.ModelConfig.model_validate(_values_of(message))


def _fill(message: Any, values: ConfigMessage) -> None:
    for name, field in fields_of(type(values)).items():
        value = getattr(values, field.attribute)
        if value is None:
            continue
        if field.cardinality is Cardinality.REPEATED and field.message is None:
            getattr(message, name).extend(value)
        elif field.cardinality is Cardinality.REPEATED:
            for element in value:
                _fill(getattr(message, name).add(), element)
        elif field.cardinality is Cardinality.MAP and field.message is None:
            getattr(message, name).update(value)
        elif field.cardinality is Cardinality.MAP:
            for key, element in value.items():
                _fill(getattr(message, name)[key], element)
        elif field.message is not None:
            getattr(message, name).SetInParent()
            _fill(getattr(message, name), value)
        else:
            setattr(message, name, value)


def _values_of(message: Message) -> dict[str, object]:
    return {field.name: _value_of(field, value) for field, value in message.ListFields()}


def _value_of(field: FieldDescriptor, value: Any) -> object:
    nested = field.message_type
    if nested is not None and nested.GetOptions().map_entry:
        if nested.fields_by_name["value"].message_type is None:
            return dict(value)
        return {key: _values_of(element) for key, element in value.items()}
    if nested is None:
        return list(value) if field.is_repeated else value
    return [_values_of(element) for element in value] if field.is_repeated else _values_of(value)
