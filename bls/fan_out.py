"""Several calls at once: `bls.gather` and `bls.map`.

They differ from asyncio's in two things: the first that fails ends the others, and its own error is raised; and calls
made at the same moment reach the called model together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from cantata.bls.submission import fans_out

T = TypeVar("T")


async def gather(*awaitables: Awaitable[T]) -> list[T]:
    """Await all, side by side, and return their results in order.

    Calls that they make at the same moment reach the called model together, and are batched there.
    """
    token = fans_out.set(True)
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    fans_out.reset(token)
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        # None is left behind, running for nobody.
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def map(
    function: Callable[..., Awaitable[T]], *iterables: Iterable[Any], limit: int | None = None
) -> list[T]:
    """`function` of each item, side by side as in `gather`, at most `limit` at a time.

    Several iterables give it several arguments, as with the built-in `map`, but must be of the same length.
    """
    items = list(zip(*iterables, strict=True))
    if limit is None:
        return await gather(*(function(*item) for item in items))
    free = asyncio.Semaphore(limit)

    async def run(item: tuple[Any, ...]) -> T:
        async with free:
            return await function(*item)

    return await gather(*(run(item) for item in items))
