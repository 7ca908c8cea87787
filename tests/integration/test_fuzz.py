"""Some seconds of each fuzzing campaign; `python -m tests.fuzz --minutes 30` is the real thing."""

from __future__ import annotations

import pytest

from tests.fuzz.campaign import TARGETS, campaign

_SECONDS = 4.0


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_the_server(target: str) -> None:
    with campaign(target, seed=1) as running:
        result = running.run(_SECONDS)
    assert result.findings == []
    assert result.cases > 0
