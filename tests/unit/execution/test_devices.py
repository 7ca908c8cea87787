"""Where the instances of a model are placed."""

from __future__ import annotations

import pytest

from cantata.grammars.model_config import InstanceKind, ModelConfig, ModelInstanceGroup
from cantata.runtime.backends.backend import InstancePlacement, LoadedModel, ModelFiles
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.execution.devices import available_gpus, complete_instance_groups, place_instances

AUTO, GPU = InstanceKind.KIND_AUTO, InstanceKind.KIND_GPU
CPU, MODEL = InstanceKind.KIND_CPU, InstanceKind.KIND_MODEL


class StubBackend:
    """Two instances on the CPU, one elsewhere, as the onnxruntime backend has them."""

    def __init__(self, kind: str = "AUTO") -> None:
        self._kind = kind

    def default_instance_count(self, kind: str) -> int:
        return 2 if kind == "CPU" else 1

    def default_kind(self) -> str:
        return self._kind

    def complete_config(self, files: ModelFiles, config: ModelConfig) -> ModelConfig:
        return config

    def load(self, files: ModelFiles, config: ModelConfig) -> LoadedModel:
        raise AssertionError(f"{files} and {config} are not to be loaded here")

    def close(self) -> None:
        pass


def place(
    *groups: ModelInstanceGroup, gpus: tuple[int, ...] = (), default_kind: str = "AUTO"
) -> list[InstancePlacement]:
    config = ModelConfig(name="m", backend="onnxruntime", instance_group=groups)
    return place_instances(complete_instance_groups(config, StubBackend(default_kind), gpus))


def named(*placements: tuple[str, str, int]) -> list[InstancePlacement]:
    return [InstancePlacement(*placement) for placement in placements]


@pytest.mark.parametrize(
    ("default_kind", "gpus", "expected"),
    [
        ("AUTO", (), named(("m_0", "CPU", 0), ("m_1", "CPU", 0))),
        ("AUTO", (0, 1), named(("m_0_gpu0", "GPU", 0), ("m_0_gpu1", "GPU", 1))),
        ("CPU", (0,), named(("m_0", "CPU", 0), ("m_1", "CPU", 0))),
        ("MODEL", (0,), named(("m_0", "MODEL", 0))),
    ],
)
def test_without_groups_the_backend_decides(
    default_kind: str, gpus: tuple[int, ...], expected: list[InstancePlacement]
) -> None:
    assert place(gpus=gpus, default_kind=default_kind) == expected


def test_groups_are_named_after_the_model_and_their_index() -> None:
    groups = (ModelInstanceGroup(kind=CPU, count=1), ModelInstanceGroup(name="own", kind=CPU, count=2))
    assert place(*groups) == named(("m_0_0", "CPU", 0), ("own_0", "CPU", 0), ("own_1", "CPU", 0))


def test_a_gpu_group_has_its_count_on_each_of_its_gpus() -> None:
    group = ModelInstanceGroup(name="g", kind=GPU, count=2, gpus=(1, 2))
    assert place(group, gpus=(0, 1, 2)) == named(
        ("g_0_gpu1", "GPU", 1), ("g_1_gpu1", "GPU", 1), ("g_0_gpu2", "GPU", 2), ("g_1_gpu2", "GPU", 2)
    )


def test_an_automatic_group_runs_on_the_cpu_where_a_gpu_it_lists_is_absent() -> None:
    group = ModelInstanceGroup(name="g", kind=AUTO, count=1, gpus=(3,))
    assert place(group, gpus=(0, 1)) == named(("g_0", "CPU", 0))
    assert place(group, gpus=(3,)) == named(("g_0_gpu3", "GPU", 3))


def test_passive_instances_are_not_made() -> None:
    groups = (ModelInstanceGroup(kind=CPU, count=1), ModelInstanceGroup(kind=CPU, count=4, passive=True))
    assert place(*groups) == named(("m_0_0", "CPU", 0))


@pytest.mark.parametrize(
    ("group", "gpus", "text"),
    [
        (
            ModelInstanceGroup(name="g", kind=CPU, gpus=(0,)),
            (0,),
            "instance group g of model m has kind KIND_CPU but specifies one or more GPUs",
        ),
        (
            ModelInstanceGroup(name="g", kind=MODEL, gpus=(0,)),
            (0,),
            "instance group g of model m has kind KIND_MODEL but specifies one or more GPUs",
        ),
        (
            ModelInstanceGroup(kind=GPU),
            (),
            "instance group m_0 of model m has kind KIND_GPU but no GPUs are available",
        ),
        (
            ModelInstanceGroup(name="g", kind=GPU, gpus=(0, 7)),
            (0, 1),
            "instance group g of model m specifies invalid or unsupported gpu id 7. "
            "GPUs that are available: 0, 1",
        ),
    ],
)
def test_a_group_that_asks_for_what_is_absent_is_refused(
    group: ModelInstanceGroup, gpus: tuple[int, ...], text: str
) -> None:
    with pytest.raises(InferenceError) as caught:
        place(group, gpus=gpus)
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARG, text)


def test_gpus_are_numbered_from_zero() -> None:
    assert available_gpus() == tuple(range(len(available_gpus())))


def test_the_completed_groups_say_everything() -> None:
    config = ModelConfig(name="m", instance_group=(ModelInstanceGroup(kind=AUTO, gpus=(4,)),))
    completed = complete_instance_groups(config, StubBackend(), gpus=())
    assert completed.instance_group == (ModelInstanceGroup(name="m_0", kind=CPU, count=2),)
