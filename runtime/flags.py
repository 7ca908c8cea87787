"""The flags of `cantata serve`: tritonserver's names, their types, defaults and meanings, as one table.

Owns parsing by that table: `--flag=value`, `--flag value`, repeated flags, and a suggestion for an unknown one.
Knows nothing of what the values are for.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cantata.grammars.problems import suggest
from cantata.runtime.inert_flags import INERT_ROWS
from cantata.runtime.protection_flags import PROTECTION_ROWS


class FlagError(Exception):
    """The command line cannot be understood; the text says why."""


class FlagKind(enum.Enum):
    """What a flag's value is."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    # No value: present or not.
    SWITCH = "switch"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `default` is as it would be typed; `choices` empty means any value.

    The meaning of one that `is_inert` says why it has no effect.
    """

    name: str
    kind: FlagKind
    default: str
    meaning: str
    group: str
    is_repeatable: bool = False
    choices: tuple[str, ...] = ()
    # Whether it is accepted only because tritonserver has it.
    is_inert: bool = False


FlagValues = Mapping[str, tuple[str, ...]]


def _flags(group: str, *rows: tuple[str, FlagKind, str, str]) -> list[Flag]:
    return [Flag(name, kind, default, meaning, group) for name, kind, default, meaning in rows]


_T, _I, _N, _B, _S = (
    FlagKind.TEXT,
    FlagKind.INTEGER,
    FlagKind.NUMBER,
    FlagKind.BOOLEAN,
    FlagKind.SWITCH,
)

SERVE_FLAGS: tuple[Flag, ...] = (
    Flag(
        "model-repository", _T, "", "a directory of models; may be given again", "Models", is_repeatable=True
    ),
    Flag("model-store", _T, "", "the same as --model-repository", "Models", is_repeatable=True),
    Flag(
        "model-control-mode",
        _T,
        "none",
        "'none': every model, from start to end; 'explicit': those that are asked for; 'poll': as the files change",
        "Models",
        choices=("none", "explicit", "poll"),
    ),
    Flag(
        "load-model",
        _T,
        "",
        "load this model at start, under explicit control; may be given again; '*' is all",
        "Models",
        is_repeatable=True,
    ),
    *_flags(
        "Models",
        ("repository-poll-secs", _N, "15", "how often to look for changes, when polling"),
        ("watch", _S, "false", "for authors: as 'poll', looking for changes twice a second"),
    ),
    *_flags(
        "Models",
        ("model-config-name", _T, "", "prefer configs/<name>.pbtxt over config.pbtxt where a model has it"),
        ("model-load-thread-count", _I, "4", "how many models are loaded at once"),
        (
            "model-namespacing",
            _B,
            "false",
            "each repository is a namespace: models in several of them may have one name",
        ),
        ("exit-on-error", _B, "true", "exit when a model fails to load, instead of serving the others"),
        ("disable-auto-complete-config", _S, "false", "take each config.pbtxt as it is, and require one"),
        ("strict-model-config", _B, "false", "the same as --disable-auto-complete-config, when true"),
    ),
    Flag(
        "backend-config",
        _T,
        "",
        "[<backend>,]<setting>=<value>; may be given again",
        "Models",
        is_repeatable=True,
    ),
    Flag(
        "rate-limit",
        _T,
        "off",
        "'execution_count': instances run when the resources that they need are free, in turn; 'off': they just run",
        "Models",
        choices=("off", "execution_count"),
    ),
    Flag(
        "rate-limit-resource",
        _T,
        "",
        "<name>:<count>[:<device>], how much there is of a resource; may be given again",
        "Models",
        is_repeatable=True,
    ),
    *_flags(
        "Server",
        ("id", _T, "triton", "the name that the server gives itself"),
        (
            "exit-timeout-secs",
            _N,
            "30",
            "how long accepted requests may take to finish when the server stops",
        ),
        ("strict-readiness", _B, "true", "be ready only while every model is"),
        (
            "max-queue-bytes",
            _I,
            "0",
            "how many bytes of requests may wait or run at a time; more are refused as UNAVAILABLE; 0 for no limit",
        ),
        ("allow-client-shm", _B, "false", "let clients pass tensors in shared memory"),
    ),
    *_flags(
        "HTTP",
        ("allow-http", _B, "true", "serve HTTP"),
        ("http-address", _T, "0.0.0.0", "the address to listen on"),
        ("http-port", _I, "8000", "the port to listen on; 0 takes a free one"),
        ("reuse-http-port", _B, "false", "let several servers share the port"),
        (
            "http-header-forward-pattern",
            _T,
            "",
            "headers whose names it is found in become parameters of the request",
        ),
        ("http-max-input-size", _I, "67108864", "the most bytes of JSON, or of unpacked body, in a request"),
    ),
    *_flags(
        "gRPC",
        ("allow-grpc", _B, "true", "serve gRPC"),
        ("grpc-address", _T, "0.0.0.0", "the address to listen on"),
        ("grpc-port", _I, "8001", "the port to listen on; 0 takes a free one"),
        ("reuse-grpc-port", _B, "false", "let several servers share the port"),
        (
            "grpc-header-forward-pattern",
            _T,
            "",
            "metadata whose names it is found in becomes parameters of the request",
        ),
        ("grpc-use-ssl", _B, "false", "use TLS"),
        ("grpc-use-ssl-mutual", _B, "false", "use TLS, and require the client's certificate"),
        ("grpc-server-cert", _T, "", "file of the server's certificate, PEM"),
        ("grpc-server-key", _T, "", "file of the server's private key, PEM"),
        ("grpc-root-cert", _T, "", "file of the certificates that clients are checked against, PEM"),
    ),
    Flag(
        "grpc-infer-response-compression-level",
        _T,
        "none",
        "how hard to compress inference responses",
        "gRPC",
        choices=("none", "low", "medium", "high"),
    ),
    *_flags(
        "gRPC",
        ("grpc-keepalive-time", _I, "7200000", "milliseconds without traffic before a keep-alive ping"),
        ("grpc-keepalive-timeout", _I, "20000", "milliseconds that a ping's answer may take"),
        ("grpc-keepalive-permit-without-calls", _B, "false", "ping also while no call is in flight"),
        ("grpc-http2-max-pings-without-data", _I, "2", "pings that may be sent without data between them"),
        (
            "grpc-http2-min-recv-ping-interval-without-data",
            _I,
            "300000",
            "milliseconds that a client must leave between pings without data",
        ),
        ("grpc-http2-max-ping-strikes", _I, "2", "bad pings that are put up with"),
        (
            "grpc-max-connection-age",
            _I,
            "0",
            "milliseconds after which a connection is asked to close; 0 for never",
        ),
        ("grpc-max-connection-age-grace", _I, "0", "milliseconds that it then has left; 0 for no limit"),
    ),
    *_flags(
        "Metrics",
        ("allow-metrics", _B, "true", "serve Prometheus metrics"),
        ("metrics-address", _T, "", "the address to listen on; that of HTTP where it is not given"),
        ("metrics-port", _I, "8002", "the port to listen on; 0 takes a free one"),
        ("allow-cpu-metrics", _B, "true", "tell of the machine's processor and memory"),
        (
            "allow-gpu-metrics",
            _B,
            "true",
            "tell of NVIDIA GPUs, where there are any and the extra 'gpu' is installed",
        ),
        ("metrics-interval-ms", _I, "2000", "how old what is told of the machine may be"),
        (
            "pinned-memory-pool-byte-size",
            _I,
            "268435456",
            "told as nv_pinned_memory_pool_total_bytes: memory is taken as it is needed",
        ),
    ),
    Flag(
        "metrics-config",
        _T,
        "",
        "<setting>=<value>: counter_latencies, histogram_latencies, summary_latencies or summary_quantiles; may be "
        "given again",
        "Metrics",
        is_repeatable=True,
    ),
    Flag(
        "cache-config",
        _T,
        "",
        "<cache>,<setting>=<value>: keep responses in 'local' (size), or 'redis' (host, port, ...); may be given again",
        "Response cache",
        is_repeatable=True,
    ),
    *_flags(
        "Response cache",
        ("response-cache-byte-size", _I, "0", "the same as --cache-config=local,size=; 0 for no cache"),
    ),
    Flag(
        "http-restricted-api",
        _T,
        "",
        "<api>[,<api>...]:<key>=<value>: these answer only to requests with that header; may be given again",
        "HTTP",
        is_repeatable=True,
    ),
    Flag(
        "grpc-restricted-protocol",
        _T,
        "",
        "<protocol>[,<protocol>...]:<key>=<value>: these answer only to calls with triton-grpc-protocol-<key>",
        "gRPC",
        is_repeatable=True,
    ),
    Flag(
        "trace-config",
        _T,
        "",
        "mode=triton|opentelemetry, level, rate, count; triton,<file|log-frequency>=; "
        "opentelemetry,<url|resource|bsp_...>=",
        "Tracing",
        is_repeatable=True,
    ),
    Flag("trace-level", _T, "OFF", "the same as --trace-config level=", "Tracing", is_repeatable=True),
    *_flags(
        "Tracing",
        ("trace-file", _T, "", "the same as --trace-config triton,file="),
        ("trace-rate", _I, "1000", "the same as --trace-config rate="),
        ("trace-count", _I, "-1", "the same as --trace-config count="),
        ("trace-log-frequency", _I, "0", "the same as --trace-config triton,log-frequency="),
    ),
    *_flags(
        "Logging",
        ("log-verbose", _I, "0", "the level of verbose messages; 0 for none"),
        ("log-info", _B, "true", "log information"),
        ("log-warning", _B, "true", "log warnings"),
        ("log-error", _B, "true", "log errors"),
    ),
    Flag(
        "log-format",
        _T,
        "default",
        "one line for each event: for people, or as JSON",
        "Logging",
        choices=("default", "ISO8601", "json"),
    ),
    *_flags("Logging", ("log-file", _T, "", "write the log there instead of to standard error")),
    *[
        Flag(name, FlagKind(kind), default, meaning, group, repeats)
        for name, kind, default, meaning, group, repeats in PROTECTION_ROWS
    ],
    *[
        Flag(name, FlagKind(kind), default, meaning, group, repeats, is_inert=True)
        for name, kind, default, meaning, group, repeats in INERT_ROWS
    ],
)

_TRUE = frozenset({"true", "1"})
_FALSE = frozenset({"false", "0"})


def parse_flags(arguments: Sequence[str], flags: Sequence[Flag]) -> tuple[FlagValues, list[str]]:
    """The values given for each flag, in order, and the arguments that are no flags.

    Raises FlagError for an unknown flag (with a suggestion), a value of the wrong kind, or one that is missing.
    """
    by_name = {flag.name: flag for flag in flags}
    values: dict[str, tuple[str, ...]] = {}
    positional: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("-") or argument == "-":
            positional.append(argument)
            continue
        name, has_value, value = argument.lstrip("-").partition("=")
        flag = by_name.get(name)
        if flag is None:
            raise FlagError(_unknown(argument, name, by_name))
        if flag.kind is FlagKind.SWITCH:
            value = value if has_value else "true"
        elif not has_value:
            if not waiting:
                raise FlagError(f"--{name} needs a value")
            value = waiting.pop(0)
        _check(flag, value)
        values[name] = (*values.get(name, ()), value) if flag.is_repeatable else (value,)
    return values, positional


def truth(value: str) -> bool:
    """A checked boolean's value."""
    return value.lower() in _TRUE


def describe_flags(flags: Sequence[Flag]) -> str:
    """The flags by group, one a line, for `--help`."""
    lines: list[str] = []
    groups = dict.fromkeys(flag.group for flag in flags)
    width = max(len(flag.name) for flag in flags) + 4
    for group in groups:
        lines.append(f"\n{group}:")
        for flag in flags:
            if flag.group == group:
                default = f" [{flag.default}]" if flag.default and flag.kind is not FlagKind.SWITCH else ""
                choices = f" ({', '.join(flag.choices)})" if flag.choices else ""
                meaning = f"(no effect: {flag.meaning})" if flag.is_inert else flag.meaning
                lines.append(f"  --{flag.name:<{width}}{meaning}{choices}{default}")
    return "\n".join(lines)


def _unknown(argument: str, name: str, by_name: Mapping[str, Flag]) -> str:
    nearest = suggest(name, by_name)
    hint = f"; {nearest}".replace("'", "'--", 1) if nearest else ""
    return f"unknown flag {argument.partition('=')[0]}{hint}"


def _check(flag: Flag, value: str) -> None:
    expected = ""
    if flag.kind is FlagKind.INTEGER:
        if not value.removeprefix("-").isdigit():
            expected = "an integer"
    elif flag.kind is FlagKind.NUMBER:
        try:
            float(value)
        except ValueError:
            expected = "a number"
    elif flag.kind in (FlagKind.BOOLEAN, FlagKind.SWITCH):
        if value.lower() not in _TRUE | _FALSE:
            expected = "true or false"
    elif flag.choices and value not in flag.choices:
        expected = f"one of {', '.join(flag.choices)}"
    if expected:
        raise FlagError(f"--{flag.name} expects {expected}, got '{value}'")
