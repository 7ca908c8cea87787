"""Running a batch so that whatever its model raises fails that batch's requests, and nothing else.

Shared by the thread that begins a batch and by one that goes on with it. Knows no queue and no backend.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from cantata.runtime.errors import InferenceError, internal_error
from cantata.runtime.execution.execution import Execution
from cantata.runtime.execution.worker_pool import enter_model_code, leave_model_code

_log = logging.getLogger("cantata.scheduler")


def run_contained(run: Callable[[Execution], bool], execution: Execution) -> bool:
    """What `run` returns: whether the batch is over. What it raises fails the requests that are not answered yet.

    What the model's calls lead to goes to other threads: it must not wait for this batch, which may wait for it.
    """
    collected = enter_model_code()
    try:
        return run(execution)
    except InferenceError as failure:
        error = failure
    except BaseException as failure:
        _log.exception("model '%s' failed to execute a batch", execution.spec.model_name)
        error = internal_error(f"{type(failure).__name__}: {failure}")
    finally:
        leave_model_code(collected)
    execution.fail_unanswered(error)
    return True
