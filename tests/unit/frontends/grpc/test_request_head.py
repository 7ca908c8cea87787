"""What a call's headers say, and headers that no call has."""

from __future__ import annotations

from typing import Any

import pytest

from cantata.runtime.frontends.grpc.request_head import MalformedHeadError, request_head

GRPC = [
    (b":method", b"POST"),
    (b":path", b"/a.B/C"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
]


def test_metadata_is_what_is_not_the_protocols_own() -> None:
    more = [(b"x", b"1"), (b"x", b"2"), (b"y-bin", b"AAE"), (b"z-bin", b"AA,AQ==")]
    head = request_head(
        [*GRPC, *more, (b"grpc-encoding", b"gzip"), (b"grpc-accept-encoding", b"gzip, identity")]
    )
    metadata = (("x", "1"), ("x", "2"), ("y-bin", b"\0\1"), ("z-bin", b"\0"), ("z-bin", b"\1"))
    assert head == (b"/a.B/C", metadata, None, "gzip", ("gzip", "identity"), 200)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (b"1H", 3600 * 10**9),
        (b"2M", 120 * 10**9),
        (b"3S", 3 * 10**9),
        (b"4m", 4 * 10**6),
        (b"0u", 0),
        (b"99999999n", 99999999),
    ],
)
def test_timeouts_have_units(text: bytes, ns: int) -> None:
    assert request_head([*GRPC, (b"grpc-timeout", text)]).timeout_ns == ns


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({b":method": b"GET"}, 405),
        ({b"content-type": b"text/plain"}, 415),
        ({b"content-type": b"application/grpcx"}, 415),
        ({b"content-type": b"application/grpc+proto"}, 200),
    ],
)
def test_other_requests_get_an_http_status(change: dict[bytes, bytes], status: int) -> None:
    headers = [(name, change.get(name, value)) for name, value in GRPC]
    assert request_head(headers).http_status == status


@pytest.mark.parametrize(
    "headers",
    [
        GRPC[1:],
        [GRPC[0], *GRPC[2:]],
        [*GRPC, (b"Upper", b"x")],
        [*GRPC, (b"x-bin", b"***")],
        [*GRPC, (b"grpc-timeout", b"soon")],
        [*GRPC, (b"grpc-timeout", b"123456789S")],
    ],
    ids=["no method", "no path", "upper case", "no base64", "no timeout", "long timeout"],
)
def test_headers_that_no_call_has_are_refused(headers: Any) -> None:
    with pytest.raises(MalformedHeadError):
        request_head(headers)
