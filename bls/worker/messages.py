"""The kinds of messages between the server and a model's process, and what each holds.

There are two channels. On the *direct* one the server gives the process a batch and waits for its end, so that a
plain request costs one message there and one back, read by the very thread that waits. All else goes over the
*events* channel, which a thread on either side reads.

Direct, from the server:
    EXECUTE, batch, start_ns, batch_size, requests, stays_awake (whether the next batch is likely to come at once)
    ANSWER, value, error
    STOP                finalize and end
Direct, from the process:
    LOADED              the code is imported; initialize begins
    STARTED, (is_async, has_readiness_hook)    initialize is over
    STARTED, config     the completion is over: the configuration as JSON, or None
    FAILED, error       loading, or completing, has failed; the process ends
    DONE, batch, input_end_ns, output_start_ns, responses (None where one is sent otherwise, or was),
        sequels (None, or for each request whether it is to run again, and the states of its sequence)
    CALL, waiting, caller key, is_decoupled, request    asked by the thread that executes; answered with its responses
    QUERY, 0, name, arguments    the same for a question

Events, both ways:
    RESPONSE, key, response or None, is_final    to the request that the other side has sent under `key`
    CREDIT, key                                  go on sending responses to that request
    CANCEL, key                                  nobody waits for that request any more
    QUERY, number, name, arguments               a question
    ANSWER, number, value, error                 its answer
Events, from the server:
    EXECUTE             as above, to a model whose execute is a coroutine
Events, from the process:
    DONE                as above
    CALL, waiting, 0, is_decoupled, request    a request to any model; `waiting` is what waits for it, `is_decoupled`
        whether any number of responses is expected: the server refuses a call of a model that answers otherwise
    LOG, name, level, text, path, line
"""

from __future__ import annotations

from typing import Final

# 0 is the channel's own.
LOADED: Final = 1
STARTED: Final = 2
FAILED: Final = 3
EXECUTE: Final = 4
DONE: Final = 5
STOP: Final = 6
CALL: Final = 7
QUERY: Final = 8
ANSWER: Final = 9
RESPONSE: Final = 10
CREDIT: Final = 11
CANCEL: Final = 12
LOG: Final = 13

# Questions of a process to the server.
IS_DECOUPLED: Final = "is_decoupled"
IS_CANCELLED: Final = "is_cancelled"
IS_MODEL_READY: Final = "is_model_ready"
LOAD_MODEL: Final = "load_model"
UNLOAD_MODEL: Final = "unload_model"
METRICS: Final = "metrics"
# And of the server to a process.
IS_READY: Final = "is_ready"
