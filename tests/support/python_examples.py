"""The example models that every Python backend is shown with, written anew from what they are documented to do."""

from __future__ import annotations

from pathlib import Path

from tests.support.model_files import python_config, tensor_text, write_model

_PAIR = (
    [tensor_text("INPUT0", dims="4"), tensor_text("INPUT1", dims="4")],
    [tensor_text("OUTPUT0", dims="4"), tensor_text("OUTPUT1", dims="4")],
)
_NAMED_PAIR = ([*_PAIR[0], tensor_text("MODEL_NAME", "STRING", "1")], _PAIR[1])

ADD_SUB = """
def initialize(self, args):
    config = json.loads(args["model_config"])
    self.types = [
        pb_utils.triton_string_to_numpy(pb_utils.get_output_config_by_name(config, name)["data_type"])
        for name in ("OUTPUT0", "OUTPUT1")
    ]

def execute(self, requests):
    responses = []
    for request in requests:
        one = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        other = pb_utils.get_input_tensor_by_name(request, "INPUT1").as_numpy()
        results = [one + other, one - other]
        responses.append(
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(f"OUTPUT{index}", result.astype(self.types[index]))
                    for index, result in enumerate(results)
                ]
            )
        )
    return responses
"""

# Says everything that a config.pbtxt would; BATCHES is put before it.
AUTO_COMPLETE = """
@staticmethod
def auto_complete_config(config):
    known = {tensor["name"] for kind in ("input", "output") for tensor in config.as_dict()[kind]}
    for index in range(2):
        if f"INPUT{index}" not in known:
            config.add_input({"name": f"INPUT{index}", "data_type": "TYPE_FP32", "dims": [4]})
        if f"OUTPUT{index}" not in known:
            config.add_output({"name": f"OUTPUT{index}", "data_type": "TYPE_FP32", "dims": [4]})
    config.set_max_batch_size(4 if BATCHES else 0)
    if BATCHES:
        config.set_dynamic_batching()
    return config
"""

BLS_SYNC = """
def execute(self, requests):
    return [self.answer(request) for request in requests]

def answer(self, request):
    name = pb_utils.get_input_tensor_by_name(request, "MODEL_NAME").as_numpy()[0].decode()
    reply = pb_utils.InferenceRequest(
        model_name=name,
        requested_output_names=["OUTPUT0", "OUTPUT1"],
        inputs=[pb_utils.get_input_tensor_by_name(request, f"INPUT{index}") for index in range(2)],
    ).exec()
    if reply.has_error():
        return pb_utils.InferenceResponse(error=reply.error())
    return pb_utils.InferenceResponse(reply.output_tensors())
"""

# The sum from one model and the difference from another, both asked at once.
BLS_ASYNC = """
async def execute(self, requests):
    return await asyncio.gather(*[self.answer(request) for request in requests])

async def answer(self, request):
    inputs = [pb_utils.get_input_tensor_by_name(request, f"INPUT{index}") for index in range(2)]
    replies = await asyncio.gather(
        *[
            pb_utils.InferenceRequest(model_name=name, requested_output_names=[output], inputs=inputs).async_exec()
            for name, output in (("add_sub", "OUTPUT0"), ("nobatch_auto_complete", "OUTPUT1"))
        ]
    )
    for reply in replies:
        if reply.has_error():
            raise pb_utils.TritonModelException(reply.error().message())
    return pb_utils.InferenceResponse([reply.output_tensors()[0] for reply in replies])
"""

BLS_DECOUPLED_SYNC = """
def execute(self, requests):
    return [self.answer(request) for request in requests]

def answer(self, request):
    call = pb_utils.InferenceRequest(
        model_name="square_int32",
        requested_output_names=["OUT"],
        inputs=[pb_utils.get_input_tensor_by_name(request, "IN")],
    )
    total = 0
    for reply in call.exec(decoupled=True):
        if reply.has_error():
            raise pb_utils.TritonModelException(reply.error().message())
        if reply.output_tensors():
            total += pb_utils.get_output_tensor_by_name(reply, "OUT").as_numpy().sum()
    return pb_utils.InferenceResponse([pb_utils.Tensor("SUM", np.array([total], np.int32))])
"""

BLS_DECOUPLED_ASYNC = """
async def execute(self, requests):
    return await asyncio.gather(*[self.answer(request) for request in requests])

async def answer(self, request):
    calls = [
        pb_utils.InferenceRequest(
            model_name="square_int32", inputs=[pb_utils.get_input_tensor_by_name(request, "IN")]
        ).async_exec(decoupled=True)
        for _ in range(2)
    ]
    total = 0
    for replies in await asyncio.gather(*calls):
        for reply in replies:
            if reply.has_error():
                raise pb_utils.TritonModelException(reply.error().message())
            if reply.output_tensors():
                total += reply.output_tensors()[0].as_numpy().sum()
    return pb_utils.InferenceResponse([pb_utils.Tensor("SUM", np.array([total], np.int32))])
"""

CUSTOM_METRICS = """
def initialize(self, args):
    labels = {"model": args["model_name"], "version": args["model_version"]}
    self.family = pb_utils.MetricFamily(
        name="requests_process_latency_ns",
        description="Cumulative time spent processing requests",
        kind=pb_utils.MetricFamily.COUNTER,
    )
    self.latency = self.family.Metric(labels=labels)
    self.sizes_family = pb_utils.MetricFamily("request_elements", "Elements", pb_utils.MetricFamily.HISTOGRAM)
    self.sizes = self.sizes_family.Metric(labels=labels, buckets=[2, 4.5])

def execute(self, requests):
    responses = []
    for request in requests:
        before = self.latency.value()
        self.latency.increment(20.5)
        self.sizes.observe(request.inputs()[0].as_numpy().size)
        text = f"{self.latency.value() - before}"
        pb_utils.Logger.log_info("Cumulative requests processing latency: " + text)
        responses.append(
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([text.encode()], np.object_))])
        )
    return responses
"""

# Answers each element of IN from a thread, DELAY milliseconds apart, and then lets execute end WAIT milliseconds later.
REPEAT = """
def execute(self, requests):
    wait_ms = 0
    for request in requests:
        threading.Thread(target=self.answer, args=(request.get_response_sender(), *self.read(request))).start()
        wait_ms = max(wait_ms, int(pb_utils.get_input_tensor_by_name(request, "WAIT").as_numpy()[0]))
    threading.Event().wait(wait_ms / 1000)
    return None

def read(self, request):
    return [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IN", "DELAY")]

def answer(self, sender, values, delays_ms):
    for index, value in enumerate(values):
        sender.send(
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor("OUT", np.array([value], np.int32)),
                    pb_utils.Tensor("IDX", np.array([index], np.uint32)),
                ]
            )
        )
        threading.Event().wait(delays_ms[index] / 1000)
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

SQUARE = """
def execute(self, requests):
    for request in requests:
        threading.Thread(target=self.answer, args=(request.get_response_sender(), request)).start()

def answer(self, sender, request):
    count = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
    for _ in range(count[0]):
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", count)]))
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

INSTANCE_KIND = """
def initialize(self, args):
    self.device = "cuda" if args["model_instance_kind"] == "GPU" else "cpu"
    self.place = f"{self.device}:{args['model_instance_device_id']}"

def execute(self, requests):
    return [
        pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([self.place.encode()], np.object_))])
        for _ in requests
    ]
"""

# Gives the request's own parameters back as text, and those that it is asked for as the response's.
PARAMETERS = """
def execute(self, requests):
    responses = []
    for request in requests:
        wanted = pb_utils.get_input_tensor_by_name(request, "RESPONSE_PARAMETERS").as_numpy()[0]
        seen = np.array([request.parameters().encode()], np.object_)
        responses.append(
            pb_utils.InferenceResponse([pb_utils.Tensor("REQUEST_PARAMETERS", seen)], parameters=json.loads(wanted))
        )
    return responses
"""

# Counts down from IN, one response an execution; the request runs again until nothing is left.
RESCHEDULING = """
def initialize(self, args):
    self.left = {}

def execute(self, requests):
    for request in requests:
        id = request.correlation_id()
        if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START and id not in self.left:
            self.left[id] = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().ravel()[0])
        self.left[id] -= 1
        left = self.left[id]
        sender = request.get_response_sender()
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([[left]], np.int32))]))
        if left:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        else:
            del self.left[id]
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    return None
"""

# An encoded image becomes a normalized tensor, planes first.
PREPROCESSING = """
def initialize(self, args):
    config = pb_utils.get_output_config_by_name(json.loads(args["model_config"]), "OUTPUT_0")
    self.type = pb_utils.triton_string_to_numpy(config["data_type"])

def execute(self, requests):
    import io
    from PIL import Image
    responses = []
    for request in requests:
        encoded = pb_utils.get_input_tensor_by_name(request, "INPUT_0").as_numpy()
        image = Image.open(io.BytesIO(encoded.tobytes())).convert("RGB").resize((224, 224))
        scaled = np.asarray(image, np.float32) / 255
        normal = (scaled - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        planes = normal.transpose(2, 0, 1)[np.newaxis].astype(self.type)
        responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT_0", planes)]))
    return responses
"""

_ITERATIVE = "sequence_batching { iterative_sequence: true max_sequence_idle_microseconds: 60000000 }"


def write_examples(repository: Path) -> None:
    """All of them, each under its own name."""
    config = python_config
    text = tensor_text
    count, total = [text("IN", "INT32", "1")], [text("SUM", "INT32", "1")]
    write_model(repository, "add_sub", config(*_PAIR), ADD_SUB)
    for name, batches in (("nobatch_auto_complete", False), ("batch_auto_complete", True)):
        completing = AUTO_COMPLETE.replace("BATCHES", str(batches)) + ADD_SUB
        write_model(repository, name, 'backend: "python"', completing)
    write_model(repository, "bls_sync", config(*_NAMED_PAIR), BLS_SYNC)
    write_model(repository, "bls_async", config(*_PAIR), BLS_ASYNC)
    write_model(repository, "bls_decoupled_sync", config(count, total), BLS_DECOUPLED_SYNC)
    write_model(repository, "bls_decoupled_async", config(count, total), BLS_DECOUPLED_ASYNC)
    words = [text("OUTPUT", "STRING", "1")]
    write_model(repository, "custom_metrics", config([text("INPUT0", dims="4")], words), CUSTOM_METRICS)
    series = [text("IN", "INT32"), text("DELAY", "UINT32"), text("WAIT", "UINT32", "1")]
    numbered = [text("OUT", "INT32", "1"), text("IDX", "UINT32", "1")]
    write_model(repository, "repeat_int32", config(series, numbered, decoupled=True), REPEAT)
    write_model(
        repository, "square_int32", config(count, [text("OUT", "INT32", "1")], decoupled=True), SQUARE
    )
    kind = "instance_group [ { kind: KIND_CPU } ]"
    write_model(
        repository, "instance_kind", config([text("INPUT0", dims="4")], words, extra=kind), INSTANCE_KIND
    )
    wanted, seen = text("RESPONSE_PARAMETERS", "STRING", "1"), text("REQUEST_PARAMETERS", "STRING", "1")
    write_model(repository, "parameters", config([wanted], [seen]), PARAMETERS)
    iterative = config(count, [text("OUT", "INT32", "1")], max_batch_size=8, decoupled=True, extra=_ITERATIVE)
    write_model(repository, "rescheduling", iterative, RESCHEDULING)
    image = ([text("INPUT_0", "UINT8")], [text("OUTPUT_0", dims="1, 3, 224, 224")])
    write_model(repository, "preprocessing", config(*image), PREPROCESSING)
