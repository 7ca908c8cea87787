"""The `cantata` command: argv to options, and the only reader of either.

`serve` runs a server, `check` validates repositories offline, `graph` draws an ensemble. What they do is elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson

from cantata.grammars.problems import suggest
from cantata.runtime.flags import (
    SERVE_FLAGS,
    Flag,
    FlagError,
    FlagKind,
    FlagValues,
    describe_flags,
    parse_flags,
    truth,
)
from cantata.runtime.version import VERSION

_USAGE: Final = f"""cantata {VERSION}: serves pipelines of models.

usage:
  cantata serve --model-repository DIR [FLAGS]    serve the models in DIR (cantata serve --help lists the flags)
  cantata check DIR [DIR ...] [--format text|json]     validate repositories, serving nothing
  cantata graph DIR NAME [--format mermaid|dot|svg|text]    draw an ensemble
  cantata --version

Flags without a command are those of serve: what starts tritonserver can start cantata in its place.
"""

_CHECK_FLAGS = (
    Flag("format", FlagKind.TEXT, "text", "how to print problems", "Check", choices=("text", "json")),
    Flag("model-config-name", FlagKind.TEXT, "", "prefer configs/<name>.pbtxt over config.pbtxt", "Check"),
    Flag("model-namespacing", FlagKind.BOOLEAN, "false", "every repository is a namespace", "Check"),
)
_GRAPH_FLAGS = (
    Flag(
        "format",
        FlagKind.TEXT,
        "text",
        "what to draw with",
        "Graph",
        choices=("mermaid", "dot", "svg", "text"),
    ),
)
_COMMANDS: Final = ("serve", "check", "graph")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("help", "-h", "--help"):
        print(_USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        print(VERSION)
        return 0
    # As tools and scripts start tritonserver.
    command, *rest = words if not words[0].startswith("-") else ("serve", *words)
    try:
        match command:
            case "serve":
                return _serve(rest)
            case "check":
                return _check(rest)
            case "graph":
                return _graph(rest)
            case _:
                hint = suggest(command, _COMMANDS)
                raise FlagError(f"unknown command '{command}'" + (f"; {hint}" if hint else ""))
    except FlagError as error:
        print(f"cantata: {error}\nsee cantata --help", file=sys.stderr)
        return 1


def _serve(arguments: list[str]) -> int:
    if _asks_for_help(arguments):
        print("usage: cantata serve --model-repository DIR [FLAGS]\n" + describe_flags(SERVE_FLAGS))
        return 0
    values, positional = parse_flags(arguments, SERVE_FLAGS)
    from cantata.runtime.serve import ServeOptions, serve
    from cantata.runtime.serve_options import serve_options

    options: ServeOptions = serve_options(values, positional)
    return serve(options)


def _check(arguments: list[str]) -> int:
    if _asks_for_help(arguments):
        print("usage: cantata check DIR [DIR ...] [FLAGS]\n" + describe_flags(_CHECK_FLAGS))
        return 0
    values, paths = parse_flags(arguments, _CHECK_FLAGS)
    if not paths:
        raise FlagError("check needs the directory of a model repository")
    from cantata.runtime.errors import InferenceError
    from cantata.runtime.repository.check import check_repositories

    try:
        result = check_repositories(
            paths,
            _value(values, "model-config-name", ""),
            namespacing=truth(_value(values, "model-namespacing", "false")),
        )
    except InferenceError as error:
        raise FlagError(str(error)) from error
    if _value(values, "format", "text") == "json":
        document = {
            "models": sorted(result.models),
            "problems": [problem.to_json() for problem in result.problems],
        }
        print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        for problem in result.problems:
            print(problem)
        print(_summary(len(result.models), len(result.problems)))
    return 1 if result.problems else 0


def _graph(arguments: list[str]) -> int:
    if _asks_for_help(arguments):
        print("usage: cantata graph DIR NAME [FLAGS]\n" + describe_flags(_GRAPH_FLAGS))
        return 0
    values, words = parse_flags(arguments, _GRAPH_FLAGS)
    if len(words) != 2:
        raise FlagError("graph needs the directory of a model repository and the name of an ensemble")
    from cantata.dag.render import render_graph
    from cantata.runtime.errors import InferenceError
    from cantata.runtime.repository.check import check_repositories, find_prepared

    path, name = words
    try:
        result = check_repositories(path)
    except InferenceError as error:
        raise FlagError(str(error)) from error
    ensembles = sorted(found for found, model in result.models.items() if model.is_ensemble)
    if name not in ensembles:
        hint = suggest(name, ensembles) or f"the ensembles are: {', '.join(ensembles) or 'none'}"
        raise FlagError(f"'{name}' is no ensemble of {Path(path)}; {hint}")
    own = [problem for problem in result.problems if problem.model == name]
    if result.models[name].config.ensemble_scheduling is None:
        for problem in own:
            print(problem, file=sys.stderr)
        return 1
    print(
        render_graph(
            result.models[name].config,
            find_prepared(result.models, result.models[name]),
            _value(values, "format", "text"),
        )
    )
    return 0


def _summary(models: int, problems: int) -> str:
    found = f"{problems} problem{'' if problems == 1 else 's'}" if problems else "no problems"
    return f"{models} model{'' if models == 1 else 's'}, {found}"


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return any(argument in ("-h", "--help") for argument in arguments)


def _value(values: FlagValues, name: str, default: str) -> str:
    return values.get(name, (default,))[-1]
