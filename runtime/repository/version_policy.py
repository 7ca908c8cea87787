"""Which versions of a model serve: its version policy applied to the versions that are on disk. Pure."""

from __future__ import annotations

from collections.abc import Collection

from cantata.grammars.model_config import ModelVersionPolicy


def chosen_versions(policy: ModelVersionPolicy | None, available: Collection[int]) -> list[int]:
    """The versions to load, ascending; without a policy, the latest one (reference, sections 1 and 6.10)."""
    ascending = sorted(available)
    if policy is not None and policy.all is not None:
        return ascending
    if policy is not None and policy.specific is not None:
        wanted = set(policy.specific.versions)
        return [version for version in ascending if version in wanted]
    count = policy.latest.num_versions if policy is not None and policy.latest is not None else 1
    return ascending[-count:] if count else []
