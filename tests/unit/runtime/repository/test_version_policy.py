"""Which versions serve under each version policy."""

from __future__ import annotations

import pytest

from cantata.grammars.model_config import (
    ModelVersionPolicy,
    VersionPolicyAll,
    VersionPolicyLatest,
    VersionPolicySpecific,
)
from cantata.runtime.repository.version_policy import chosen_versions


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (None, [10]),
        (ModelVersionPolicy(), [10]),
        (ModelVersionPolicy(latest=VersionPolicyLatest(num_versions=2)), [3, 10]),
        (ModelVersionPolicy(latest=VersionPolicyLatest(num_versions=9)), [1, 3, 10]),
        (ModelVersionPolicy(all=VersionPolicyAll()), [1, 3, 10]),
        (ModelVersionPolicy(specific=VersionPolicySpecific(versions=(3, 7, 1))), [1, 3]),
        (ModelVersionPolicy(specific=VersionPolicySpecific(versions=(7,))), []),
    ],
)
def test_versions_are_chosen_in_ascending_order(policy: ModelVersionPolicy | None, chosen: list[int]) -> None:
    assert chosen_versions(policy, {10, 1, 3}) == chosen
