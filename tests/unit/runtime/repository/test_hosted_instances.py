"""A change of instances that fails, or is not carried out, leaves the model as it was."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cantata.grammars.model_config import InstanceKind, ModelConfig, ModelInstanceGroup
from cantata.runtime.backends.backend import BackendInstance, InstancePlacement
from cantata.runtime.errors import InferenceError, internal_error
from cantata.runtime.execution.execution import Execution
from cantata.runtime.repository.hosted_instances import HostedInstances


class Instance:
    def execute(self, execution: Execution) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""


class Model:
    """Is told the configuration, and makes so many instances at most."""

    def __init__(self, most: int) -> None:
        self.config: ModelConfig | None = None
        self._left = most

    def create_instance(self, placement: InstancePlacement) -> BackendInstance:
        if not self._left:
            raise internal_error("no room")
        self._left -= 1
        return Instance()

    def reconfigure(self, config: ModelConfig) -> None:
        self.config = config

    def close(self) -> None:
        """Nothing is held."""


class Scheduler:
    def add_instances(self, instances: Sequence[BackendInstance]) -> None:
        """Nothing is run."""

    def remove_instances(self, instances: Sequence[BackendInstance]) -> list[object]:
        return []


def config_of(count: int) -> ModelConfig:
    group = ModelInstanceGroup(name="group", kind=InstanceKind.KIND_CPU, count=count)
    return ModelConfig(name="model", instance_group=(group,))


def hosted(model: Model) -> HostedInstances:
    instances = HostedInstances(model, Scheduler(), lambda new: None, None)  # type: ignore[arg-type]
    instances.commit(instances.prepare(config_of(1)))
    return instances


def test_a_change_that_fails_leaves_the_model_its_configuration() -> None:
    model = Model(most=1)
    instances = hosted(model)
    with pytest.raises(InferenceError, match="no room"):
        instances.prepare(config_of(2))
    assert model.config == config_of(1)


def test_a_change_that_is_not_carried_out_leaves_the_model_its_configuration() -> None:
    model = Model(most=4)
    instances = hosted(model)
    instances.discard(instances.prepare(config_of(3)))
    assert model.config == config_of(1)
    instances.commit(instances.prepare(config_of(2)))
    assert model.config == config_of(2)
