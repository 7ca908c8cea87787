"""gRPC's own status codes, as far as the front-end itself says them; the table for Triton's is in `status_codes`."""

from __future__ import annotations

from typing import Final

OK: Final = 0
CANCELLED: Final = 1
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16
