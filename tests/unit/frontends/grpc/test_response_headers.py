"""The headers of answers, as a client's decoder reads them: in full at first, in a byte or two afterwards."""

from __future__ import annotations

import hpack
import pytest

from cantata.runtime.frontends.grpc.http2.response_headers import (
    KNOWN_END,
    KNOWN_START,
    ResponseHeaders,
    percent_encoded,
)

START = [(":status", "200"), ("content-type", "application/grpc")]
END = [("grpc-status", "0")]


def read(decoder: hpack.Decoder, block: bytes) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in decoder.decode(block)]


def test_a_client_learns_the_headers_once() -> None:
    headers, decoder = ResponseHeaders(), hpack.Decoder()
    assert not headers.is_known
    assert read(decoder, headers.start()) == START
    assert read(decoder, headers.end()) == END
    assert headers.is_known
    assert (headers.start(), headers.end()) == (KNOWN_START, KNOWN_END)
    assert read(decoder, KNOWN_START) == START
    assert read(decoder, KNOWN_END) == END


def test_calls_may_overlap_before_the_first_has_ended() -> None:
    headers, decoder = ResponseHeaders(), hpack.Decoder()
    blocks = [headers.start(), headers.start(), headers.failure(5, "no", starts=False), headers.end()]
    blocks += [headers.end(), headers.start("gzip"), headers.failure(3, "", starts=True)]
    assert [read(decoder, block) for block in blocks] == [
        START,
        START,
        [("grpc-status", "5"), ("grpc-message", "no")],
        END,
        END,
        [*START, ("grpc-encoding", "gzip")],
        [*START, ("grpc-status", "3")],
    ]


@pytest.mark.parametrize("size", [0, 100, 300, 4095])
@pytest.mark.parametrize("answers_before", [0, 1])
def test_a_client_with_a_small_table_reads_them_all_the_same(size: int, answers_before: int) -> None:
    headers, decoder = ResponseHeaders(), hpack.Decoder()
    for _ in range(answers_before):
        read(decoder, headers.start()), read(decoder, headers.end())
    decoder.max_allowed_table_size = size
    headers.limit_table(size)
    assert not headers.is_known
    for _ in range(3):
        assert read(decoder, headers.start()) == START
        assert read(decoder, headers.end()) == END


def test_sizes_that_change_twice_are_both_heeded() -> None:
    headers, decoder = ResponseHeaders(), hpack.Decoder()
    read(decoder, headers.start()), read(decoder, headers.end())
    for size in (0, 300):
        decoder.max_allowed_table_size = size
        headers.limit_table(size)
    assert read(decoder, headers.start()) == START
    assert read(decoder, headers.end()) == END


def test_other_trailers_and_refusals_of_other_requests() -> None:
    headers, decoder = ResponseHeaders(), hpack.Decoder()
    block = headers.failure(14, "", ((b"grpc-retry-pushback-ms", b"1000"),), starts=False)
    assert read(decoder, block) == [("grpc-status", "14"), ("grpc-retry-pushback-ms", "1000")]
    assert read(decoder, headers.http_failure(415)) == [(":status", "415")]


@pytest.mark.parametrize(
    ("details", "encoded"),
    [
        ("plain text", b"plain text"),
        ("50% ä\n", b"50%25 %C3%A4%0A"),
        ("x" * 9000, b"x" * 4096),
        ("xä" * 2000, b"x%C3%A4" * 585 + b"x"),
    ],
)
def test_details_are_percent_encoded_and_bounded(details: str, encoded: bytes) -> None:
    assert percent_encoded(details) == encoded
