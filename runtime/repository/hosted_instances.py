"""The instances of one model version that serves, by where they run, and how they change while it serves.

Owns making them, what the rate limiter knows of them, and their end. Which batches they run is the scheduler's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cantata.grammars.model_config import ModelConfig, ModelInstanceGroup
from cantata.runtime.backends.backend import (
    BackendInstance,
    InstancePlacement,
    LoadedModel,
    ReconfigurableModel,
    SelfReportingInstance,
    SenderHoldingInstance,
)
from cantata.runtime.execution.devices import place_by_group
from cantata.runtime.execution.limited_dispatch import LimitedDispatch
from cantata.runtime.scheduling.scheduled_instance import ScheduledInstance

_log = logging.getLogger("cantata.repository")

# An instance with the group that asks for it and where it runs.
_Placed = tuple[ModelInstanceGroup, InstancePlacement, BackendInstance]
# Has instances that serve nobody yet run their model's samples.
WarmUp = Callable[[Sequence[BackendInstance]], None]
_Key = tuple[ModelInstanceGroup, InstancePlacement]


class InstanceScheduler(Protocol):
    """What runs the instances: a ModelScheduler or a SequenceScheduler."""

    def add_instances(self, backend_instances: Sequence[BackendInstance]) -> None: ...
    def remove_instances(self, backend_instances: Collection[BackendInstance]) -> list[ScheduledInstance]: ...
    def close_removed(self, instance: ScheduledInstance) -> None: ...


@dataclass(frozen=True, slots=True)
class InstanceChange:
    """What changes the instances from one configuration's to another's. Those `added` are ready to execute."""

    config: ModelConfig
    placed: tuple[_Placed, ...]
    added: tuple[_Placed, ...]
    removed: tuple[_Placed, ...]


class HostedInstances:
    """The instances of a loaded model. Not for several threads at once: the repository changes one thing at a time.

    What is read by requests, `reporting`, is replaced whole.
    """

    def __init__(
        self,
        model: LoadedModel,
        scheduler: InstanceScheduler,
        warm_up: WarmUp,
        limits: LimitedDispatch | None,
    ) -> None:
        """`warm_up` is called with instances that are about to serve; `limits` decides when they run, if anything."""
        self._model = model
        self._scheduler = scheduler
        self._warm_up = warm_up
        self._limits = limits
        # What the instances are of; None while there are none yet.
        self._config: ModelConfig | None = None
        self._placed: tuple[_Placed, ...] = ()
        # Those whose model says by itself whether it is ready.
        self.reporting: tuple[SelfReportingInstance, ...] = ()

    @property
    def only_hold_senders(self) -> bool:
        """Whether nothing is executed: what is unanswered now depends on models that hold response senders."""
        return all(
            isinstance(instance, SenderHoldingInstance) and not instance.is_executing
            for *_, instance in self._placed
        )

    def prepare(self, config: ModelConfig) -> InstanceChange:
        """Make the instances that `config` has more; raises InferenceError, and leaves nothing, where that fails.

        The other configuration differs from the present one in its instance groups only.
        """
        present: dict[_Key, list[_Placed]] = {}
        for one in self._placed:
            present.setdefault(_key(one[0], one[1]), []).append(one)
        added: list[_Placed] = []
        placed: list[_Placed] = []
        try:
            self._reconfigure(config)
            for group, placement in place_by_group(config):
                alike = present.get(_key(group, placement))
                if alike:
                    placed.append(alike.pop())
                else:
                    added.append((group, placement, self._model.create_instance(placement)))
                    placed.append(added[-1])
            self._warm_up([instance for _, _, instance in added])
            if self._limits is not None:
                self._limits.add(added)
        except BaseException:
            _close_all(added)
            self._reconfigure(self._config)
            raise
        removed = tuple(one for alike in present.values() for one in alike)
        return InstanceChange(config, tuple(placed), tuple(added), removed)

    def commit(self, change: InstanceChange) -> Callable[[], None]:
        """Carry out a change, those added before those removed. What is returned waits for these, and closes them."""
        scheduler = self._scheduler
        self._config = change.config
        self._placed = change.placed
        self.reporting = tuple(
            instance
            for _, _, instance in change.placed
            if isinstance(instance, SelfReportingInstance) and instance.has_readiness_hook
        )
        scheduler.add_instances([instance for _, _, instance in change.added])
        removed = [instance for _, _, instance in change.removed]
        leaving = scheduler.remove_instances(removed)

        def close_removed() -> None:
            for instance in leaving:
                scheduler.close_removed(instance)
            if self._limits is not None:
                self._limits.remove(removed)

        return close_removed

    def discard(self, change: InstanceChange) -> None:
        """Undo `prepare`."""
        if self._limits is not None:
            self._limits.remove([instance for _, _, instance in change.added])
        _close_all(change.added)
        self._reconfigure(self._config)

    def close(self) -> None:
        """Forget the instances, which are closed by their scheduler."""
        if self._limits is not None:
            self._limits.remove([instance for _, _, instance in self._placed])

    def _reconfigure(self, config: ModelConfig | None) -> None:
        if config is not None and isinstance(self._model, ReconfigurableModel):
            self._model.reconfigure(config)


def _key(group: ModelInstanceGroup, placement: InstancePlacement) -> _Key:
    """What two instances have in common that are one and the same, however many others their groups have."""
    return group.model_copy(update={"count": 0, "gpus": ()}), placement


def _close_all(placed: Iterable[_Placed]) -> None:
    for _, _, instance in placed:
        try:
            instance.close()
        except Exception:
            _log.exception("an instance could not be closed")
