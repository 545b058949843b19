"""The other libraries that are called from Python: the second half of the comparison, driven by the script `run`.

Speaks the protocol of `peers work` (src/main.rs): a case as one JSON line; `turn`, as often as asked for; `end`. A library
that cannot be imported, refuses a case or computes something else is reported with the reason, never left out.
"""

import importlib.metadata
import json
import os
import sys
import time

THREADS = int(sys.argv[2]) if sys.argv[1:2] == ["work"] else 1
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = str(THREADS)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

# Seconds of a turn and of the rest before it, as in src/race.rs.
TURN, REST = 0.040, 0.020
# Weights that a cold product rotates over.
COLD_BYTES = 256 << 20
# Rows of activations whose products are checked.
CHECKED = 8

# Name of the operation → [(name of the peer, function of a case that returns (run, values))]
PEERS = {}


def peer(name, *operations, when=lambda case: True):
    def register(function):
        for operation in operations:
            PEERS.setdefault(operation, []).append((name, function, when))
        return function

    return register


def is_channel(case):
    return case["group"] is None


def is_warm(case):
    return not case["cold"]


def is_float(case):
    return case["float"]


def is_int8(case):
    return not case["float"]


# ---- what every case starts from


class Data:
    """Weights `[rows, cols]`, activations `[batch, cols]` and the exact result."""

    def __init__(self, case):
        import numpy as np

        rng = np.random.default_rng(1)
        rows, cols = case["rows"], case["cols"]
        self.w = rng.standard_normal((rows * case.get("tensors", 1), cols), dtype=np.float32)
        self.x, self.exact = None, self.w
        if "batch" in case:
            self.x = rng.standard_normal((case["batch"], cols), dtype=np.float32)
            self.exact = self.x[:CHECKED].astype(np.float64) @ self.w.T.astype(np.float64)
        if case["operation"] == "prune":
            magnitudes = np.abs(self.w)
            half = magnitudes.size // 2
            self.exact = np.where(magnitudes >= np.partition(magnitudes, half, axis=None)[half], self.w, 0)

    def int8(self):
        """Codes and one scale a row."""
        import numpy as np

        scales = np.abs(self.w).max(1) / np.float32(127)
        return np.rint(self.w / scales[:, None]).astype(np.int8), scales

    def int4(self, group):
        """Codes `[rows, groups, group]` in 0 to 15, where 8 stands for zero, and one scale a group."""
        import numpy as np

        w = self.w.reshape(len(self.w), -1, group)
        scales = np.abs(w).max(2) / np.float32(7)
        return (np.rint(w / scales[:, :, None]) + 8).astype(np.uint8), scales

    def uint8_x(self):
        """Activations around a zero point of 128 and their common scale."""
        import numpy as np

        scale = np.abs(self.x).max() / np.float32(127)
        return (np.rint(self.x / scale) + 128).astype(np.uint8), scale


def nibbles(codes):
    """Two codes a byte, the first in the low half."""
    flat = codes.reshape(codes.shape[0], -1)
    return flat[:, ::2] | (flat[:, 1::2] << 4)


def halves(packed):
    import numpy as np

    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)


def ungroup(codes, scales, shape):
    """Codes 0 to 15 (or signed) and scales → f32 values."""
    import numpy as np

    return (codes.reshape(len(scales.reshape(-1)), -1).astype(np.float32) * scales.reshape(-1, 1)).reshape(shape)


# ---- torch


def torch():
    import torch

    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    return torch


def torch_quantizer(case):
    th = torch()
    rows, cols, bits = case["rows"], case["cols"], case["bits"]
    group, top = case["group"] or cols, 2 ** (bits - 1) - 1

    def int8(w):
        y = w.view(-1, group)
        scales = y.abs().amax(1, keepdim=True) / top
        return (y / scales).round().clamp(-top, top).to(th.int8), scales

    def int4(w):
        y = w.view(-1, group)
        scales = y.abs().amax(1, keepdim=True) / top
        codes = ((y / scales).round().clamp(-top, top) + 8).to(th.uint8).view(rows, cols)
        return codes[:, ::2] | (codes[:, 1::2] << 4), scales

    def values(result):
        codes, scales = (part.numpy() for part in result)
        codes = codes if bits == 8 else halves(codes).astype("float32") - 8
        return ungroup(codes, scales, (rows, cols))

    return (int8 if bits == 8 else int4), values


@peer("torch eager", "quantize")
def torch_eager(case, data):
    quantize, values = torch_quantizer(case)
    w = torch().from_numpy(data.w)
    return (lambda: quantize(w)), values


@peer("torch.compile", "quantize")
def torch_compiled(case, data):
    quantize, values = torch_quantizer(case)
    w = torch().from_numpy(data.w)
    compiled = torch().compile(quantize, dynamic=False)
    return (lambda: compiled(w)), values


@peer("torch quantize_per_channel", "quantize", when=is_channel)
def torch_per_channel(case, data):
    th, w = torch(), torch().from_numpy(data.w)
    zeros = th.zeros(len(w), dtype=th.long)

    def run():
        low, high = th.aminmax(w, dim=1)
        scales = (th.maximum(-low, high) / 127).double()
        return th.quantize_per_channel(w, scales, zeros, 0, th.qint8)

    return run, lambda q: q.dequantize().numpy()


@peer("torch copy_", "cast")
def torch_cast(case, data):
    th = torch()
    types = {"f32": th.float32, "f16": th.float16, "bf16": th.bfloat16}
    w = th.from_numpy(data.w).to(types[case["from"]])
    out = th.empty(w.shape, dtype=types[case["to"]])
    return (lambda: out.copy_(w)), lambda out: out.float().numpy()


def torch_dynamic(engine):
    def build(case, data):
        th = torch()
        th.backends.quantized.engine = engine
        w = th.from_numpy(data.w)
        scales, zeros = w.abs().amax(1).double() / 127, th.zeros(len(w), dtype=th.long)
        codes = th.quantize_per_channel(w, scales, zeros, 0, th.qint8)
        count = COLD_BYTES // data.w.size if case["cold"] else 1
        packed = [th.ops.quantized.linear_prepack(codes, None) for _ in range(count)]
        x, turn = th.from_numpy(data.x), Turn(packed)
        return (lambda: th.ops.quantized.linear_dynamic(x, turn.next(), False)), lambda y: y.numpy()

    return build


peer("torch dynamic, FBGEMM", "int8-linear")(torch_dynamic("fbgemm"))
peer("torch dynamic, oneDNN", "int8-linear")(torch_dynamic("onednn"))


@peer("torch linear", "f32-linear")
def torch_linear(case, data):
    th = torch()
    x, w = th.from_numpy(data.x), th.from_numpy(data.w)
    return (lambda: th.nn.functional.linear(x, w)), lambda y: y.numpy()


@peer("torch kthvalue", "prune")
def torch_kthvalue(case, data):
    th = torch()
    half, kept = data.w.size // 2, data.w.copy()
    w = th.from_numpy(kept.reshape(-1))

    def run():
        magnitudes = w.abs()
        return w.masked_fill_(magnitudes <= th.kthvalue(magnitudes, half).values, 0)

    return InPlace(run, kept, data.w), lambda _: kept


@peer("torch global_unstructured", "prune")
def torch_global_unstructured(case, data):
    th = torch()
    from torch.nn.utils import prune

    kept = data.w.copy()
    tensors = th.from_numpy(kept).reshape(case["tensors"], case["rows"], case["cols"])

    def run():
        modules = [th.nn.Module() for _ in tensors]
        for module, w in zip(modules, tensors):
            module.weight = th.nn.Parameter(w, requires_grad=False)
        named = [(module, "weight") for module in modules]
        prune.global_unstructured(named, pruning_method=prune.L1Unstructured, amount=kept.size // 2)
        for module, w in zip(modules, tensors):
            w.copy_(module.weight)

    return InPlace(run, kept, data.w), lambda _: kept


class InPlace:
    """A call that changes its input, and what restores it, which is not timed."""

    def __init__(self, call, values, original):
        self.call, self.values, self.original = call, values, original

    def prepare(self):
        self.values[...] = self.original

    def __call__(self):
        return self.call()


class Turn:
    """The next of some things, every time: what a cold product multiplies by."""

    def __init__(self, things):
        self.things, self.index = things, 0

    def next(self):
        self.index = (self.index + 1) % len(self.things)
        return self.things[self.index]


# ---- numpy


@peer("numpy partition", "prune")
def numpy_partition(case, data):
    import numpy as np

    half, kept = data.w.size // 2, data.w.copy()

    def run():
        magnitudes = np.abs(kept)
        np.putmask(kept, magnitudes < np.partition(magnitudes, half, axis=None)[half], 0)

    return InPlace(run, kept, data.w), lambda _: kept


# ---- onnxruntime


def ort_session(nodes, inputs, outputs, constants):
    """A session whose inputs and outputs are bound to memory of their own, so that only the product is timed."""
    import onnx
    import onnxruntime as ort

    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, constants)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def ort_product(case, x, weights, node, out="FLOAT", scale=lambda y: y):
    """`node(i, names of its weights)` for every entry of `weights`, a list of lists of arrays; all read the same x."""
    import numpy as np
    import onnx
    import onnxruntime as ort

    shape, kind = [len(x), case["rows"]], getattr(onnx.TensorProto, out)
    input_kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    nodes, outputs, constants = [], [], []
    for i, arrays in enumerate(weights):
        names = [f"w{i}_{j}" for j in range(len(arrays))]
        constants += [onnx.numpy_helper.from_array(a, n) for a, n in zip(arrays, names)]
        nodes.append(node(names, f"y{i}"))
        outputs.append(onnx.helper.make_tensor_value_info(f"y{i}", kind, shape))
    inputs = [onnx.helper.make_tensor_value_info("x", input_kind, list(x.shape))]
    session = ort_session(nodes, inputs, outputs, constants)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    results = [np.zeros(shape, np.int32 if out == "INT32" else np.float32) for _ in weights]
    results = [ort.OrtValue.ortvalue_from_numpy(result) for result in results]
    for i, result in enumerate(results):
        binding.bind_ortvalue_output(f"y{i}", result)
    return Many(len(weights), lambda: session.run_with_iobinding(binding)), lambda _: scale(results[0].numpy())


class Many:
    """One call that does the work of several."""

    def __init__(self, count, call):
        self.count, self.call = count, call

    def __call__(self):
        return self.call()


def rotated(count, arrays):
    """The same weights over and over, with their rows moved, so that nobody finds out that they are the same."""
    import numpy as np

    return [[np.roll(a, i, axis=0) for a in arrays] for i in range(count)]


def ort_node(kind, **attributes):
    import onnx

    def node(names, y):
        inputs = [name.format(*names) for name in attributes["inputs"]]
        rest = {k: v for k, v in attributes.items() if k not in ("inputs", "domain")}
        return onnx.helper.make_node(kind, inputs, [y], domain=attributes.get("domain", ""), **rest)

    return node


@peer("onnxruntime DynamicQuantizeMatMul", "int8-linear")
def ort_dynamic(case, data):
    codes, scales = data.int8()
    count = COLD_BYTES // codes.size if case["cold"] else 1
    # weights are [cols, rows] here
    weights = [[codes.T.copy(), scales] for codes, scales in rotated(count, [codes, scales])]
    node = ort_node("DynamicQuantizeMatMul", domain="com.microsoft", inputs=["x", "{0}", "{1}"])
    return ort_product(case, data.x, weights, node)


@peer("onnxruntime MatMulInteger, i32 out", "int8-linear", when=is_warm)
def ort_integer(case, data):
    import numpy as np

    codes, scales = data.int8()
    x, x_scale = data.uint8_x()
    weights = [[codes.T.copy(), np.uint8(128)]]
    node = ort_node("MatMulInteger", inputs=["x", "{0}", "{1}"])
    return ort_product(case, x, weights, node, "INT32", lambda y: y * x_scale * scales)


def ort_nbits(accuracy):
    def build(case, data):
        codes, scales = data.int4(128)
        packed = nibbles(codes).reshape(*codes.shape[:2], 64)
        count = COLD_BYTES // packed.size if case["cold"] else 1
        weights = [[p, s.reshape(-1)] for p, s in rotated(count, [packed, scales])]
        sizes = {"K": case["cols"], "N": case["rows"], "bits": 4, "block_size": 128, "accuracy_level": accuracy}
        node = ort_node("MatMulNBits", domain="com.microsoft", inputs=["x", "{0}", "{1}"], **sizes)
        return ort_product(case, data.x, weights, node)

    return build


peer("onnxruntime MatMulNBits", "int4-linear", when=is_int8)(ort_nbits(4))
peer("onnxruntime MatMulNBits", "int4-linear", when=is_float)(ort_nbits(1))


@peer("onnxruntime MatMul", "f32-linear")
def ort_matmul(case, data):
    return ort_product(case, data.x, [[data.w.T.copy()]], ort_node("MatMul", inputs=["x", "{0}"]))


@peer("onnxruntime quantize_matmul_nbits", "quantize", when=lambda case: not is_channel(case))
def ort_quantize(case, data):
    import numpy as np
    import onnxruntime.capi._pybind_state as native

    rows, cols, group, bits = case["rows"], case["cols"], case["group"], case["bits"]
    quantize = {4: native.quantize_matmul_4bits, 8: native.quantize_matmul_8bits}[bits]
    w = data.w.T.copy()  # [cols, rows]: groups run down its columns
    packed = np.zeros((rows, cols // group, group * bits // 8), np.uint8)
    scales = np.zeros(rows * cols // group, np.float32)
    zeros = np.zeros(rows * ((cols // group * bits + 7) // 8), np.uint8)

    def values(_):
        codes = packed.reshape(rows, -1) if bits == 8 else halves(packed.reshape(rows, -1))
        return ungroup(codes.astype(np.float32) - 2 ** (bits - 1), scales, (rows, cols))

    return (lambda: quantize(packed, w, scales, zeros, group, rows, cols, True)), values


# ---- openvino


def openvino_product(case, data, weights, dynamic):
    """`weights` is how many there are, and what makes the subgraph of the i-th."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as op

    count, make = weights
    x = op.parameter(list(data.x.shape), np.float32)
    outputs = [op.result(op.matmul(x, make(i), False, True)) for i in range(count)]
    options = {
        "INFERENCE_NUM_THREADS": THREADS,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": dynamic,
    }
    compiled = ov.Core().compile_model(ov.Model(outputs, [x]), "CPU", options)
    request = compiled.create_infer_request()
    request.set_input_tensor(0, ov.Tensor(data.x))
    return Many(count, request.infer), lambda _: request.get_output_tensor(0).data


@peer("openvino", "int8-linear")
def openvino_int8(case, data):
    import numpy as np
    from openvino import opset13 as op

    codes, scales = data.int8()

    def weight(i):
        moved = op.convert(op.constant(np.roll(codes, i, axis=0)), np.float32)
        return op.multiply(moved, op.constant(np.roll(scales, i)[:, None]))

    count = COLD_BYTES // codes.size if case["cold"] else 1
    return openvino_product(case, data, (count, weight), case["cols"])


@peer("openvino", "int4-linear")
def openvino_int4(case, data):
    import numpy as np
    import openvino as ov
    from openvino import opset13 as op

    codes, scales = data.int4(128)
    rows, groups, group = codes.shape
    packed = nibbles(codes)
    eights = np.full(rows * groups // 2, 0x88, np.uint8)
    borrowed = []  # constants of four bits do not own their memory

    def constant(bytes, shape):
        borrowed.append(bytes)
        return op.convert(op.constant(ov.Tensor(bytes, ov.Shape(shape), ov.Type.u4)), np.float32)

    def weight(i):
        moved = constant(np.roll(packed, i, axis=0).reshape(-1), [rows, groups, group])
        centred = op.subtract(moved, constant(eights, [rows, groups, 1]))
        scaled = op.multiply(centred, op.constant(np.roll(scales, i, axis=0)[:, :, None]))
        return op.reshape(scaled, op.constant(np.array([rows, groups * group], np.int64)), False)

    count = COLD_BYTES // packed.size if case["cold"] else 1
    return openvino_product(case, data, (count, weight), 0 if case["float"] else group)


@peer("openvino", "f32-linear")
def openvino_f32(case, data):
    from openvino import opset13 as op

    return openvino_product(case, data, (1, lambda _: op.constant(data.w)), 0)


# ---- XNNPACK, through LiteRT


def litert_model(x_shape, w_shape, kind, packed, scales):
    """A model of one fully connected layer with dynamically quantized activations."""
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name, shape, kind, buffer=0, quantization=None):
        t = schema.TensorT()
        t.name, t.shape, t.type, t.buffer, t.quantization = name, list(shape), kind, buffer, quantization
        return t

    kinds = schema.TensorType
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = scales, np.zeros(len(scales), np.int64)
    quantization.quantizedDimension = 0
    weights = schema.BufferT()
    weights.data = packed.view(np.uint8).reshape(-1)

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 12
    options = schema.FullyConnectedOptionsT()
    options.asymmetricQuantizeInputs = True
    layer = schema.OperatorT()
    layer.opcodeIndex, layer.inputs, layer.outputs = 0, [0, 1, -1], [2]
    layer.builtinOptionsType, layer.builtinOptions = schema.BuiltinOptions.FullyConnectedOptions, options

    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("x", x_shape, kinds.FLOAT32),
        tensor("w", w_shape, getattr(kinds, kind), 1, quantization),
        tensor("y", [x_shape[0], w_shape[0]], kinds.FLOAT32),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [layer]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT(), weights]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def litert_product(case, data, kind, packed, scales):
    from ai_edge_litert.interpreter import Interpreter

    model = litert_model(data.x.shape, data.w.shape, kind, packed, scales)
    count = COLD_BYTES // packed.size if case["cold"] else 1
    interpreters = [Interpreter(model_content=model, num_threads=THREADS) for _ in range(count)]
    for interpreter in interpreters:
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], data.x)
    turn, output = Turn(interpreters), interpreters[0].get_output_details()[0]["index"]

    def run():
        interpreter = turn.next()
        interpreter.invoke()
        return interpreter

    return run, lambda interpreter: interpreter.get_tensor(output)


@peer("XNNPACK", "int8-linear")
def xnnpack_int8(case, data):
    return litert_product(case, data, "INT8", *data.int8())


@peer("XNNPACK, one scale a row", "int4-linear", when=is_int8)
def xnnpack_int4(case, data):
    codes, scales = data.int4(case["cols"])
    return litert_product(case, data, "INT4", nibbles(codes ^ 8), scales.reshape(-1))


# ---- the worker


class Contender:
    def __init__(self, name, build, case, data):
        self.name, self.seconds, self.error, self.fault = name, [], None, None
        try:
            if data is None:
                raise ModuleNotFoundError("No module named 'numpy'")
            self.run, values = build(case, data)
            self.count = getattr(self.run, "count", 1)
            self.prepare = getattr(self.run, "prepare", lambda: None)
            if case.get("cold") and self.count == 1:
                for _ in range(64):  # each copy of the weight has been used before anything is timed
                    self.run()
            self.prepare()
            self.check(values(self.run()), data.exact, TOLERANCES[case["operation"]](case))
        except Exception as error:  # whatever a library throws is its result
            self.fault = f"{type(error).__name__}: {error}".splitlines()[0][:200]

    def check(self, values, exact, tolerance):
        import numpy as np

        values = np.asarray(values).reshape(-1)[: exact.size].astype(np.float64)
        exact = exact.reshape(-1).astype(np.float64)
        self.error = float(np.linalg.norm(values - exact) / np.linalg.norm(exact))
        if not self.error <= tolerance:
            self.fault = f"wrong result: relative error {self.error:.2e}"

    def turn(self):
        if self.fault:
            return
        time.sleep(REST)
        if self.name.startswith("torch dynamic"):
            torch().backends.quantized.engine = self.name.rsplit(" ", 1)[1].lower()
        spent = 0
        while spent < TURN / 6:
            spent += (seconds := self.timed_run())
            if seconds > TURN:  # so slow that nothing has to warm up
                self.seconds.append(seconds / self.count)
                return
        spent = 0
        while spent < TURN:
            spent += (seconds := self.timed_run())
            self.seconds.append(seconds / self.count)

    def timed_run(self):
        self.prepare()
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start

    def result(self):
        times = sorted(self.seconds)
        return {
            "name": self.name,
            "seconds": times[len(times) // 2] if times else None,
            "best": times[0] if times else None,
            "runs": len(times),
            "error": self.error,
            "not_measured": self.fault,
        }


# The relative errors of src/cases.rs; pruning may treat the last of equal magnitudes otherwise.
TOLERANCES = {
    "quantize": lambda case: 0.015 if case["bits"] == 8 else 0.15,
    "cast": lambda case: 4e-3 if "bf16" in (case["from"], case["to"]) else 5e-4,
    "int8-linear": lambda case: 0.03,
    "int4-linear": lambda case: 0.2,
    "f32-linear": lambda case: 1e-5,
    "prune": lambda case: 1e-3,
}


def versions():
    names = ("torch", "numpy", "onnxruntime", "openvino", "ai-edge-litert")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def work():
    # libraries print; only answers belong on standard output
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(message):
        print(json.dumps(message), file=answers)

    while line := sys.stdin.readline():
        case = json.loads(line)
        peers = [(name, build) for name, build, when in PEERS.get(case["operation"], []) if when(case)]
        try:
            data = Data(case) if peers else None
        except ModuleNotFoundError:
            data = None
        contenders = [Contender(name, build, case, data) for name, build in peers]
        answer({})
        while sys.stdin.readline().strip() == "turn":
            for contender in contenders:
                contender.turn()
            answer({})
        answer({"results": [contender.result() for contender in contenders]})


# ---- a whole file


def make_onnx(source, path):
    """The matrices of a safetensors file, one product after the other, as an ONNX model."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    with open(source, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
    header.pop("__metadata__", None)
    nodes, constants, x = [], [], "x"
    for i, (name, entry) in enumerate(sorted(header.items())):
        begin, end = entry["data_offsets"]
        values = np.fromfile(source, np.float32, (end - begin) // 4, offset=start + begin).reshape(entry["shape"])
        constants.append(numpy_helper.from_array(values, name))
        nodes.append(helper.make_node("MatMul", [x, name], [f"h{i}"]))
        x = f"h{i}"
    width = entry["shape"][0]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", width]) for n in ("x", x)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def quantize_onnx(source, path):
    """Prints the seconds that onnxruntime took, without the imports."""
    import logging

    logging.disable(logging.CRITICAL)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    start = time.perf_counter()
    quantize_dynamic(source, path, weight_type=QuantType.QInt8, per_channel=True)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["work", _]:
            work()
        case ["versions"]:
            print(json.dumps(versions()))
        case ["make-onnx", source, path]:
            make_onnx(source, path)
        case ["quantize-onnx", source, path]:
            quantize_onnx(source, path)
        case _:
            sys.exit("usage: peers.py work THREADS | versions | make-onnx IN OUT | quantize-onnx IN OUT")
