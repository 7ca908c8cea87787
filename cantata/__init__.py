"""cantata serves pipelines of models.

    from cantata import Server

    with Server("models") as server:
        outputs = server.infer("pipeline", {"IMAGE": image})

The folders are the architecture; imports run one way, from the bottom of this list up:

- `cantata.grammars`: text to typed configuration, with the position of every field;
- `cantata.dag`: an ensemble as a graph, its checks, its compiled plan, one request's run;
- `cantata.runtime`: everything that executes: repositories, scheduling, backends, front-ends, figures;
- `cantata.bls`: what a model.py sees, and the backend that hosts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cantata.runtime.embedded import EmbeddedServer as Server
    from cantata.runtime.errors import InferenceError
    from cantata.runtime.repository.check import check_repositories as check
    from cantata.runtime.version import VERSION as __version__

__all__ = ["InferenceError", "Server", "__version__", "check"]

_PUBLIC = {
    "InferenceError": ("cantata.runtime.errors", "InferenceError"),
    "Server": ("cantata.runtime.embedded", "EmbeddedServer"),
    "__version__": ("cantata.runtime.version", "VERSION"),
    "check": ("cantata.runtime.repository.check", "check_repositories"),
}


def __getattr__(name: str) -> object:
    # Imported when first used: reading configurations must not load the server.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cantata' has no attribute {name!r}")
    import importlib

    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)
