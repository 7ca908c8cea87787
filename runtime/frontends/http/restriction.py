"""Groups of endpoints that answer only to some: `--http-restricted-api`, and `--api-keys`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cantata.runtime.frontends.api_keys import REFUSAL, ApiKeys
from cantata.runtime.frontends.http.errors import JSON_HEADERS, error_body
from cantata.runtime.frontends.restricted_api import RestrictedApi

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served. A client without a key is told what kind of key there is."""

    status: int
    text: str

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def answer(self) -> tuple[int, bytes, bytes]:
        """Status, header lines and body, as an exchange takes them."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return self.status, lines.encode() + JSON_HEADERS, error_body(self.text)


_NO_KEY = Refusal(401, REFUSAL)


class Restrictions:
    """Which header, and which keys, each category of endpoints needs. A category is in one group at most of each."""

    def __init__(
        self, restricted_apis: tuple[RestrictedApi, ...], api_keys: tuple[ApiKeys, ...] = ()
    ) -> None:
        self._needed = {category: api for api in restricted_apis for category in api.categories}
        self._keys = {group: keys for keys in api_keys for group in keys.groups}
        self.are_any = bool(self._needed or self._keys)

    def refusal(self, category: str, header: Callable[[str], str | None]) -> Refusal | None:
        """Why a request of `category` must not be served, None when it may be; `header` finds a request's header."""
        keys = self._keys.get(category)
        if keys is not None and not keys.admits(header):
            return _NO_KEY
        api = self._needed.get(category)
        if api is None or api.admits(header(api.key)):
            return None
        return Refusal(403, f"This API is restricted, expecting header '{api.key}'")

    def guarded(self, category: str, endpoint: Endpoint) -> Endpoint:
        """`endpoint`, refusing the requests that it must not serve."""
        if category not in self._needed and category not in self._keys:
            return endpoint

        @wraps(endpoint)
        async def guard(request: Request) -> Response:
            refusal = self.refusal(category, request.headers.get)
            if refusal is not None:
                raise HTTPException(refusal.status, refusal.text, refusal.headers)
            return await endpoint(request)

        return guard
