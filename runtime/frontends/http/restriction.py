"""`--http-restricted-api`: groups of endpoints that answer only to requests with a secret header."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cantata.runtime.frontends.restricted_api import RestrictedApi

Endpoint = Callable[[Request], Awaitable[Response]]


class Restrictions:
    """Which header each category of endpoints needs. A category is in one group at most."""

    def __init__(self, restricted_apis: tuple[RestrictedApi, ...]) -> None:
        self._needed = {category: api for api in restricted_apis for category in api.categories}

    def refusal(self, category: str, header: Callable[[str], str | None]) -> str | None:
        """Why a request of `category` must not be served, None when it may be; `header` finds a request's header."""
        if category not in self._needed:
            return None
        api = self._needed[category]
        if api.admits(header(api.key)):
            return None
        return f"This API is restricted, expecting header '{api.key}'"

    def guarded(self, category: str, endpoint: Endpoint) -> Endpoint:
        """`endpoint`, answering 403 to requests that it must not serve."""
        if category not in self._needed:
            return endpoint

        @wraps(endpoint)
        async def guard(request: Request) -> Response:
            refusal = self.refusal(category, request.headers.get)
            if refusal is not None:
                raise HTTPException(403, refusal)
            return await endpoint(request)

        return guard
