"""A model's own interpreter: a virtual environment's folder, or an archive of one that conda-pack has made.

Owns the unpacking of archives, once, into a cache of the user's. Runs no model.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from cantata.runtime.errors import InferenceError, invalid_argument

_CACHE: Final = Path("cantata") / "environments"


def interpreter_of(environment: Path, model_name: str) -> Path:
    """The interpreter of `environment`; raises InferenceError (INVALID_ARG) when there is none."""
    if environment.is_file():
        environment = _unpacked(environment, model_name)
    elif not environment.is_dir():
        raise _error(model_name, f"there is no folder and no archive {environment}")
    interpreter = environment / "bin" / "python"
    if not os.access(interpreter, os.X_OK):
        raise _error(model_name, f"there is no interpreter {interpreter}")
    return interpreter


def environment_variables(interpreter: Path) -> dict[str, str]:
    """The variables that a process of that interpreter gets, as if its environment had been activated."""
    variables = dict(os.environ)
    for name in ("PYTHONHOME", "PYTHONPATH"):
        variables.pop(name, None)
    prefix = interpreter.parents[1]
    variables["PATH"] = f"{interpreter.parent}:{variables.get('PATH', os.defpath)}"
    variables["CONDA_PREFIX" if (prefix / "conda-meta").is_dir() else "VIRTUAL_ENV"] = str(prefix)
    return variables


def _unpacked(archive: Path, model_name: str) -> Path:
    """The folder of an archive's contents. An archive that has changed is unpacked anew."""
    status = archive.stat()
    identity = f"{archive.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    name = f"{archive.name.partition('.')[0]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _CACHE
    folder = cache / name
    # Written last: what a server that was killed has unpacked does not count.
    mark = folder / ".complete"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not mark.is_file():
                shutil.rmtree(folder, ignore_errors=True)
                with tarfile.open(archive) as tar:
                    tar.extractall(folder, filter="tar")
                _repair_prefixes(folder)
                mark.touch()
    except (OSError, tarfile.TarError, subprocess.SubprocessError) as error:
        raise _error(model_name, f"{archive} could not be unpacked: {error}") from error
    return folder


def _repair_prefixes(folder: Path) -> None:
    """Let conda-pack's own script replace the paths of the machine that packed the environment."""
    script = folder / "bin" / "conda-unpack"
    if script.is_file():
        subprocess.run(
            [folder / "bin" / "python", script], check=True, capture_output=True, stdin=subprocess.DEVNULL
        )


def _error(model_name: str, text: str) -> InferenceError:
    return invalid_argument(f"model '{model_name}', parameter EXECUTION_ENV_PATH: {text}")
