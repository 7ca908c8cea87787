"""Answers that a model sends itself: decoupled or not, from execute and from threads that outlive it."""

from __future__ import annotations

import gc

import pytest

from cantata.bls import pb_utils
from cantata.runtime.errors import StatusCode
from tests.support.python_models import CONFIG, DECOUPLED, Client, PythonModelHost, request_with

# `body` has the requests in `requests`, and `send(request, value, final)`.
SENDING = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
kept = []

def response(value):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.full((1, 1), value, np.float32))])

class TritonPythonModel:
    def execute(self, requests):
        [request] = requests
        {body}
"""


def infer(host: PythonModelHost, body: str, config: str = DECOUPLED) -> Client:
    return host.infer(host.load(SENDING.format(body=body), config))


@pytest.mark.parametrize(
    ("body", "values"),
    [
        ("request.get_response_sender().send(flags=FINAL)", []),
        ("request.get_response_sender().send(response(1), FINAL)", [1.0]),
        (
            "s = request.get_response_sender(); [s.send(response(i)) for i in range(3)]; s.send(flags=FINAL)",
            [0, 1, 2],
        ),
        ("s = request.get_response_sender(); s.send(response(1)); s.send(response(2), flags=FINAL)", [1, 2]),
    ],
)
def test_a_decoupled_model_sends_any_number_and_one_final(
    host: PythonModelHost, body: str, values: list[float]
) -> None:
    client = infer(host, body)
    assert [value for [[value]] in client.values()] == values
    assert client.finals == 1


def test_a_thread_goes_on_after_execute(host: PythonModelHost) -> None:
    client = infer(
        host,
        """
        def work(sender):
            for value in range(100):
                sender.send(response(value))
            sender.send(flags=FINAL)
        threading.Thread(target=work, args=[request.get_response_sender()]).start()
        """,
    )
    assert [value for [[value]] in client.values()] == list(range(100))


@pytest.mark.parametrize(
    ("config", "calls", "message"),
    [
        (
            DECOUPLED,
            ["s.send()"],
            "Inference Response object must be provided when the response flags is set to zero.",
        ),
        (DECOUPLED, ["s.send(response(1), 4)"], "Unable to send response. Unsupported flag provided."),
        (
            DECOUPLED,
            ["s.send(flags=FINAL)", "s.send(response(1))"],
            "Unable to send response. Response sender has been closed.",
        ),
        (
            DECOUPLED,
            ["s.send(flags=FINAL)", "s.send(flags=FINAL)"],
            "Unable to send response. Response sender has been closed.",
        ),
        (
            CONFIG,
            ["s.send(response(1))", "s.send(response(1))"],
            "Unable to send response. Non-decoupled model cannot send more than one response.",
        ),
        (
            CONFIG,
            ["s.send(flags=FINAL)"],
            "Unable to send response. Non-decoupled model cannot send complete final before sending a response.",
        ),
    ],
)
def test_misuse_is_an_exception_in_the_model(
    host: PythonModelHost, config: str, calls: list[str], message: str
) -> None:
    instance = host.load(
        SENDING.format(body="kept.append((request.get_response_sender(), response, FINAL))"), config
    )
    request, _ = request_with()
    host.run(instance, [request])
    sender, response, final = instance._execute.__func__.__globals__["kept"][0]
    scope = {"s": sender, "response": response, "FINAL": final}
    *right, wrong = calls
    for call in right:
        eval(call, scope)
    with pytest.raises(pb_utils.TritonModelException) as refused:
        eval(wrong, scope)
    assert str(refused.value) == message


@pytest.mark.parametrize("flags", ["", ", FINAL"])
def test_a_model_that_is_not_decoupled_may_answer_through_its_sender(
    host: PythonModelHost, flags: str
) -> None:
    for returned in ("None", "[None]"):
        client = infer(
            host, f"request.get_response_sender().send(response(7){flags}); return {returned}", CONFIG
        )
        assert client.values() == [[[7.0]]]
        assert client.finals == 1


def test_a_model_that_is_not_decoupled_may_answer_later(host: PythonModelHost) -> None:
    client = infer(
        host,
        "threading.Thread(target=request.get_response_sender().send, args=[response(7), FINAL]).start()",
        CONFIG,
    )
    assert client.values() == [[[7.0]]]


def test_a_returned_response_goes_through_the_sender_that_was_asked_for(host: PythonModelHost) -> None:
    client = infer(host, "request.get_response_sender(); return [response(7)]", CONFIG)
    assert client.values() == [[[7.0]]]
    client = infer(
        host, "request.get_response_sender().send(response(1), FINAL); return [response(7)]", CONFIG
    )
    assert client.values() == [[[1.0]]]


def test_a_decoupled_model_must_return_none(host: PythonModelHost) -> None:
    client = infer(host, "return [response(1)]")
    assert client.error.message == (
        "Failed to process the request(s) for model 'model_0', message: Python model 'model' is using the decoupled "
        "mode and the execute function must return None."
    )


def test_a_failure_after_some_responses_ends_the_stream_with_an_error(host: PythonModelHost) -> None:
    client = infer(host, "request.get_response_sender().send(response(1)); 1 / 0")
    first, last = client.wait()
    assert first.error is None
    assert last.error is not None
    assert "ZeroDivisionError" in last.error.message
    assert client.finals == 1


@pytest.mark.parametrize("config", [CONFIG, DECOUPLED])
@pytest.mark.parametrize(
    "body", ["request.get_response_sender()", "s = request.get_response_sender(); s.me = [s]"]
)
def test_a_dropped_sender_ends_its_request_with_an_error(
    host: PythonModelHost, config: str, body: str
) -> None:
    body = body.replace("s.me = [s]", "loop = [s]; loop.append(loop); del s")
    instance = host.load(SENDING.format(body=body), config)
    request, client = request_with()
    host.run(instance, [request])
    gc.collect()
    assert client.error.code is StatusCode.INTERNAL
    assert (
        client.error.message == "model 'model' dropped its response sender without sending the final response"
    )


def test_a_decoupled_execute_that_forgets_a_request_ends_it(host: PythonModelHost) -> None:
    assert "dropped its response sender" in infer(host, "pass").error.message


def test_unloading_ends_what_is_still_open(host: PythonModelHost) -> None:
    instance = host.load(SENDING.format(body="kept.append(request.get_response_sender())"), DECOUPLED)
    client = host.infer(instance)
    assert client.finals == 0
    host.close_instance(instance)
    assert client.error.code is StatusCode.UNAVAILABLE
    assert client.error.message == "model 'model' was unloaded before it sent the final response"


def test_a_sender_knows_when_its_client_has_left(host: PythonModelHost) -> None:
    instance = host.load(SENDING.format(body="kept.append(request.get_response_sender())"), DECOUPLED)
    request, _ = request_with()
    host.run(instance, [request])
    [sender] = instance._execute.__func__.__globals__["kept"]
    assert not sender.is_cancelled()
    request.cancellation.cancel()
    assert sender.is_cancelled()


def test_a_producer_waits_for_its_reader(host: PythonModelHost) -> None:
    class SlowClient(Client):
        waits = 0

        def wait_until_ready(self) -> None:
            self.waits += 1

    instance = host.load(
        SENDING.format(
            body="s = request.get_response_sender(); [s.send(response(i)) for i in range(3)]; s.send(flags=FINAL)"
        ),
        DECOUPLED,
    )
    request, _ = request_with()
    client = SlowClient()
    request.sender = client
    host.run(instance, [request])
    assert client.waits == 3


def test_decoupled_models_are_never_run_on_threads_that_serve_others(host: PythonModelHost) -> None:
    assert host.load(SENDING.format(body="pass"), DECOUPLED).makes_blocking_calls
    assert not host.load(SENDING.format(body="pass"), CONFIG).makes_blocking_calls


def test_nothing_is_kept_of_requests_that_have_ended(host: PythonModelHost) -> None:
    instance = host.load(
        SENDING.format(body="s = request.get_response_sender(); s.send(response(1)); s.send(flags=FINAL)"),
        DECOUPLED,
    )
    for _ in range(50):
        host.infer(instance).wait()
    assert not instance._open_streams._senders


def test_many_threads_may_send_for_one_request(host: PythonModelHost) -> None:
    client = infer(
        host,
        """
        def work(sender, base):
            for value in range(200):
                sender.send(response(base + value))
        def work_all(sender):
            threads = [threading.Thread(target=work, args=[sender, 1000 * n]) for n in range(4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            sender.send(flags=FINAL)
        threading.Thread(target=work_all, args=[request.get_response_sender()]).start()
        """,
    )
    sent = [value for [[value]] in client.values()]
    assert sorted(sent) == [1000.0 * base + value for base in range(4) for value in range(200)]
    for base in range(4):
        own = [value for value in sent if value // 1000 == base]
        assert own == sorted(own)
    assert client.finals == 1
