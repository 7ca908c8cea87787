"""The flags that set up protocols and tracing, those without effect, and the document that lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cantata.runtime.flags import SERVE_FLAGS, FlagError, parse_flags
from cantata.runtime.frontends.restricted_api import RestrictedApi
from cantata.runtime.inert_flags import INERT_ROWS
from cantata.runtime.observe.logs import LogSettings
from cantata.runtime.observe.trace_settings import OpenTelemetryOptions, TraceSettings
from cantata.runtime.serve import ServeOptions
from cantata.runtime.serve_options import serve_options
from tests.support.flag_table import flag_table

DOCUMENT = Path(__file__).parents[3] / "docs" / "flags.md"

# Every flag of tritonserver (reference, section 8).
TRITON_TEXT = """
id exit-timeout-secs log-verbose log-info log-warning log-error log-format log-file model-store model-repository
exit-on-error disable-auto-complete-config strict-readiness model-control-mode repository-poll-secs load-model
model-config-name model-load-thread-count model-load-retry-count model-namespacing enable-peer-access allow-http
http-address http-port reuse-http-port http-header-forward-pattern http-thread-count http-max-input-size
http-restricted-api allow-grpc grpc-address grpc-port reuse-grpc-port grpc-header-forward-pattern
grpc-infer-thread-count grpc-infer-allocation-pool-size grpc-max-response-pool-size grpc-use-ssl grpc-use-ssl-mutual
grpc-server-cert grpc-server-key grpc-root-cert grpc-infer-response-compression-level grpc-keepalive-time
grpc-keepalive-timeout grpc-keepalive-permit-without-calls grpc-http2-max-pings-without-data
grpc-http2-min-recv-ping-interval-without-data grpc-http2-max-ping-strikes grpc-max-connection-age
grpc-max-connection-age-grace grpc-restricted-protocol allow-sagemaker sagemaker-port sagemaker-safe-port-range
sagemaker-thread-count allow-vertex-ai vertex-ai-port vertex-ai-thread-count vertex-ai-default-model allow-metrics
allow-gpu-metrics allow-cpu-metrics metrics-address metrics-port metrics-interval-ms metrics-config trace-config
backend-directory backend-config repoagent-directory cache-config cache-directory rate-limit rate-limit-resource
pinned-memory-pool-byte-size cuda-memory-pool-byte-size cuda-virtual-address-size min-supported-compute-capability
buffer-manager-thread-count host-policy model-load-gpu-limit allow-client-shm strict-model-config
response-cache-byte-size trace-file trace-level trace-rate trace-count trace-log-frequency
"""


def options(*arguments: str) -> ServeOptions:
    return serve_options(*parse_flags(("--model-repository=a", *arguments), SERVE_FLAGS))


def test_every_flag_of_tritonserver_is_known_and_once() -> None:
    names = [flag.name for flag in SERVE_FLAGS]
    assert (set(TRITON_TEXT.split()) - set(names), len(set(names))) == (set(), len(names))


def test_the_document_lists_every_flag_as_it_is() -> None:
    assert DOCUMENT.read_text() == flag_table(), "python -m tests.support.flag_table > docs/flags.md"


def test_flags_without_effect_are_accepted_with_a_warning() -> None:
    assert options("--http-thread-count=4", "--host-policy=a,b=c", "--host-policy=d,e=f").warnings == (
        "--http-thread-count has no effect: each protocol is served by one thread",
        "--host-policy has no effect: left to the operating system",
    )
    assert options().warnings == ()


@pytest.mark.parametrize("row", INERT_ROWS, ids=lambda row: row[0])
def test_a_flag_without_effect_has_a_default_of_its_kind(row: tuple[str, str, str, str, str, bool]) -> None:
    name, _, default, *_ = row
    assert len(options(f"--{name}={default}").warnings) == 1


def test_shared_memory_is_for_those_who_ask() -> None:
    assert not options().server.allow_client_shm
    assert options("--allow-client-shm=true").server.allow_client_shm


def test_logging_is_as_the_flags_say() -> None:
    given = ("--log-verbose=2", "--log-info=false", "--log-file=f", "--log-format=ISO8601")
    assert options(*given).log == LogSettings("f", info=False, verbose_level=2, format="ISO8601")


def test_restrictions_are_groups_with_a_header_each() -> None:
    given = ("--http-restricted-api=health,metadata:key=a=b", "--http-restricted-api=trace:other=c")
    http = options(*given).http
    assert http is not None
    assert http.restricted_apis == (
        RestrictedApi(frozenset({"health", "metadata"}), "key", "a=b"),
        RestrictedApi(frozenset({"trace"}), "other", "c"),
    )
    grpc = options("--grpc-restricted-protocol=inference:key=v").grpc
    assert grpc is not None
    assert grpc.restricted_protocols == (RestrictedApi(frozenset({"inference"}), "key", "v"),)


def test_header_patterns_are_passed_on() -> None:
    found = options("--http-header-forward-pattern=x-.*", "--grpc-header-forward-pattern=y")
    assert found.http is not None
    assert found.grpc is not None
    assert (found.http.header_forward_pattern, found.grpc.header_forward_pattern) == ("x-.*", "y")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), TraceSettings()),
        (
            (
                "--trace-config=triton,file=t",
                "--trace-config=level=TENSORS",
                "--trace-config=level=TIMESTAMPS",
                "--trace-config=rate=5",
                "--trace-config=count=7",
                "--trace-config=triton,log-frequency=3",
            ),
            TraceSettings(("TIMESTAMPS", "TENSORS"), 5, 7, 3, "t"),
        ),
        (("--trace-config=level=TENSORS,OFF",), TraceSettings()),
        (
            ("--trace-file=t", "--trace-level=TIMESTAMPS", "--trace-rate=1", "--trace-count=2"),
            TraceSettings(("TIMESTAMPS",), 1, 2, 0, "t"),
        ),
        (
            ("--trace-config=mode=opentelemetry", "--trace-config=level=TIMESTAMPS"),
            TraceSettings(("TIMESTAMPS",), open_telemetry=OpenTelemetryOptions()),
        ),
        (
            (
                "--trace-config=mode=opentelemetry",
                "--trace-config=opentelemetry,url=http://collector:4318/v1/traces",
                "--trace-config=opentelemetry,resource=service.name=ocr",
                "--trace-config=opentelemetry,resource=team=a=b",
                "--trace-config=opentelemetry,bsp_max_queue_size=100",
                "--trace-config=opentelemetry,bsp_schedule_delay=200",
                "--trace-config=opentelemetry,bsp_max_export_batch_size=10",
                # Of the other mode.
                "--trace-config=triton,file=t",
            ),
            TraceSettings(
                file="t",
                open_telemetry=OpenTelemetryOptions(
                    "http://collector:4318/v1/traces",
                    (("service.name", "ocr"), ("team", "a=b")),
                    100,
                    200,
                    10,
                ),
            ),
        ),
    ],
)
def test_tracing_is_as_the_flags_say(arguments: tuple[str, ...], expected: TraceSettings) -> None:
    assert options(*arguments).server.trace == expected


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("opentelemetry,url=collector", "expects the url of an OTLP/HTTP collector, got 'collector'"),
        ("opentelemetry,resource=team", "expects opentelemetry,resource=<key>=<value>, got 'team'"),
        ("opentelemetry,bsp_schedule_delay=soon", "Unable to parse 'bsp_schedule_delay', got: soon"),
        ("opentelemetry,file=t", "has no setting 'opentelemetry,file'"),
    ],
)
def test_settings_of_opentelemetry_that_cannot_be(setting: str, reason: str) -> None:
    with pytest.raises(FlagError, match=re.escape(reason)):
        options("--trace-config=mode=opentelemetry", f"--trace-config={setting}")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--http-restricted-api=health",
            "--http-restricted-api expects <api>[,<api>...]:<key>=<value>, got 'health'",
        ),
        (
            "--grpc-restricted-protocol=helth:a=b",
            "--grpc-restricted-protocol knows no api 'helth': there are health, metadata, inference, shared-memory, "
            "model-config, model-repository, statistics, trace, logging",
        ),
        (
            "--http-restricted-api=health,health:a=b",
            "--http-restricted-api api 'health' can not be specified in multiple config groups",
        ),
        (
            "--http-header-forward-pattern=(",
            "--http-header-forward-pattern expects a regular expression, got '(': missing ), unterminated subpattern "
            "at position 0",
        ),
        ("--trace-config=level=ALL", "--trace-config expects the level OFF, TIMESTAMPS, TENSORS, got 'ALL'"),
        ("--trace-config=mode=x", "--trace-config expects the mode triton or opentelemetry, got 'x'"),
        ("--trace-config=rate", "--trace-config expects [<mode>,]<setting>=<value>, got 'rate'"),
        ("--trace-config=bogus=1", "--trace-config has no setting 'bogus'"),
        ("--trace-config=rate=x", "--trace-config is wrong: Unable to parse 'trace_rate', got: x"),
    ],
)
def test_what_cannot_be_meant_is_refused(argument: str, message: str) -> None:
    with pytest.raises(FlagError) as refused:
        options(argument)
    assert str(refused.value) == message


def test_a_cache_is_described_by_the_last_value_of_each_setting() -> None:
    values = ("--cache-config=local,size=1", "--cache-config", "local,size=2048")
    assert options(*values).server.cache_config == {"local": {"size": "2048"}}
    assert options("--response-cache-byte-size=77").server.cache_config == {"local": {"size": "77"}}
    url = "--cache-config=redis,url=redis://host:1/0?ssl_cert_reqs=none"
    assert options(url).server.cache_config == {"redis": {"url": "redis://host:1/0?ssl_cert_reqs=none"}}
    assert options("--response-cache-byte-size=0").server.cache_config == options().server.cache_config == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--cache-config=local",
            "No cache specified. --cache-config option format is <cache name>,<setting>=<value>. Got local",
        ),
        (
            "--cache-config=local,size",
            "--cache-config option format is '<cache name>,<setting>=<value>'. Got local,size",
        ),
        ("--cache-config=,size=1", "No cache specified"),
        (
            "--cache-config=local,size=9 --cache-config=redis,host=h",
            "found multiple cache configurations, but only a single cache is currently supported",
        ),
        (
            "--cache-config=local,size=9 --response-cache-byte-size=9",
            "Incompatible flags --response-cache-byte-size and --cache-config both provided",
        ),
        ("--response-cache-byte-size=-1", "--response-cache-byte-size expects a number of bytes, got '-1'"),
        ("--cache-config=local,size=abc", "cache 'local' expects a number of 'size', got 'abc'"),
        ("--cache-config=local,size=0", "cache 'local' needs a 'size', in bytes: local,size=<bytes>"),
        ("--cache-config=local,sise=4", "cache 'local' has no setting 'sise' (did you mean 'size'?)"),
        ("--cache-config=redit,host=h", "unknown cache 'redit' (did you mean 'redis'?)"),
        ("--cache-config=redis,port=1", "cache 'redis' needs a 'host' (and a 'port'), or a 'url'"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(arguments: str, message: str) -> None:
    with pytest.raises(FlagError, match=re.escape(message)):
        options(*arguments.split())
