"""Compiles the .proto files of this folder into descriptors.binpb: `python -m cantata.grammars.protos.compile`.

For those who change a .proto file; needs grpcio-tools. The server itself reads the compiled set alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
DESCRIPTORS: Final = FOLDER / "descriptors.binpb"


def compiled_descriptors() -> bytes:
    """A serialized FileDescriptorSet of every .proto file here, without comments. Raises CalledProcessError."""
    files = sorted(path.name for path in FOLDER.glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / DESCRIPTORS.name
        arguments = [f"--proto_path={FOLDER}", f"--descriptor_set_out={compiled}", "--include_imports", *files]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True)
        return compiled.read_bytes()


if __name__ == "__main__":
    DESCRIPTORS.write_bytes(compiled_descriptors())
    print(f"wrote {DESCRIPTORS}")
