"""Which devices there are, and where the instances of a model go (reference, section 6.8).

Asks the CUDA driver itself, so that counting GPUs needs no model library and obeys CUDA_VISIBLE_DEVICES.
Knows nothing of what an instance does there.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence

from cantata.grammars.model_config import InstanceKind, ModelConfig, ModelInstanceGroup
from cantata.runtime.backends.backend import Backend, InstancePlacement
from cantata.runtime.errors import InferenceError, invalid_argument

_CUDA_DRIVER = "libcuda.so.1"


@functools.cache
def available_gpus() -> tuple[int, ...]:
    """The ids of the GPUs that this process may use; empty where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return ()
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(range(count.value))


def complete_instance_groups(
    config: ModelConfig, backend: Backend, gpus: Sequence[int] | None = None
) -> ModelConfig:
    """`config` with its instance groups filled in: names, kinds and counts, and one group where there is none.

    `gpus` are the GPUs there are, those of the machine unless given. Raises InferenceError (INVALID_ARG) when a
    group asks for what is not there.
    """
    present = available_gpus() if gpus is None else tuple(gpus)
    asked = config.instance_group or (
        ModelInstanceGroup(name=config.name, kind=InstanceKind[f"KIND_{backend.default_kind()}"]),
    )
    completed: list[ModelInstanceGroup] = []
    for index, group in enumerate(asked):
        name = group.name or f"{config.name}_{index}"
        kind = _placed_kind(group, present)
        _check_group(config.name, name, kind, group, present)
        completed.append(
            group.model_copy(
                update={
                    "name": name,
                    "kind": InstanceKind[f"KIND_{kind}"],
                    "count": group.count if group.count > 0 else backend.default_instance_count(kind),
                    "gpus": (group.gpus or present) if kind == "GPU" else (),
                }
            )
        )
    return config.model_copy(update={"instance_group": tuple(completed)})


def place_instances(config: ModelConfig) -> list[InstancePlacement]:
    """Where each instance of a model runs, in order; `config`'s instance groups are complete.

    Passive instances would never be given a request, so they are not made.
    """
    return [placement for _, placement in place_by_group(config)]


def place_by_group(config: ModelConfig) -> list[tuple[ModelInstanceGroup, InstancePlacement]]:
    """As `place_instances`, each with its group."""
    return [
        (group, placement)
        for group in config.instance_group
        if not group.passive
        for placement in _placements(
            group.name, group.kind.name.removeprefix("KIND_"), group.count, group.gpus
        )
    ]


def _placed_kind(group: ModelInstanceGroup, present: Sequence[int]) -> str:
    if group.kind is not InstanceKind.KIND_AUTO:
        return group.kind.name.removeprefix("KIND_")
    return "GPU" if present and set(group.gpus) <= set(present) else "CPU"


def _placements(group: str, kind: str, count: int, gpus: Sequence[int]) -> Iterator[InstancePlacement]:
    if kind != "GPU":
        yield from (InstancePlacement(f"{group}_{index}", kind, 0) for index in range(count))
        return
    for gpu in gpus:
        yield from (InstancePlacement(f"{group}_{index}_gpu{gpu}", kind, gpu) for index in range(count))


def _check_group(
    model: str, group: str, kind: str, asked: ModelInstanceGroup, present: Sequence[int]
) -> None:
    if kind != "GPU":
        # An automatic group may list GPUs and still run on the CPU of a machine that lacks them.
        if asked.gpus and asked.kind is not InstanceKind.KIND_AUTO:
            raise _error(model, group, f"has kind KIND_{kind} but specifies one or more GPUs")
        return
    if not present:
        raise _error(model, group, "has kind KIND_GPU but no GPUs are available")
    for gpu in asked.gpus:
        if gpu not in present:
            listed = ", ".join(map(str, present))
            raise _error(
                model,
                group,
                f"specifies invalid or unsupported gpu id {gpu}. GPUs that are available: {listed}",
            )


def _error(model: str, group: str, text: str) -> InferenceError:
    return invalid_argument(f"instance group {group} of model {model} {text}")
