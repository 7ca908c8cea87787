"""From the flags of `cantata serve` to the options of its parts. Owns the rules between flags."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cantata.runtime.caching.settings import check_cache_config, parse_cache_config
from cantata.runtime.execution.rate_limiter import RateLimitMode, ResourceCount, parse_resource_count
from cantata.runtime.flags import SERVE_FLAGS, FlagError, FlagKind, FlagValues, truth
from cantata.runtime.frontends.api_keys import ApiKeys, parse_api_keys
from cantata.runtime.frontends.grpc.options import MAX_MESSAGE_BYTES, GrpcOptions
from cantata.runtime.frontends.header_forwarding import header_forwarding
from cantata.runtime.frontends.http.client_limits import ClientLimits
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.restricted_api import RestrictedApi, parse_restricted_apis
from cantata.runtime.frontends.tls import TlsFiles
from cantata.runtime.observe.logs import LogSettings
from cantata.runtime.observe.metrics_options import LatencyOptions, MetricsOptions, parse_latency_options
from cantata.runtime.observe.trace_settings import TraceSettings, parse_trace_config
from cantata.runtime.options import ServerOptions
from cantata.runtime.repository.control import ModelControlMode, check_startup_models
from cantata.runtime.serve import ServeOptions

# How often `--watch` looks at the files: soon enough for somebody who has just saved one.
_WATCH_SECS = 0.5
_KINDS = {flag.name: flag.kind for flag in SERVE_FLAGS}
_DEFAULTS = {flag.name: flag.default for flag in SERVE_FLAGS}


class _Flags:
    """Typed access to the flags' values, the last one where a flag was given twice."""

    def __init__(self, values: FlagValues) -> None:
        self._values = values

    def all(self, name: str) -> tuple[str, ...]:
        return self._values.get(name, ())

    def text(self, name: str) -> str:
        return self._values.get(name, (_DEFAULTS[name],))[-1]

    def integer(self, name: str) -> int:
        assert _KINDS[name] is FlagKind.INTEGER
        return int(self.text(name))

    def size(self, name: str) -> int:
        size = self.integer(name)
        if size < 0:
            raise FlagError(f"--{name} expects a number of bytes, got '{size}'")
        return size

    def limit(self, name: str, least: int = 0, most: int = 2**31 - 1) -> int:
        """A size, a count or a time; where `least` is 0, that is no limit."""
        value = self.integer(name)
        if not least <= value <= most:
            raise FlagError(f"--{name} expects a number between {least} and {most}, got '{value}'")
        return value

    def truth(self, name: str) -> bool:
        assert _KINDS[name] in (FlagKind.BOOLEAN, FlagKind.SWITCH)
        return truth(self.text(name))

    def port(self, name: str) -> int:
        port = self.integer(name)
        if not 0 <= port <= 65535:
            raise FlagError(f"--{name} expects a port between 0 and 65535, got '{port}'")
        return port


def serve_options(values: FlagValues, positional: list[str]) -> ServeOptions:
    """The options that checked flags amount to; raises FlagError where they contradict each other."""
    flags = _Flags(values)
    if positional:
        raise FlagError(f"unexpected argument '{positional[0]}': name repositories with --model-repository")
    _check_ports(flags)
    return ServeOptions(
        warnings=tuple(
            f"--{flag.name} has no effect: {flag.meaning}"
            for flag in SERVE_FLAGS
            if flag.is_inert and flags.all(flag.name)
        )
        + _latency_options(flags)[1],
        server=_server_options(flags),
        http=_http_options(flags),
        grpc=_grpc_options(flags) if flags.truth("allow-grpc") else None,
        log=LogSettings(
            file=flags.text("log-file"),
            info=flags.truth("log-info"),
            warning=flags.truth("log-warning"),
            error=flags.truth("log-error"),
            verbose_level=flags.integer("log-verbose"),
            format=flags.text("log-format"),
        ),
    )


def _server_options(flags: _Flags) -> ServerOptions:
    repositories = flags.all("model-repository") + flags.all("model-store")
    if not repositories:
        raise FlagError("--model-repository must be specified")
    thread_count = flags.integer("model-load-thread-count")
    if thread_count < 1:
        raise FlagError(f"--model-load-thread-count expects a positive number, got '{thread_count}'")
    mode, poll_secs = _model_control(flags)
    return ServerOptions(
        model_repository=tuple(Path(path) for path in repositories),
        model_control_mode=mode,
        load_model=flags.all("load-model"),
        repository_poll_secs=poll_secs,
        id=flags.text("id"),
        exit_on_error=flags.truth("exit-on-error"),
        disable_auto_complete_config=flags.truth("disable-auto-complete-config")
        or flags.truth("strict-model-config"),
        strict_readiness=flags.truth("strict-readiness"),
        model_config_name=flags.text("model-config-name"),
        model_load_thread_count=thread_count,
        model_namespacing=flags.truth("model-namespacing"),
        exit_timeout_secs=float(flags.text("exit-timeout-secs")),
        trace=_trace_settings(flags),
        latencies=_latency_options(flags)[0],
        allow_client_shm=flags.truth("allow-client-shm"),
        max_queue_bytes=flags.size("max-queue-bytes"),
        rate_limit=RateLimitMode(flags.text("rate-limit")),
        rate_limit_resource=tuple(map(_resource_count, flags.all("rate-limit-resource"))),
        backend_config=_backend_config(flags.all("backend-config")),
        cache_config=_cache_config(flags),
    )


def _latency_options(flags: _Flags) -> tuple[LatencyOptions, tuple[str, ...]]:
    """What `--metrics-config` says, with warnings for what means nothing."""
    try:
        return parse_latency_options(flags.all("metrics-config"))
    except ValueError as error:
        raise FlagError(f"--metrics-config {error}") from None


def _metrics_options(flags: _Flags) -> MetricsOptions:
    interval_ms = flags.integer("metrics-interval-ms")
    if interval_ms < 0:
        raise FlagError(f"--metrics-interval-ms expects a number of milliseconds, got '{interval_ms}'")
    return MetricsOptions(
        has_latency_counters=_latency_options(flags)[0].counters,
        allow_cpu=flags.truth("allow-cpu-metrics"),
        allow_gpu=flags.truth("allow-gpu-metrics"),
        interval_ms=interval_ms,
        pinned_memory_pool_bytes=flags.size("pinned-memory-pool-byte-size"),
    )


def _cache_config(flags: _Flags) -> dict[str, dict[str, str]]:
    """What `--cache-config` says, or the older flag for a cache in memory."""
    older, values = flags.all("response-cache-byte-size"), flags.all("cache-config")
    if older and values:
        raise FlagError(
            "Error: Incompatible flags --response-cache-byte-size and --cache-config both provided. Please provide one "
            "or the other."
        )
    size = flags.integer("response-cache-byte-size")
    if size < 0:
        raise FlagError(f"--response-cache-byte-size expects a number of bytes, got '{size}'")
    if size:
        return {"local": {"size": str(size)}}
    try:
        config = parse_cache_config(values)
        check_cache_config(config)
    except ValueError as error:
        raise FlagError(f"--cache-config: {error}") from None
    return config


def _trace_settings(flags: _Flags) -> TraceSettings:
    """What `--trace-config` says, and where it says nothing, the older flags."""
    older = {
        "trace-level": "level",
        "trace-rate": "rate",
        "trace-count": "count",
        "trace-file": "triton,file",
        "trace-log-frequency": "triton,log-frequency",
    }
    texts = [f"{setting}={text}" for name, setting in older.items() for text in flags.all(name)]
    try:
        return parse_trace_config([*texts, *flags.all("trace-config")])
    except ValueError as error:
        raise FlagError(f"--trace-config {error}") from None


def _restricted_apis(flags: _Flags, name: str) -> tuple[RestrictedApi, ...]:
    try:
        return parse_restricted_apis(flags.all(name))
    except ValueError as error:
        raise FlagError(f"--{name} {error}") from None


def _header_pattern(flags: _Flags, name: str) -> str:
    pattern = flags.text(name)
    try:
        header_forwarding(pattern)
    except re.error as error:
        raise FlagError(f"--{name} expects a regular expression, got '{pattern}': {error}") from None
    return pattern


def _model_control(flags: _Flags) -> tuple[ModelControlMode, float]:
    mode = ModelControlMode(flags.text("model-control-mode"))
    startup_models = flags.all("load-model")
    try:
        check_startup_models(mode, startup_models)
    except ValueError as error:
        raise FlagError(str(error)) from None
    poll_secs = float(flags.text("repository-poll-secs"))
    if poll_secs <= 0:
        raise FlagError(f"--repository-poll-secs expects a positive number, got '{poll_secs:g}'")
    if not flags.truth("watch"):
        return mode, poll_secs
    if mode is ModelControlMode.EXPLICIT:
        raise FlagError(
            "--watch looks for changes by itself: it cannot go with --model-control-mode=explicit"
        )
    return ModelControlMode.POLL, _WATCH_SECS


def _resource_count(value: str) -> ResourceCount:
    try:
        return parse_resource_count(value)
    except ValueError as error:
        raise FlagError(str(error)) from None


def _backend_config(values: tuple[str, ...]) -> dict[str, dict[str, str]]:
    config: dict[str, dict[str, str]] = {}
    for value in values:
        head, equals, setting_value = value.partition("=")
        backend, comma, setting = head.rpartition(",")
        if not equals or not setting or (comma and not backend):
            raise FlagError(f"--backend-config expects [<backend>,]<setting>=<value>, got '{value}'")
        config.setdefault(backend, {})[setting] = setting_value
    return config


def _http_options(flags: _Flags) -> HttpOptions | None:
    allows_http, allows_metrics = flags.truth("allow-http"), flags.truth("allow-metrics")
    if not allows_http and not allows_metrics:
        return None
    return HttpOptions(
        address=flags.text("http-address"),
        port=flags.port("http-port") if allows_http else None,
        reuse_port=flags.truth("reuse-http-port"),
        metrics_address=flags.text("metrics-address") or None,
        metrics_port=flags.port("metrics-port") if allows_metrics else None,
        max_input_size=flags.integer("http-max-input-size"),
        header_forward_pattern=_header_pattern(flags, "http-header-forward-pattern"),
        restricted_apis=_restricted_apis(flags, "http-restricted-api"),
        metrics=_metrics_options(flags),
        limits=_client_limits(flags),
        tls=_http_tls(flags),
        metrics_use_ssl=flags.truth("metrics-use-ssl"),
        api_keys=_api_keys(flags),
    )


def _client_limits(flags: _Flags) -> ClientLimits:
    return ClientLimits(
        max_header_size=flags.limit("http-max-header-size", 1024),
        max_header_count=flags.limit("http-max-header-count", 1),
        max_request_size=flags.limit("http-max-request-size", 1, 2**63 - 1),
        max_connections=flags.limit("http-max-connections"),
        header_timeout=flags.limit("http-header-timeout"),
        body_timeout=flags.limit("http-body-timeout"),
        write_timeout=flags.limit("http-write-timeout"),
        keepalive_timeout=flags.limit("http-keepalive-timeout"),
    )


def _http_tls(flags: _Flags) -> TlsFiles | None:
    is_mutual = flags.truth("http-use-ssl-mutual")
    if not is_mutual and not flags.truth("http-use-ssl"):
        if flags.truth("metrics-use-ssl"):
            raise FlagError("--metrics-use-ssl shares the certificates of HTTP: it needs --http-use-ssl=true")
        return None
    return _tls_files(flags, "http", is_mutual)


def _tls_files(flags: _Flags, protocol: str, is_mutual: bool) -> TlsFiles:
    """The certificates of one protocol; raises FlagError where one is missing."""
    files = TlsFiles(
        flags.text(f"{protocol}-server-cert"),
        flags.text(f"{protocol}-server-key"),
        flags.text(f"{protocol}-root-cert"),
        is_mutual,
    )
    if not files.server_cert or not files.server_key:
        raise FlagError(f"--{protocol}-use-ssl needs --{protocol}-server-cert and --{protocol}-server-key")
    if is_mutual and not files.root_cert:
        raise FlagError(f"--{protocol}-use-ssl-mutual needs --{protocol}-root-cert")
    return files


def _api_keys(flags: _Flags) -> tuple[ApiKeys, ...]:
    try:
        return parse_api_keys(flags.all("api-keys"), os.environ)
    except ValueError as error:
        raise FlagError(f"--api-keys {error}") from None


def _grpc_options(flags: _Flags) -> GrpcOptions:
    is_mutual = flags.truth("grpc-use-ssl-mutual")
    if is_mutual or flags.truth("grpc-use-ssl"):
        _tls_files(flags, "grpc", is_mutual)
    return GrpcOptions(
        address=flags.text("grpc-address"),
        port=flags.port("grpc-port"),
        reuse_port=flags.truth("reuse-grpc-port"),
        use_ssl=flags.truth("grpc-use-ssl") or flags.truth("grpc-use-ssl-mutual"),
        use_ssl_mutual=flags.truth("grpc-use-ssl-mutual"),
        server_cert=flags.text("grpc-server-cert"),
        server_key=flags.text("grpc-server-key"),
        root_cert=flags.text("grpc-root-cert"),
        infer_response_compression_level=flags.text("grpc-infer-response-compression-level"),
        keepalive_time=flags.integer("grpc-keepalive-time"),
        keepalive_timeout=flags.integer("grpc-keepalive-timeout"),
        keepalive_permit_without_calls=flags.truth("grpc-keepalive-permit-without-calls"),
        http2_max_pings_without_data=flags.integer("grpc-http2-max-pings-without-data"),
        http2_min_recv_ping_interval_without_data=flags.integer(
            "grpc-http2-min-recv-ping-interval-without-data"
        ),
        http2_max_ping_strikes=flags.integer("grpc-http2-max-ping-strikes"),
        max_connection_age=flags.integer("grpc-max-connection-age"),
        max_connection_age_grace=flags.integer("grpc-max-connection-age-grace"),
        header_forward_pattern=_header_pattern(flags, "grpc-header-forward-pattern"),
        restricted_protocols=_restricted_apis(flags, "grpc-restricted-protocol"),
        api_keys=_api_keys(flags),
        max_message_size=flags.limit("grpc-max-message-size", 1, MAX_MESSAGE_BYTES),
        max_decompressed_size=flags.limit("grpc-max-decompressed-size", 1, MAX_MESSAGE_BYTES),
        max_metadata_size=flags.limit("grpc-max-metadata-size", 1024),
        max_connections=flags.limit("grpc-max-connections"),
        max_connection_idle=flags.limit("grpc-max-connection-idle"),
        handshake_timeout=flags.limit("grpc-handshake-timeout", 1),
        write_timeout=flags.limit("grpc-write-timeout"),
    )


def _check_ports(flags: _Flags) -> None:
    """Refuse two front-ends at one address and port (reference, section 8)."""
    listeners = []
    if flags.truth("allow-http"):
        listeners.append(("HTTP", flags.text("http-address"), flags.port("http-port")))
    if flags.truth("allow-grpc"):
        listeners.append(("GRPC", flags.text("grpc-address"), flags.port("grpc-port")))
    if flags.truth("allow-metrics"):
        address = flags.text("metrics-address") or flags.text("http-address")
        listeners.append(("metrics", address, flags.port("metrics-port")))
    seen: dict[tuple[str, int], str] = {}
    for name, address, port in listeners:
        other = seen.setdefault((address, port), name)
        if port and other != name:
            raise FlagError(
                f"The server cannot listen to {other} requests and {name} requests at the same address and "
                f"port {address}:{port}"
            )
