"""The text of docs/flags.md, from the flags' own table.

python -m tests.support.flag_table > docs/flags.md
"""

from __future__ import annotations

from cantata.runtime.flags import SERVE_FLAGS, Flag, FlagKind
from cantata.runtime.protection_flags import PROTECTION_ROWS

_HEAD = """\
# The flags of `cantata serve`

All of tritonserver's names are known. **works** means that a flag does what it does there. **no effect** means that it
is accepted, so that command lines need no change, and that a warning at the start says it does nothing and why.
**ours** is a flag that tritonserver does not have. Any other flag is an error, with a suggestion.

Booleans are `true`, `false`, `1` or `0`. Values follow `=` or a space.
"""
_OURS = {"watch", "max-queue-bytes"} | {row[0] for row in PROTECTION_ROWS}


def flag_table() -> str:
    """The whole document."""
    lines = [_HEAD]
    for group in dict.fromkeys(flag.group for flag in SERVE_FLAGS):
        lines += [f"## {group}\n", "| flag | default | state | meaning |", "|---|---|---|---|"]
        lines += [_row(flag) for flag in SERVE_FLAGS if flag.group == group]
        lines.append("")
    return "\n".join(lines)


def _row(flag: Flag) -> str:
    state = "no effect" if flag.is_inert else "ours" if flag.name in _OURS else "works"
    default = "" if flag.kind is FlagKind.SWITCH or not flag.default else f"`{flag.default}`"
    choices = f" ({', '.join(flag.choices)})" if flag.choices else ""
    meaning = (flag.meaning + choices).replace("|", "\\|").replace("<", "\\<")
    return f"| `--{flag.name}` | {default} | {state} | {meaning} |"


if __name__ == "__main__":
    print(flag_table(), end="")
