"""The one table from Triton's status codes to the two protocols' own (reference, head).

Both front-ends read it. Numbers only: it needs neither grpc nor starlette.
"""

from __future__ import annotations

from typing import Final

from cantata.runtime.errors import StatusCode

# gRPC's numbers, as google.rpc.Code has them.
GRPC_CODES: Final[dict[StatusCode, int]] = {
    StatusCode.UNKNOWN: 2,
    StatusCode.INTERNAL: 13,
    StatusCode.NOT_FOUND: 5,
    StatusCode.INVALID_ARG: 3,
    StatusCode.UNAVAILABLE: 14,
    StatusCode.UNSUPPORTED: 12,
    StatusCode.ALREADY_EXISTS: 6,
    StatusCode.CANCELLED: 1,
}

HTTP_STATUSES: Final[dict[StatusCode, int]] = {
    StatusCode.UNKNOWN: 400,
    StatusCode.INTERNAL: 500,
    StatusCode.NOT_FOUND: 404,
    StatusCode.INVALID_ARG: 400,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.UNSUPPORTED: 501,
    StatusCode.ALREADY_EXISTS: 400,
    StatusCode.CANCELLED: 400,
}
