"""Every name of `grpc._cython.cygrpc` that the front-end uses, and nothing else of grpc's private parts.

gRPC's public Python servers cost several times what a request is worth; its C-core underneath does not. Everything
private goes through here: a completion queue, a server, calls, and the operations of a batch. What is relied on is
written down in REQUIRED_NAMES and in tests/unit/frontends/test_core_calls.py, which fails when a release of grpcio
changes it; pyproject.toml has the upper bound.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from cantata.runtime.clock import monotonic_ns

# Have sockets read by the thread that polls the queue instead of by a pool of C-core's own threads: it saves three
# thread switches a request. C-core reads the setting while it is imported. Where something else has imported it, or
# the user has set it, nothing changes but the speed.
_SETTING: Final = "GRPC_EXPERIMENTS"
_is_ours = _SETTING not in os.environ
if _is_ours:
    os.environ[_SETTING] = "-event_engine_listener"
import grpc  # noqa: E402
from grpc._cython import cygrpc  # noqa: E402

if _is_ours:
    # Child processes are not ours to configure.
    os.environ.pop(_SETTING, None)

# What must exist, by class: the test compares, and so says at once what a new release took away.
REQUIRED_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "CompletionQueue": ("poll", "shutdown"),
    "Server": (
        "add_http2_port",
        "cancel_all_calls",
        "destroy",
        "register_completion_queue",
        "request_call",
        "shutdown",
        "start",
    ),
    "Call": ("cancel", "start_server_batch"),
    "CallDetails": ("deadline", "method"),
    "RequestCallEvent": ("call", "call_details", "completion_type", "invocation_metadata", "success", "tag"),
    "BatchOperationEvent": ("batch_operations", "completion_type", "success", "tag"),
    "ServerShutdownEvent": ("completion_type", "success", "tag"),
    "ReceiveMessageOperation": ("message",),
    "ReceiveCloseOnServerOperation": ("cancelled",),
    "SendInitialMetadataOperation": (),
    "SendMessageOperation": (),
    "SendStatusFromServerOperation": (),
    "CompletionType": ("queue_shutdown", "queue_timeout"),
    "WriteFlag": ("no_compress",),
}


# What a call carries beside its messages; the values of names that end in `-bin` are bytes.
Metadata = tuple[tuple[str, str | bytes], ...]


class Call(Protocol):
    """One RPC as C-core knows it. Any thread may start batches; a batch's tag is called with its event."""

    def start_server_batch(self, operations: Sequence[object], tag: Callable[[Event], None]) -> int: ...
    def cancel(self, code: int, details: str) -> int: ...


class CallDetails(Protocol):
    """`deadline` is in seconds since the epoch, enormous when the client set none."""

    deadline: float
    method: bytes


class Event(Protocol):
    """What a poll returns. The fields from `call` on are those of a new call; `batch_operations` a batch's."""

    completion_type: int
    success: bool
    tag: Callable[[Event], None]
    call: Call
    call_details: CallDetails
    invocation_metadata: Metadata
    # The operations as they were given to `start_server_batch`.
    batch_operations: tuple[Any, ...]


class CompletionQueue(Protocol):
    """`poll` waits until `deadline` (seconds since the epoch; None for ever) with the GIL released."""

    def poll(self, deadline: float | None = None) -> Event: ...
    def shutdown(self) -> None: ...


class Server(Protocol):
    """The listening server. `request_call` asks for one more call, to be reported with `tag`."""

    def register_completion_queue(self, queue: CompletionQueue) -> None: ...
    def add_http2_port(self, address: bytes, credentials: object = None) -> int: ...
    def start(self) -> None: ...
    def request_call(self, queue: CompletionQueue, server_queue: CompletionQueue, tag: object) -> int: ...
    def shutdown(self, queue: CompletionQueue, tag: object) -> None: ...
    def cancel_all_calls(self) -> None: ...
    def destroy(self) -> None: ...


QUEUE_TIMEOUT: Final[int] = int(cygrpc.CompletionType.queue_timeout)
QUEUE_SHUTDOWN: Final[int] = int(cygrpc.CompletionType.queue_shutdown)
_NO_COMPRESS: Final[int] = int(cygrpc.WriteFlag.no_compress)

# The metadata by which gRPC clients are told when to try again, in milliseconds.
_RETRY_PUSHBACK: Final = "grpc-retry-pushback-ms"

OK: Final = 0
CANCELLED: Final = 1
INTERNAL: Final = 13
UNIMPLEMENTED: Final = 12
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16
NOT_FOUND: Final = 5
RESOURCE_EXHAUSTED: Final = 8

# The operations, as functions: what a batch is made of. One operation object serves one batch only.
_ReceiveMessage = cygrpc.ReceiveMessageOperation
_ReceiveClose = cygrpc.ReceiveCloseOnServerOperation
_SendInitialMetadata = cygrpc.SendInitialMetadataOperation
_SendMessage = cygrpc.SendMessageOperation
_SendStatus = cygrpc.SendStatusFromServerOperation


def receive_message(call: Call, tag: Callable[[Event], None]) -> None:
    """Have the call's next message reported to `tag`; `received_message` reads it."""
    call.start_server_batch((_ReceiveMessage(0),), tag)


def received_message(event: Event) -> bytes | None:
    """The message, or None when the client sends no more (or is gone, or sent more than the limit)."""
    message: bytes | None = event.batch_operations[0].message()
    return message


def watch_close(call: Call, tag: Callable[[Event], None]) -> None:
    """Have the end of the call reported to `tag`: exactly once for every call, here or in a reply."""
    call.start_server_batch((_ReceiveClose(0),), tag)


def was_cancelled(event: Event) -> bool:
    """Whether a call that `watch_close` reports ended before it was answered."""
    cancelled: bool = event.batch_operations[0].cancelled()
    return cancelled


def reply(call: Call, message: bytes, tag: Callable[[Event], None], *, closes: bool, compress: bool) -> None:
    """Answer a unary call whole, in one batch. `closes` where nobody watches for the end of the call yet."""
    start = _SendInitialMetadata(None, 0)
    send = _SendMessage(message, 0 if compress else _NO_COMPRESS)
    status = _SendStatus(None, OK, b"", 0)
    if closes:
        call.start_server_batch((start, send, status, _ReceiveClose(0)), tag)
    else:
        call.start_server_batch((start, send, status), tag)


def reply_status(
    call: Call,
    code: int,
    details: str,
    tag: Callable[[Event], None],
    *,
    starts: bool,
    closes: bool,
    retry_after_s: int = 0,
) -> None:
    """End a call with a status. `starts` where no initial metadata went out; `closes` as in `reply`.

    With `retry_after_s`, clients that try again by themselves are told to wait so long first.
    """
    operations: list[object] = [_SendInitialMetadata(None, 0)] if starts else []
    trailing = ((_RETRY_PUSHBACK, str(retry_after_s * 1000)),) if retry_after_s else None
    operations.append(_SendStatus(trailing, code, details.encode(errors="replace"), 0))
    if closes:
        operations.append(_ReceiveClose(0))
    call.start_server_batch(operations, tag)


def send_message(
    call: Call, message: bytes, tag: Callable[[Event], None], *, starts: bool, compress: bool
) -> None:
    """Send one message of a stream; the next may follow when `tag` has been called."""
    send = _SendMessage(message, 0 if compress else _NO_COMPRESS)
    call.start_server_batch((_SendInitialMetadata(None, 0), send) if starts else (send,), tag)


def create_completion_queue() -> CompletionQueue:
    """A queue, and with the first one gRPC's core itself."""
    queue: CompletionQueue = cygrpc.CompletionQueue()
    return queue


def create_server(arguments: Sequence[tuple[str, int | str]], queue: CompletionQueue) -> Server:
    """A server that reports to `queue`; it listens on nothing yet."""
    server: Server = cygrpc.Server(tuple((name.encode(), value) for name, value in arguments), False)
    server.register_completion_queue(queue)
    return server


def tls_credentials(
    certificate_chain: bytes, private_key: bytes, client_roots: bytes | None, require_client_certificate: bool
) -> object:
    """Credentials for `add_http2_port`."""
    credentials = grpc.ssl_server_credentials(
        [(private_key, certificate_chain)], client_roots, require_client_certificate
    )
    return credentials._credentials


def seconds_from_now(seconds: float) -> float:
    """A deadline for `CompletionQueue.poll`."""
    return time.time() + seconds


# Seconds since the epoch that no client means: C-core's "no deadline" is the end of 64 bits.
_NO_DEADLINE: Final = 1e11


def deadline_ns_of(details: CallDetails) -> int:
    """The call's deadline on the monotonic clock in nanoseconds, 0 when the client set none."""
    deadline = details.deadline
    if deadline > _NO_DEADLINE:
        return 0
    return max(1, monotonic_ns() + int((deadline - time.time()) * 1e9))
