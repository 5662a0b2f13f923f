"""Prefill on the CPU: our node against onnxruntime's best standard operators and against memory, as ratios.

    python benchmarks/bench_prefill.py [--tokens 65536] [--rounds 7] [--threads 2]

One process, one run: the rivals take turns in every round, so that a noisy machine is noisy for all of
them, and each is judged by its best round. Speed is bytes of input and output per second. The rivals:

    nsa_onnx    NsaCompress through our library
    conv        Cast, Transpose, depthwise Conv, Transpose, Cast: the fastest way in standard operators
    read        summing the input's bytes with as many threads: what no kernel that reads it can beat
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from nsa_onnx import _native

HEADS, DIM = 4, 128
SHAPES = ((32, 16), (32, 32), (64, 16), (128, 16))  # compress_block_size, compress_stride


def session(nodes: list, initializers: list, threads: int) -> ort.InferenceSession:
    half = TensorProto.FLOAT16
    x = helper.make_tensor_value_info("x", half, ["T", HEADS, DIM])
    y = helper.make_tensor_value_info("y", half, ["R", HEADS, DIM])
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nsa_onnx", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(_native.library_path()))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def ours(weight: np.ndarray, stride: int, tokens: int, threads: int) -> ort.InferenceSession:
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([tokens]), "seq")]
    attributes = {"compress_block_size": len(weight), "compress_stride": stride}
    node = helper.make_node("NsaCompress", ["x", "w", "seq"], ["y"], domain="nsa_onnx", **attributes)
    return session([node], constants, threads)


def conv(weight: np.ndarray, stride: int, threads: int) -> ort.InferenceSession:
    """[T, N, D] -> [1, N * D, T, 1], one filter of `block` taps per channel.

    Tried as well, 2 to 20 times slower: a 1-D Conv of the same channels, T as the width, D as the batch or
    as the width with N groups. Only this form gets onnxruntime's blocked depthwise kernel.
    """
    filters = np.repeat(weight.astype(np.float32).T, DIM, axis=0)[:, None, :, None]
    nodes = [
        helper.make_node("Reshape", ["x", "as_channels"], ["x4"]),
        helper.make_node("Cast", ["x4"], ["x32"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["x32"], ["xt"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["xt", "w"], ["yt"], group=HEADS * DIM, strides=[stride, 1]),
        helper.make_node("Transpose", ["yt"], ["y32"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["y32"], ["y4"], to=TensorProto.FLOAT16),
        helper.make_node("Reshape", ["y4", "as_heads"], ["y"]),
    ]
    constants = {
        "w": np.ascontiguousarray(filters),
        "as_channels": np.array([1, -1, 1, HEADS * DIM]),
        "as_heads": np.array([-1, HEADS, DIM]),
    }
    return session(nodes, [numpy_helper.from_array(array, name) for name, array in constants.items()], threads)


def bound_run(running: ort.InferenceSession, x: np.ndarray, rows: int) -> tuple[Callable[[], None], ort.OrtValue]:
    """A run into memory that is there already: allocating the output is not what is measured."""
    output = ort.OrtValue.ortvalue_from_numpy(np.zeros((rows, HEADS, DIM), np.float16))
    binding = running.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("y", output)
    return lambda: running.run_with_iobinding(binding), output


def read_all(x: np.ndarray, threads: int) -> Callable[[], None]:
    parts = np.array_split(x.reshape(-1).view(np.uint64), threads)

    def run() -> None:
        workers = [threading.Thread(target=part.sum) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return run


def best_seconds(rivals: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(rivals, float("inf"))
    for _ in range(rounds + 1):  # the first one warms up and is hardly the best
        for name, run in rivals.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def measure(block: int, stride: int, tokens: int, threads: int, rounds: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, HEADS, DIM)).astype(np.float16)
    weight = rng.standard_normal((block, HEADS)).astype(np.float16)
    rows = 1 + (tokens - block) // stride
    our_run, our_output = bound_run(ours(weight, stride, tokens, threads), x, rows)
    conv_run, conv_output = bound_run(conv(weight, stride, threads), x, rows)
    best = best_seconds({"nsa_onnx": our_run, "conv": conv_run, "read": read_all(x, threads)}, rounds)
    # A rival that computes something else would be no rival; sums in another order may differ by an ulp.
    np.testing.assert_allclose(our_output.numpy(), conv_output.numpy(), rtol=2e-3, atol=2e-2)
    moved = {"nsa_onnx": x.nbytes + rows * HEADS * DIM * 2, "read": x.nbytes}
    speed = {name: moved.get(name, moved["nsa_onnx"]) / seconds / 1e9 for name, seconds in best.items()}
    print(
        f"{block:>5}/{stride:<4} {speed['nsa_onnx']:>9.1f} {speed['conv']:>9.2f} {speed['read']:>9.1f}"
        f" {speed['nsa_onnx'] / speed['conv']:>10.1f}x {speed['nsa_onnx'] / speed['read']:>10.2f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="NsaCompress on the CPU against its rivals, as ratios")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--threads", type=int, default=_native.default_threads())
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    megabytes = arguments.tokens * HEADS * DIM * 2 / 1e6
    print(
        f"NsaCompress, float16, [{arguments.tokens}, {HEADS}, {DIM}] = {megabytes:.0f} MB, {arguments.threads} threads,"
        f" {_native._library().nsa_cpu_target().decode()}, onnxruntime {ort.__version__}; GB/s and ratios\n"
        f"{'L/S':>7} {'nsa_onnx':>12} {'conv':>9} {'read':>9} {'over conv':>11} {'of read':>11}"
    )
    for block, stride in SHAPES:
        measure(block, stride, arguments.tokens, arguments.threads, arguments.rounds)


if __name__ == "__main__":
    main()
