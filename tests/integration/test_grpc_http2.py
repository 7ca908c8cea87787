"""The gRPC server on the wire: HTTP/2's rules, its windows, and clients that keep to neither."""

from __future__ import annotations

import socket
import zlib
from collections import deque
from collections.abc import Iterator
from struct import pack

import pytest

from cantata.grammars import messages
from cantata.runtime.frontends.grpc.http2 import frames
from cantata.runtime.frontends.grpc.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Setting,
)
from cantata.runtime.frontends.grpc.server import GrpcServer
from tests.support.fake_server import FakeServer, identity_model
from tests.support.grpc_servers import INFER_SERVICE, grpc_server
from tests.support.http2_client import Http2Client, http2_client, prefixed

INFER = INFER_SERVICE + "ModelInfer"
LIVE = messages.ServerLiveResponse(live=True).SerializeToString()


@pytest.fixture(scope="module")
def front_end() -> Iterator[GrpcServer]:
    with grpc_server(FakeServer(identity_model("identity", dims=(-1,)))) as running:
        yield running


@pytest.fixture
def client(front_end: GrpcServer) -> Iterator[Http2Client]:
    with http2_client(front_end.port) as connected:
        yield connected
        if connected.socket.fileno() >= 0:
            still_serves(front_end)


def still_serves(front_end: GrpcServer) -> None:
    with http2_client(front_end.port) as other:
        other.call(1)
        assert other.answer(1).data == prefixed(LIVE)


def infer_message(size: int) -> bytes:
    message = messages.ModelInferRequest(model_name="identity", raw_input_contents=[bytes(size)])
    message.inputs.add(name="IN", datatype="FP32", shape=[size // 4])
    data: bytes = message.SerializeToString()
    return data


# --- what HTTP/2 allows


def test_calls_on_one_connection_are_all_answered(client: Http2Client) -> None:
    for stream_id in (1, 3, 5):
        client.call(stream_id)
        answer = client.answer(stream_id)
        assert answer.data == prefixed(LIVE)
        assert answer.headers == {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}


def test_a_message_may_come_in_pieces_with_padding_and_trailers(client: Http2Client) -> None:
    client.frame(HEADERS, END_HEADERS, 1, client.block())
    whole = prefixed(b"")
    client.frame(DATA, PADDED, 1, b"\x03" + whole[:2] + bytes(3))
    client.frame(DATA, 0, 1, whole[2:])
    client.frame(HEADERS, END_HEADERS | END_STREAM, 1, b"")
    assert client.answer(1).data == prefixed(LIVE)


def test_headers_may_be_continued_and_have_padding_and_priority(client: Http2Client) -> None:
    block = client.block()
    client.frame(HEADERS, PADDED | frames.HAS_PRIORITY, 1, b"\x02" + bytes(5) + block[:4] + bytes(2))
    client.frame(CONTINUATION, 0, 1, block[4:9])
    client.frame(CONTINUATION, END_HEADERS, 1, block[9:])
    client.frame(DATA, END_STREAM, 1, prefixed(b""))
    assert client.answer(1).data == prefixed(LIVE)


def test_frames_of_unknown_kinds_are_ignored_and_pings_answered(client: Http2Client) -> None:
    client.frame(0x77, 0, 0, b"whatever")
    client.frame(frames.PRIORITY, 0, 1, bytes(5))
    client.frame(PING, 0, 0, b"12345678")
    assert client.wait_for(PING).payload == b"12345678"


@pytest.mark.parametrize("size", [40, 20_000, 3_000_000])
@pytest.mark.parametrize("frame_size", [1000, 16_384, (1 << 18) - 5, 1 << 20])
def test_large_messages_come_and_go_in_frames_of_any_size(
    front_end: GrpcServer, size: int, frame_size: int
) -> None:
    settings = {Setting.INITIAL_WINDOW_SIZE: 1 << 24, Setting.MAX_FRAME_SIZE: max(16_384, frame_size)}
    with http2_client(front_end.port, settings) as client:
        client.frame(WINDOW_UPDATE, 0, 0, pack(">L", 1 << 24))
        client.frame(HEADERS, END_HEADERS, 1, client.block(path=INFER))
        whole = prefixed(infer_message(size))
        for start in range(0, len(whole), frame_size):
            client.frame(DATA, 0, 1, whole[start : start + frame_size])
        client.frame(DATA, END_STREAM, 1)
        answer = client.answer(1)
        assert answer.headers["grpc-status"] == "0"
        assert messages.ModelInferResponse.FromString(answer.data[5:]).raw_output_contents == [bytes(size)]
        assert max(answer.frame_sizes) <= settings[Setting.MAX_FRAME_SIZE]


def test_answers_keep_to_the_clients_windows(front_end: GrpcServer) -> None:
    with http2_client(front_end.port, {Setting.INITIAL_WINDOW_SIZE: 10}) as client:
        client.call(1, infer_message(400), path=INFER)
        received = client.wait_for(DATA, 1).payload
        assert len(received) == 10
        client.frame(WINDOW_UPDATE, 0, 1, pack(">L", 5))
        assert len(client.wait_for(DATA, 1).payload) == 5
        client.send(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 5000}))
        answer = client.answer(1)
        assert answer.headers["grpc-status"] == "0"
        assert len(answer.data) > 400


def test_the_connections_window_is_shared_by_its_calls(front_end: GrpcServer) -> None:
    with http2_client(front_end.port, {Setting.INITIAL_WINDOW_SIZE: 1 << 20}) as client:
        for stream_id in (1, 3):
            client.call(stream_id, infer_message(60_000), path=INFER)
        assert client.answer(1).headers["grpc-status"] == "0"
        client.frame(WINDOW_UPDATE, 0, 0, pack(">L", 1 << 20))
        assert client.answer(3).headers["grpc-status"] == "0"


def test_the_servers_windows_are_given_back(client: Http2Client) -> None:
    """More than the connection's window in all, in calls that are each below the call's."""
    whole = prefixed(infer_message(1 << 20))
    for stream_id in range(1, 140, 2):
        client.frame(HEADERS, END_HEADERS, stream_id, client.block(path=INFER_SERVICE + "ServerLive"))
        client.frame(DATA, 0, stream_id, whole[: 1 << 20])
        client.frame(RST_STREAM, 0, stream_id, pack(">L", ErrorCode.CANCEL))
    assert int.from_bytes(client.wait_for(WINDOW_UPDATE).payload, "big") > 1 << 20
    client.call(1001)
    assert client.answer(1001).headers["grpc-status"] == "0"


def test_a_small_answer_does_not_wait_for_a_large_one_to_end(front_end: GrpcServer) -> None:
    with http2_client(front_end.port, {Setting.INITIAL_WINDOW_SIZE: 1 << 20}) as client:
        client.call(1, infer_message(900_000), path=INFER)
        received = 0
        while received < frames.DEFAULT_WINDOW:
            received += len(client.wait_for(DATA, 1).payload)
        client.call(3, infer_message(400), path=INFER)
        client.frame(PING, 0, 0, bytes(8))
        client.wait_for(PING)
        for _ in range(3):
            client.frame(WINDOW_UPDATE, 0, 0, pack(">L", 1000))
        assert client.answer(3).headers["grpc-status"] == "0"


def test_a_call_that_is_answered_at_once_is_not_reset(client: Http2Client) -> None:
    client.call(1, None)
    client.frame(DATA, END_STREAM, 1, prefixed(b""))
    assert client.answer(1).data == prefixed(LIVE)
    client.frame(PING, 0, 0, b"12345678")
    assert next(frame.kind for frame in client.frames() if frame.kind != SETTINGS) == PING


def test_the_preface_may_come_in_parts(front_end: GrpcServer) -> None:
    first = frames.CLIENT_PREFACE + frames.settings_frame({}) + frames.ping_frame(b"12345678")
    with socket.create_connection(("127.0.0.1", front_end.port), timeout=20) as connection:
        for byte in first:
            connection.sendall(bytes((byte,)))
        received = b""
        while frames.ping_frame(b"12345678", ACK) not in received:
            more = connection.recv(65536)
            assert more, "the server closed"
            received += more


# --- calls that are none


@pytest.mark.parametrize(
    ("changes", "status"), [({"method": "GET"}, "405"), ({"content_type": "application/json"}, "415")]
)
def test_what_is_no_grpc_call_gets_an_http_status(
    client: Http2Client, changes: dict[str, str], status: str
) -> None:
    client.call(1, **changes)
    assert client.answer(1).headers == {":status": status}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"path": "/inference.GRPCInferenceService/Nothing"}, "12"),
        ({"grpc_encoding": "snappy"}, "12"),
        ({"x": "y" * 20_000}, "8"),
    ],
    ids=["method", "encoding", "metadata"],
)
def test_calls_that_cannot_be_served_get_a_status(
    client: Http2Client, changes: dict[str, str], code: str
) -> None:
    client.call(1, **changes)
    assert client.answer(1).headers["grpc-status"] == code


@pytest.mark.parametrize("changes", [{"Upper": "x"}, {"grpc_timeout": "soon"}, {"x-bin": "***"}])
def test_malformed_headers_reset_their_call_alone(client: Http2Client, changes: dict[str, str]) -> None:
    client.call(1, **changes)
    assert client.wait_for(RST_STREAM, 1).payload == pack(">L", ErrorCode.PROTOCOL_ERROR)
    client.call(3)
    assert client.answer(3).headers["grpc-status"] == "0"


def test_a_call_that_ends_inside_its_message_or_before_fails(client: Http2Client) -> None:
    client.frame(HEADERS, END_HEADERS, 1, client.block())
    client.frame(DATA, END_STREAM, 1, b"\0\0\0\0\x05abc")
    assert client.answer(1).headers["grpc-message"] == "the call ended inside a message"
    client.frame(HEADERS, END_HEADERS | END_STREAM, 3, client.block())
    assert client.answer(3).headers["grpc-message"] == "the call carried no request"


def test_a_compressed_bomb_is_refused(client: Http2Client) -> None:
    client.call(1, zlib.compress(bytes(65 << 20)), flag=1, path=INFER, grpc_encoding="deflate")
    answer = client.answer(1)
    assert (answer.headers["grpc-status"], answer.data) == ("8", b"")
    assert "--grpc-max-decompressed-size" in answer.headers["grpc-message"]


def test_a_deadline_ends_a_call_that_nobody_answers(front_end: GrpcServer) -> None:
    with http2_client(front_end.port) as client:
        client.call(1, None, grpc_timeout="50m")
        assert client.answer(1).headers["grpc-status"] == "4"


# --- clients that break the rules


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ((DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        ((DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        ((HEADERS, END_HEADERS, 2, b""), ErrorCode.PROTOCOL_ERROR),
        ((HEADERS, END_HEADERS, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
        ((HEADERS, END_HEADERS | PADDED, 1, b"\x09abc"), ErrorCode.PROTOCOL_ERROR),
        ((HEADERS, END_HEADERS | PADDED, 1, b""), ErrorCode.PROTOCOL_ERROR),
        ((CONTINUATION, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        ((RST_STREAM, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        ((RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        ((SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        ((SETTINGS, 0, 3, b""), ErrorCode.PROTOCOL_ERROR),
        ((SETTINGS, 0, 0, pack(">HL", 4, 1 << 31)), ErrorCode.FLOW_CONTROL_ERROR),
        ((SETTINGS, 0, 0, pack(">HL", 5, 100)), ErrorCode.PROTOCOL_ERROR),
        ((PING, 0, 0, b"short"), ErrorCode.FRAME_SIZE_ERROR),
        ((WINDOW_UPDATE, 0, 0, bytes(4)), ErrorCode.FLOW_CONTROL_ERROR),
        ((WINDOW_UPDATE, 0, 0, pack(">L", (1 << 31) - 1)), ErrorCode.FLOW_CONTROL_ERROR),
        ((WINDOW_UPDATE, 0, 7, pack(">L", 1)), ErrorCode.PROTOCOL_ERROR),
        ((frames.PUSH_PROMISE, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_a_connection_that_breaks_the_protocol_is_told_and_closed(
    client: Http2Client, frame: tuple[int, int, int, bytes], code: ErrorCode
) -> None:
    client.frame(*frame)
    assert client.goaway()[1] == code


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01" + bytes(40)])
def test_other_protocols_are_turned_away(front_end: GrpcServer, first: bytes) -> None:
    assert b"the client speaks no HTTP/2" in exchanged(front_end, first)
    still_serves(front_end)


def test_settings_come_first(front_end: GrpcServer) -> None:
    first = frames.CLIENT_PREFACE + frames.ping_frame(b"12345678")
    assert b"the first frame is not SETTINGS" in exchanged(front_end, first)


def exchanged(front_end: GrpcServer, sent: bytes) -> bytes:
    """All that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", front_end.port), timeout=20) as connection:
        connection.sendall(sent)
        received = b""
        while more := connection.recv(65536):
            received += more
        return received


@pytest.mark.parametrize(
    ("kind", "length"), [(DATA, (1 << 20) + 1), (HEADERS, 70_000), (SETTINGS, 1 << 24 - 1)]
)
def test_frames_that_are_too_long_are_refused_by_their_length(
    client: Http2Client, kind: int, length: int
) -> None:
    client.send(frames.frame_header(length, kind, 0, 1) + b"x")
    assert client.goaway()[1] == ErrorCode.FRAME_SIZE_ERROR


def test_headers_without_end_are_refused(client: Http2Client) -> None:
    client.frame(HEADERS, 0, 1, client.block())
    for _ in range(8):
        client.frame(CONTINUATION, 0, 1, bytes(10_000))
    assert client.goaway()[1] == ErrorCode.ENHANCE_YOUR_CALM


def test_nothing_may_come_inside_a_header_block(client: Http2Client) -> None:
    client.frame(HEADERS, 0, 1, client.block())
    client.frame(PING, 0, 0, bytes(8))
    assert client.goaway()[1] == ErrorCode.PROTOCOL_ERROR


def test_calls_that_are_reset_at_once_leave_nothing_behind(client: Http2Client) -> None:
    block = client.block()
    flood = b"".join(
        frames.frame_header(len(block), HEADERS, END_HEADERS, stream_id)
        + block
        + frames.reset_frame(stream_id, ErrorCode.CANCEL)
        for stream_id in range(1, 20_001, 2)
    )
    client.send(flood)
    client.call(20_001)
    assert client.answer(20_001).headers["grpc-status"] == "0"


def test_more_calls_at_once_than_allowed_are_refused_one_by_one() -> None:
    with grpc_server(FakeServer()) as front_end, http2_client(front_end.port) as client:
        for stream_id in range(1, 2 * 4097 + 1, 2):
            client.call(stream_id, None)
        assert client.wait_for(RST_STREAM, 2 * 4097 - 1).payload == pack(">L", ErrorCode.REFUSED_STREAM)


def test_a_client_that_asks_and_never_reads_is_cut_off(front_end: GrpcServer) -> None:
    with http2_client(front_end.port) as client:
        client.call(1, None, path="/nothing", content_type="application/grpc")
        # By now its table has all of these headers.
        block = client.block(path="/nothing", content_type="application/grpc")
        floods = (
            b"".join(
                frames.frame_header(len(block), HEADERS, END_HEADERS | END_STREAM, stream_id) + block
                for stream_id in range(start, start + 2000, 2)
            )
            for start in range(3, 4_000_000, 2000)
        )
        with pytest.raises(OSError, match=r"Connection reset|Broken pipe"):
            deque(map(client.send, floods), maxlen=0)
    still_serves(front_end)


def test_a_stopping_server_says_goodbye_and_finishes_what_it_has() -> None:
    with grpc_server(FakeServer()) as front_end, http2_client(front_end.port) as client:
        client.call(1)
        assert client.answer(1).data == prefixed(LIVE)
        front_end.close(grace_s=1)
        assert client.goaway() == (1, ErrorCode.NO_ERROR, "")
