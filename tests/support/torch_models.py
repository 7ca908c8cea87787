"""Tiny PyTorch models, saved the way users save them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

# What TorchScript compiles must be known by these names when it reads an annotation.
Tensor = torch.Tensor


class AddSub(torch.nn.Module):
    """Sum and difference."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a + b, a - b


class Accumulate(torch.nn.Module):
    """The sum so far, twice: as the answer and as the state."""

    def forward(self, value: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = total + value
        return total, total


class Row(torch.nn.Module):
    """What comes in, side by side."""

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor) -> Tensor:
        return torch.cat([each.to(torch.float32) for each in (a, b, c, d, e)], dim=1)


class AddDefault(torch.nn.Module):
    """A second argument that may be left out."""

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        if b is None:
            return a + 100
        return a + b


class Dictionary(torch.nn.Module):
    """Tensors by name, in and out."""

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"SUM": tensors["A"] + tensors["B"]}


class Shout(torch.nn.Module):
    """Strings in and out."""

    def forward(self, words: list[str]) -> list[str]:
        return [word + "!" for word in words]


class Identity(torch.nn.Module):
    """What comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class WritesToItsInput(torch.nn.Module):
    """Adds one to what it was given, in place."""

    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return x


class Nested(torch.nn.Module):
    """Arguments and results inside other things."""

    def forward(self, pair: tuple[Tensor, Tensor], *, named: dict[str, Tensor]) -> dict[str, Any]:
        return {"sum": pair[0] + pair[1], "both": [named["x"], named["y"] * 2]}


def save_torchscript(module: torch.nn.Module, path: Path) -> None:
    """Save a module as TorchScript."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # torch calls TorchScript deprecated; users have such models.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))  # type: ignore[no-untyped-call]


def save_exported(
    module: torch.nn.Module,
    path: Path,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> None:
    """Save a module as an exported program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # torch.export calls parts of torch that are deprecated.
        warnings.simplefilter("ignore")
        exported = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=dynamic_shapes)
        torch.export.save(exported, path)


def compile_exported(path: Path) -> None:
    """Replace a saved program by its AOTInductor package; needs a C++ compiler, and half a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._inductor.aoti_compile_and_package(torch.export.load(path), package_path=str(path))
