"""Versions that no longer serve are closed, whenever the server ends."""

from __future__ import annotations

import pytest

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.repository.model_version import ModelState
from cantata.runtime.repository.retirement import Retirement


class IdleScheduler:
    """A scheduler that has answered everything."""

    in_flight = 0

    def stop(self) -> None:
        """Nothing comes."""

    def wait_until_idle(self, timeout_s: float | None) -> bool:
        return True


class LeavingVersion:
    """A version that is unloaded and has nothing left to answer."""

    name = "model"
    version = 1
    depends_on = ()
    state = ModelState.UNLOADING
    reason = ""

    def __init__(self) -> None:
        self.scheduler = IdleScheduler()
        self.close_count = 0

    def close(self) -> None:
        self.close_count += 1


def test_a_version_whose_thread_has_not_begun_is_closed_when_everything_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retirement = Retirement()
    version = LeavingVersion()
    monkeypatch.setattr(retirement, "_start", lambda versions: None)
    retirement.retire([version])  # type: ignore[list-item]
    assert retirement.close_all([], monotonic_ns() + 10**10)
    assert version.close_count == 1
    assert version.state is ModelState.UNAVAILABLE


def test_a_version_is_closed_once_however_it_is_reached() -> None:
    retirement = Retirement()
    version = LeavingVersion()
    retirement.retire([version])  # type: ignore[list-item]
    assert retirement.close_all([], monotonic_ns() + 10**10)
    assert version.close_count == 1
