"""PyTorch model files, opened into one form: TorchScript, exported programs, AOTInductor packages.

What a file is, its contents tell, not its name. Knows nothing of configurations, requests or tensors of ours.
"""

from __future__ import annotations

import inspect
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils import _pytree

from cantata.runtime.backends.torch_naming import Argument

# torch says in a warning that TorchScript is deprecated; to silence it here, warnings' own global state is changed.
_opening: Final = threading.Lock()


class UnreadableModelError(Exception):
    """A file that is no PyTorch model that can be called; the text says what it is or why."""


class Program:
    """A callable model. `arguments` are the values it is called with, in the order that `call` takes them.

    `defaults` are what stands in for an argument that is not given. A program that `writes_in_place` may change
    what it is called with, or what it has returned before. `takes_dictionary`: the arguments are keys of one.
    """

    __slots__ = ("arguments", "call", "defaults", "takes_dictionary", "writes_in_place")

    def __init__(
        self,
        arguments: Sequence[Argument],
        call: Callable[[list[Any]], Any],
        *,
        defaults: Sequence[Any] = (),
        takes_dictionary: bool = False,
        writes_in_place: bool = False,
    ) -> None:
        self.arguments = tuple(arguments)
        self.call = call
        self.defaults = list(defaults) or [None] * len(self.arguments)
        self.takes_dictionary = takes_dictionary
        self.writes_in_place = writes_in_place


def open_program(path: Path, device: torch.device | None) -> Program:
    """Open a model file on `device`; None leaves its parts where the model itself puts them.

    Raises UnreadableModelError for a file that is none, and whatever torch raises for one that it cannot load.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
    except zipfile.BadZipFile:
        raise UnreadableModelError("it is not a PyTorch file, or is damaged") from None
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if any("/data/aotinductor/" in entry for entry in entries):
            return _open_package(path, device)
        if any(entry.endswith("/models/model.json") for entry in entries):
            return _open_exported(path, device)
        if any("/code/" in entry for entry in entries):
            return _open_torchscript(path, device)
    raise UnreadableModelError(
        "it is a pickled object, not a model that can be called: save it with torch.export.save or torch.jit.save"
    )


def _open_torchscript(path: Path, device: torch.device | None) -> Program:
    module = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    module.eval()
    schema = module.forward.schema.arguments[1:]
    writes = _has_writing_node(module.inlined_graph)
    if len(schema) == 1 and str(schema[0].type).startswith("Dict[str,"):
        return Program((), lambda values: module(*values), takes_dictionary=True, writes_in_place=writes)
    arguments = [Argument(argument.name, is_required=not argument.has_default_value()) for argument in schema]
    defaults = [argument.default_value if argument.has_default_value() else None for argument in schema]
    forward = module.forward
    return Program(arguments, lambda values: forward(*values), defaults=defaults, writes_in_place=writes)


def _has_writing_node(block: Any) -> bool:
    for node in block.nodes():
        if "!" in node.schema().partition("->")[0]:
            return True
        if any(_has_writing_node(inner) for inner in node.blocks()):
            return True
    return False


def _open_exported(path: Path, device: torch.device | None) -> Program:
    with path.open("rb") as file:
        exported = torch.export.load(file)
    if device is not None and device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        exported = move_to_device_pass(exported, device)
    module = exported.module()
    writes = any(
        getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in module.graph.nodes
    )
    names = list(inspect.signature(module.forward).parameters)
    # forward() checks the shapes it was exported for; calling the module itself would check them once more.
    return _structured_program(module.forward, exported.call_spec.in_spec, names, writes_in_place=writes)


def _open_package(path: Path, device: torch.device | None) -> Program:
    # A package is compiled for one kind of device, and says so by failing where it is another.
    index = device.index if device is not None and device.index is not None else -1
    model = torch._inductor.aoti_load_package(str(path), device_index=index)
    in_spec = _pytree.treespec_loads(model.loader.get_call_spec()[0])
    return _structured_program(model, in_spec, [], writes_in_place=False)


def _structured_program(
    model: Callable[..., Any],
    in_spec: _pytree.TreeSpec,
    names: Sequence[str],
    *,
    writes_in_place: bool,
) -> Program:
    """A model that is called as `model(*args, **kwargs)`, whose tensors may lie inside tuples and dictionaries."""
    numbered = _pytree.tree_unflatten(list(range(in_spec.num_leaves)), in_spec)
    paths = [tuple(_steps(path)) for path, _ in _pytree.tree_flatten_with_path(numbered)[0]]
    arguments = [_argument(path, names) for path in paths]
    if all(len(path) == 2 and path[0] == 0 for path in paths):
        return Program(arguments, lambda values: model(*values), writes_in_place=writes_in_place)

    def call(values: list[Any]) -> Any:
        args, kwargs = _pytree.tree_unflatten(values, in_spec)
        return model(*args, **kwargs)

    return Program(arguments, call, writes_in_place=writes_in_place)


def _steps(path: Sequence[Any]) -> Iterator[int | str]:
    for step in path:
        yield step.key if isinstance(step, _pytree.MappingKey) else step.idx


def _argument(path: tuple[int | str, ...], names: Sequence[str]) -> Argument:
    """The argument at a path into `(args, kwargs)`."""
    kind, *steps = path
    text = ("ARGS" if kind == 0 else "KWARGS") + "".join(f"[{step}]" for step in steps)
    last = steps[-1]
    if isinstance(last, str):
        return Argument(last, text)
    is_own_argument = kind == 0 and len(steps) == 1 and last < len(names)
    return Argument(names[last] if is_own_argument else "", text)
