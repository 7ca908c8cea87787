"""What is wrong with a configuration, and where: problems, positions, paths, and suggestions for a misspelt word.

Knows no grammar and no rule. Problems are values: they are collected, never raised.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

# The way to a value: field names, indices of repeated fields, and keys of maps, from the root.
Path = tuple[str | int, ...]

_CLOSE_ENOUGH: Final = 0.6


class Position(NamedTuple):
    """A place in a text, both counted from 1; (0, 0) where it is not known. Columns count characters."""

    line: int
    column: int


UNKNOWN_POSITION: Final = Position(0, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, said once: what, where, and what would mend it."""

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    path: str = ""
    hint: str = ""
    model: str = ""

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place = ":".join(filter(None, (self.file, str(self.line), str(self.column))))
        text = ": ".join(filter(None, (place, self.path, self.message)))
        return f"{text} ({self.hint})" if self.hint else text

    def to_json(self) -> dict[str, str | int]:
        """Every attribute by its name, for `cantata check --format json`."""
        return dataclasses.asdict(self)


class Positions:
    """Where the values of one configuration stand in its text.

    `locate` answers with the position of a path's value, or of its nearest ancestor in the text.
    """

    def __init__(
        self,
        file: str = "",
        locate: Callable[[Path], Position] | None = None,
        render_path: Callable[[Path], str] | None = None,
    ) -> None:
        self.file = file
        self._locate = locate
        self._render_path = render_path or format_path

    def at(self, path: Path) -> Position:
        """The position of the field at `path`, or of its nearest known ancestor; (0, 0) if there is none."""
        return self._locate(path) if self._locate else UNKNOWN_POSITION

    def problem(self, path: Path, message: str, hint: str = "") -> Problem:
        """A problem with the value at `path`."""
        position = self.at(path)
        return Problem(message, self.file, position.line, position.column, self._render_path(path), hint)


def format_path(path: Path) -> str:
    """`ensemble_scheduling.step[1].input_map['X']`: indices bare, and what is no plain name quoted as a map key."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier():
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the known word nearest to `word`, or nothing where none is near."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=_CLOSE_ENOUGH)
    return f"did you mean {by_folded[near[0]]!r}?" if near else ""
