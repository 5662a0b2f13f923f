"""The real onnxruntime-cann on the simulated CANN, standard nodes only: ``python provider.py <case>``.

Runs in the environment of onnxruntime-cann (its import name is onnxruntime's) with the simulator's libraries on
LD_LIBRARY_PATH. tests/test_sim.py starts it once per case.
"""

import ctypes
import gc
import sys
import threading

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

CANN = ("CANNExecutionProvider", {"device_id": "0", "enable_cann_graph": "0"})
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def model():
    """y = float32((x + bias) @ weight) squared, x float16 [t, 4]."""
    rng = np.random.default_rng(0)
    bias, weight = (rng.standard_normal(shape).astype(np.float16) for shape in ((4,), (4, 3)))
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "bias"], ["sum"], "add"),
            helper.make_node("MatMul", ["sum", "weight"], ["product"], "matmul"),
            helper.make_node("Cast", ["product"], ["wide"], "cast", to=FLOAT),
            helper.make_node("Mul", ["wide", "wide"], ["y"], "mul"),
        ],
        "standard",
        [helper.make_tensor_value_info("x", HALF, ["t", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["t", 3])],
        [onnx.numpy_helper.from_array(bias, "bias"), onnx.numpy_helper.from_array(weight, "weight")],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10), bias, weight


def session(serialized):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return ort.InferenceSession(serialized, options, providers=[CANN])


def expected(x, bias, weight):
    """Every step rounded as the device rounds it."""
    total = (x + bias).astype(np.float16)
    return (total.astype(np.float32) @ weight.astype(np.float32)).astype(np.float16).astype(np.float32) ** 2


def close(got, want):
    # Sums of four float32 products may round to the neighbouring float16, and are then squared.
    return got.shape == want.shape and np.allclose(got, want, rtol=2**-9, atol=2**-20)


def inputs(t, seed=0):
    return np.random.default_rng(seed).standard_normal((t, 4)).astype(np.float16)


def placement():
    made = session(model()[0].SerializeToString())
    assert made.get_providers()[0] == "CANNExecutionProvider", made.get_providers()
    placed = [(n.op_type, info.ep_name) for info in made.get_provider_graph_assignment_info() for n in info.get_nodes()]
    assert sorted(placed) == [(op, "CANNExecutionProvider") for op in ("Add", "Cast", "MatMul", "Mul")], placed


def results():
    proto, bias, weight = model()
    made = session(proto.SerializeToString())
    for t in (5, 1, 7, 0, 64, 3):
        x = inputs(t, t)
        assert close(made.run(None, {"x": x})[0], expected(x, bias, weight)), t


def io_binding():
    """Device OrtValues in and out: the host sees the result only through a copy."""
    proto, bias, weight = model()
    made = session(proto.SerializeToString())
    x = inputs(9)
    there = ort.OrtValue.ortvalue_from_numpy(x, "cann", 0)
    # ortvalue_from_shape_and_type knows no "cann" in 1.24.4.
    out = ort.OrtValue.ortvalue_from_numpy(np.zeros((9, 3), np.float32), "cann", 0)
    sim = ctypes.CDLL("libascendcl.so")
    assert sim.nsa_sim_is_device_address(ctypes.c_void_p(out.data_ptr())) == 1
    binding = made.io_binding()
    binding.bind_ortvalue_input("x", there)
    binding.bind_ortvalue_output("y", out)
    made.run_with_iobinding(binding)
    assert close(out.numpy(), expected(x, bias, weight))


def concurrent_runs():
    proto, bias, weight = model()
    sessions = [session(proto.SerializeToString()) for _ in range(2)]
    wrong = []

    def work(number):
        for i in range(6):
            x = inputs(1 + i, 100 * number + i)
            if not close(sessions[number % 2].run(None, {"x": x})[0], expected(x, bias, weight)):
                wrong.append((number, i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def failure(made, x):
    """The message of a run that must fail."""
    try:
        made.run(None, {"x": x})
    except Exception as error:
        return str(error)
    raise AssertionError("the run did not fail")


def failure_of_a_task():
    """A failure on the device ends the run with an error, and the next run is good."""
    proto, bias, weight = model()
    made = session(proto.SerializeToString())
    x = inputs(5)
    sim = ctypes.CDLL("libascendcl.so")
    for nth in range(1, 5):
        sim.nsa_sim_fail_task(ctypes.c_uint64(nth))
        assert "aclrtSynchronizeStream" in failure(made, x), nth
        assert close(made.run(None, {"x": x})[0], expected(x, bias, weight))


if __name__ == "__main__":
    assert ml_dtypes.bfloat16 and np.__version__ < "2"
    globals()[sys.argv[1]]()
    gc.collect()  # sessions are released before the library counts what is left
