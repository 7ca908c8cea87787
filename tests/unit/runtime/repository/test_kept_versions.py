"""Which versions serve on when a model is loaded again: a table of what has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cantata.grammars.model_config import (
    ModelConfig,
    ModelInstanceGroup,
    ModelVersionPolicy,
    VersionPolicyAll,
)
from cantata.grammars.problems import Positions
from cantata.runtime.repository.completion import PreparedModel
from cantata.runtime.repository.kept_versions import kept_versions
from cantata.runtime.repository.source import ModelDirectory

FILES = ("config.pbtxt", "labels.txt", "1/model.py", "2/model.py", "2/sub/weights")


def prepared(
    *changed: str, config: ModelConfig | None = None, versions: tuple[int, ...] = (1, 2), path: str = "m"
) -> PreparedModel:
    """The model, with files that are new, or other than they were."""
    files = {*FILES, *changed}
    fingerprint = frozenset((file, 2 if file in changed else 1, 10) for file in files)
    directory = ModelDirectory("m", Path(path), Path(path, "config.pbtxt"), "", versions, fingerprint)
    return PreparedModel(directory, config or ModelConfig(name="m"), Positions(), versions, ())


@pytest.mark.parametrize(
    ("label", "new", "kept"),
    [
        ("nothing", prepared(), {1, 2}),
        ("the configuration's text", prepared("config.pbtxt", "configs/other.pbtxt"), {1, 2}),
        (
            "the instances",
            prepared(config=ModelConfig(name="m", instance_group=(ModelInstanceGroup(count=3),))),
            {1, 2},
        ),
        (
            "the version policy",
            prepared(
                config=ModelConfig(name="m", version_policy=ModelVersionPolicy(all=VersionPolicyAll())),
                versions=(2, 3),
            ),
            {2},
        ),
        ("another field", prepared(config=ModelConfig(name="m", max_batch_size=3)), set()),
        ("one version's file", prepared("1/model.py"), {2}),
        ("one version's deeper file", prepared("2/sub/weights"), {1}),
        ("a file that is new", prepared("2/more.py"), {1}),
        ("a version that is new", prepared("3/model.py", versions=(1, 2, 3)), {1, 2}),
        ("a shared file", prepared("labels.txt"), set()),
        ("a file in a shared directory", prepared("warmup/data"), set()),
        ("a configuration given with a load", prepared("override:"), {1, 2}),
        ("a file given with a load", prepared("override:1/model.py"), {2}),
        ("the place", prepared(path="elsewhere"), set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_version_serves_on_where_nothing_of_it_has_changed(
    label: str, new: PreparedModel, kept: set[int]
) -> None:
    assert kept_versions(prepared(), new) == kept, label
