"""The table of status codes against the reference and against grpc's own numbers."""

from __future__ import annotations

import grpc
import pytest

from cantata.runtime.errors import StatusCode
from cantata.runtime.frontends.status_codes import GRPC_CODES, HTTP_STATUSES


def test_every_status_code_has_a_grpc_code_and_an_http_status() -> None:
    assert set(GRPC_CODES) == set(HTTP_STATUSES) == set(StatusCode)


@pytest.mark.parametrize(
    ("code", "grpc_code", "http_status"),
    [
        (StatusCode.UNKNOWN, grpc.StatusCode.UNKNOWN, 400),
        (StatusCode.INTERNAL, grpc.StatusCode.INTERNAL, 500),
        (StatusCode.NOT_FOUND, grpc.StatusCode.NOT_FOUND, 404),
        (StatusCode.INVALID_ARG, grpc.StatusCode.INVALID_ARGUMENT, 400),
        (StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, 503),
        (StatusCode.UNSUPPORTED, grpc.StatusCode.UNIMPLEMENTED, 501),
        (StatusCode.ALREADY_EXISTS, grpc.StatusCode.ALREADY_EXISTS, 400),
        (StatusCode.CANCELLED, grpc.StatusCode.CANCELLED, 400),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_codes_are_those_of_the_reference(
    code: StatusCode, grpc_code: grpc.StatusCode, http_status: int
) -> None:
    assert GRPC_CODES[code] == grpc_code.value[0]
    assert HTTP_STATUSES[code] == http_status
