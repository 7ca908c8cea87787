"""What a model's process is told when it starts: the model, and the file descriptors that it shares with the server.

`bootstrap.py` reads it before anything of ours can be imported, so it travels as a plain dictionary.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Launch:
    """`config_text` is the configuration as JSON. `spec` is a pickled ModelSpec; empty asks the process to complete
    the configuration, and to end.

    `direct`, `events`, `inputs` and `outputs` are file descriptors: the ends of the two channels, and the memory that
    the server and the process write into. `packages` are the directories of our packages by their names.
    `search_path` is the server's, in place of the interpreter's own; None where the interpreter is the model's own,
    which then gets `fallback_path` after its own.
    """

    server_pid: int
    model_name: str
    model_version: int
    model_directory: str
    version_directory: str
    filename: str
    config_text: str
    spec: bytes
    instance_name: str
    instance_kind: str
    device_id: int
    direct: int
    events: int
    inputs: int
    outputs: int
    capacity: int
    packages: dict[str, str]
    search_path: list[str] | None
    fallback_path: list[str]
    root_log_level: int
    log_level: int

    def as_file(self) -> int:
        """A file descriptor from whose start the process can read this."""
        file = os.memfd_create("cantata-launch", os.MFD_CLOEXEC)
        try:
            with open(file, "wb", closefd=False) as stream:
                pickle.dump(asdict(self), stream)
            os.lseek(file, 0, os.SEEK_SET)
        except BaseException:
            os.close(file)
            raise
        return file


def launch_of(fields: dict[str, Any]) -> Launch:
    """The reverse of `as_file`, from what `bootstrap.py` has read."""
    return Launch(**fields)
