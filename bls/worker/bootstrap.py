"""The first file that a model's process runs, by its path: makes our packages importable, whatever interpreter runs.

Uses nothing but the standard library, and no syntax that Python 3.8 does not have, so that an interpreter that
cannot serve can at least say why.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib.util
import marshal
import os
import pickle
import signal
import socket
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_OLDEST_PYTHON = (3, 11)
_OLDEST_NUMPY = (1, 26)


class _OwnPackages:
    """Finds our packages where the server has them, installed for this interpreter or not."""

    def __init__(self, packages: dict[str, str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        directory = self._packages.get(fullname)
        if directory is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname, os.path.join(directory, "__init__.py"), submodule_search_locations=[directory]
        )


def main() -> None:
    # This file's own directory, whose modules are not meant to be found there.
    del sys.path[0]
    with open(int(sys.argv[1]), "rb") as stream:
        launch = pickle.load(stream)
    _end_with(launch["server_pid"])
    # A crash tells where it happened; the server keeps what is said last.
    faulthandler.enable(all_threads=False)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    problem = _find_packages(launch)
    if problem:
        _fail(launch["direct"], problem)
        return
    from cantata.bls.worker.child import run
    from cantata.bls.worker.launch import launch_of

    run(launch_of(launch))


def _end_with(server_pid: int) -> None:
    """Be killed when the server ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server_pid:
        os._exit(1)


def _find_packages(launch: dict[str, Any]) -> str:
    """Arrange the module search; returns what is missing in the model's own environment, or nothing."""
    if launch["search_path"] is not None:
        sys.path[:] = launch["search_path"]
    else:
        if sys.version_info[:2] < _OLDEST_PYTHON:
            return f"its Python is {_dotted(sys.version_info[:2])}, not {_dotted(_OLDEST_PYTHON)} or newer"
        try:
            import numpy
        except ImportError as error:
            return f"numpy must be installed in it ({error})"
        if tuple(map(int, numpy.__version__.split(".")[:2])) < _OLDEST_NUMPY:
            return f"its numpy is {numpy.__version__}, not {_dotted(_OLDEST_NUMPY)} or newer"
        sys.path += [path for path in launch["fallback_path"] if path not in sys.path]
    sys.meta_path.insert(0, _OwnPackages(launch["packages"]))
    return ""


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _fail(direct: int, problem: str) -> None:
    # The kind FAILED of messages.py, which cannot be imported yet.
    text = f"the model's environment {sys.prefix} cannot run it: {problem}"
    with socket.socket(fileno=direct) as end:
        end.send(marshal.dumps((3, ("INVALID_ARG", text)), 2))


if __name__ == "__main__":
    main()
