"""The methods of GRPCInferenceService about shared memory: registering regions, listing and forgetting them."""

from __future__ import annotations

from google.protobuf.message import Message

from cantata.grammars import messages
from cantata.runtime.frontends.grpc.handlers import serialised
from cantata.runtime.frontends.grpc.unary import Handler
from cantata.runtime.shared_memory import SharedMemory


class MemoryService:
    """The answers about one server's shared memory."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    def handlers(self) -> dict[str, Handler]:
        """What answers the methods, by their names; all are quick."""
        return {
            "SystemSharedMemoryStatus": serialised(messages.SystemSharedMemoryStatusRequest, self._status),
            "SystemSharedMemoryRegister": serialised(
                messages.SystemSharedMemoryRegisterRequest, self._register
            ),
            "SystemSharedMemoryUnregister": serialised(
                messages.SystemSharedMemoryUnregisterRequest, self._unregister
            ),
            "CudaSharedMemoryStatus": serialised(messages.CudaSharedMemoryStatusRequest, self._cuda_status),
            "CudaSharedMemoryRegister": serialised(
                messages.CudaSharedMemoryRegisterRequest, self._cuda_register
            ),
            "CudaSharedMemoryUnregister": serialised(
                messages.CudaSharedMemoryUnregisterRequest, self._cuda_unregister
            ),
        }

    def _status(self, request: messages.SystemSharedMemoryStatusRequest) -> Message:
        response = messages.SystemSharedMemoryStatusResponse()
        for region in self._memory.status(request.name):
            status = response.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.byte_size
        return response

    def _register(self, request: messages.SystemSharedMemoryRegisterRequest) -> Message:
        self._memory.register(request.name, request.key, request.offset, request.byte_size)
        return messages.SystemSharedMemoryRegisterResponse()

    def _unregister(self, request: messages.SystemSharedMemoryUnregisterRequest) -> Message:
        if request.name:
            self._memory.unregister(request.name)
        else:
            self._memory.unregister_all()
        return messages.SystemSharedMemoryUnregisterResponse()

    def _cuda_status(self, request: messages.CudaSharedMemoryStatusRequest) -> Message:
        response = messages.CudaSharedMemoryStatusResponse()
        for region in self._memory.cuda_status(request.name):
            status = response.regions[region.name]
            status.name, status.device_id, status.byte_size = region.name, region.device_id, region.byte_size
        return response

    def _cuda_register(self, request: messages.CudaSharedMemoryRegisterRequest) -> Message:
        self._memory.register_cuda(request.name, request.raw_handle, request.device_id, request.byte_size)
        return messages.CudaSharedMemoryRegisterResponse()

    def _cuda_unregister(self, request: messages.CudaSharedMemoryUnregisterRequest) -> Message:
        self._memory.unregister_cuda(request.name)
        return messages.CudaSharedMemoryUnregisterResponse()
