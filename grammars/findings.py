"""One breach of a rule, before anyone knows where its field stands in a text."""

from __future__ import annotations

from typing import NamedTuple

from cantata.grammars.problems import Path


class Finding(NamedTuple):
    """What is wrong with the value at `path`, in Triton's words, and what would mend it in ours."""

    path: Path
    message: str
    hint: str = ""
