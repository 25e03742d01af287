"""Measure the best rates of this machine: matrix products by ONNX Runtime on the shapes that serving has, and memory reads.

    python -m loadtest.peers.machine_rates --threads 2

Prints one JSON object: `gemm`, a list of `kind` (fp32, int8), `kernel`, `shape` [rows, inputs, outputs] and `gflops`; and
`read_gb_per_s`, the best of several ways to read memory far larger than the caches.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

# Encoder and adapter at 5 s of speech, and an LLM prefill, as [rows, inputs, outputs].
SHAPES = ((256, 512, 2048), (256, 2048, 512), (64, 512, 2048), (64, 576, 1536), (64, 1536, 576))
BLOCK = 32
READ_BYTES = 2**28
TRIES = 30


def best_seconds(work: Callable[[], object], tries: int) -> float:
    """The least of `tries` timings, after two that are not counted."""
    timings = []
    for _ in range(tries + 2):
        started_s = time.perf_counter()
        work()
        timings.append(time.perf_counter() - started_s)
    return min(timings[2:])


def session(
    operator: str,
    weights: dict[str, Any],
    inputs: dict[str, tuple[TensorProto.DataType, int]],
    output: int,
    threads: int,
    **attributes: Any,
) -> onnxruntime.InferenceSession:
    """One operator with constant weights; `inputs` are (element type, width), `output` an element type."""
    rows = [helper.make_tensor_value_info(name, kind, ["rows", width]) for name, (kind, width) in inputs.items()]
    domain = "com.microsoft" if operator == "MatMulNBits" else ""
    node = helper.make_node(operator, [*inputs, *weights], ["y"], domain=domain, **attributes)
    initialisers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    result = helper.make_tensor_value_info("y", output, None)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], operator, rows, [result], initialisers)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def gemm_rates(threads: int) -> list[dict[str, Any]]:
    """Each kernel on each shape."""
    rng = np.random.default_rng(0)
    rates = []
    for rows, inputs, outputs in SHAPES:
        x = rng.standard_normal((rows, inputs), np.float32)
        x_int8 = rng.integers(0, 255, (rows, inputs), np.uint8)
        blocks = inputs // BLOCK
        nbits = {
            "b": rng.integers(0, 255, (outputs, blocks, BLOCK), np.uint8),
            "scales": rng.random(outputs * blocks, np.float32),
        }
        float_in = {"x": (TensorProto.FLOAT, inputs)}
        kernels: list[tuple[str, str, onnxruntime.InferenceSession, Any]] = [
            (
                "fp32",
                "MatMul",
                session("MatMul", {"b": rng.random((inputs, outputs), np.float32)}, float_in, TensorProto.FLOAT, threads),
                x,
            ),
            (
                "int8",
                "MatMulNBits, 8-bit activations",
                session(
                    "MatMulNBits",
                    nbits,
                    float_in,
                    TensorProto.FLOAT,
                    threads,
                    K=inputs,
                    N=outputs,
                    bits=8,
                    block_size=BLOCK,
                    accuracy_level=4,
                ),
                x,
            ),
            (
                "int8",
                "MatMulInteger",
                session(
                    "MatMulInteger",
                    {"b": rng.integers(-100, 100, (inputs, outputs), np.int8)},
                    {"x": (TensorProto.UINT8, inputs)},
                    TensorProto.INT32,
                    threads,
                ),
                x_int8,
            ),
        ]
        for kind, kernel, model, feed in kernels:
            seconds = best_seconds(lambda model=model, feed=feed: model.run(None, {"x": feed}), TRIES)  # type: ignore[misc]
            gflops = 2 * rows * inputs * outputs / seconds / 1e9
            rates.append({"kind": kind, "kernel": kernel, "shape": [rows, inputs, outputs], "gflops": round(gflops, 1)})
    return rates


def read_rate(threads: int) -> float:
    """Gigabytes per second, the best of sums by threads and of a matrix-vector product."""
    data = np.ones(READ_BYTES // 4, np.float32)
    parts = np.array_split(data, threads)
    with ThreadPoolExecutor(threads) as pool:
        sums = best_seconds(lambda: list(pool.map(np.sum, parts)), 8)
        maxima = best_seconds(lambda: list(pool.map(np.max, parts)), 8)
    side = 8192
    product = session("MatMul", {"b": data.reshape(side, -1)}, {"x": (TensorProto.FLOAT, side)}, TensorProto.FLOAT, threads)
    row = np.ones((1, side), np.float32)
    gemv = best_seconds(lambda: product.run(None, {"x": row}), 8)
    return READ_BYTES / min(sums, maxima, gemv) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, required=True)
    threads = parser.parse_args().threads
    print(json.dumps({"gemm": gemm_rates(threads), "read_gb_per_s": round(read_rate(threads), 2)}))


if __name__ == "__main__":
    main()
