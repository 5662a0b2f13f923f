"""The demo's models on the real onnxruntime-cann and the simulated CANN: ``python demo.py <case>``.

examples/nsa_decoder.py has exported them. Runs where nsa.py does; tests/test_cann.py starts it once per case.
"""

import gc
import os
import sys
from pathlib import Path

import nsa
import numpy as np
import onnx
import onnxruntime as ort
import oracle

import nsa_onnx
from nsa_onnx.targets import cann

TOLERANCE = 5e-4  # of the logits, as in the demo itself
LAYERS, COUNT, PAGE = 2, 3, 64


def sessions(name):
    """The model on the CPU and on the device, and its weights.

    For the device it is prepared: there, no node may broadcast both of its inputs (docs/ascend.md). The provider
    (1.24.4) puts both broadcast operands into one piece of memory and computes with the second alone.
    """
    prepared = cann.prepare(Path(os.environ["NSA_TEST_MODELS"]) / f"{name}.onnx")
    assert prepared.changes, "the model has what it is prepared for"
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in prepared.model.graph.initializer}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    made = nsa_onnx.create_session(prepared.model, device="ascend", options=options)
    placed = [
        (node.domain, part.ep_name) for part in made.get_provider_graph_assignment_info() for node in part.get_nodes()
    ]
    assert placed.count(("nsa_onnx", nsa.PROVIDER)) == 4 * LAYERS  # K and V compressed, and both attention stages
    assert ("", nsa.PROVIDER) in placed  # standard nodes are there, too
    return nsa_onnx.create_session(prepared.model, device="cpu"), made, weights


def run(made, feeds):
    return dict(zip([output.name for output in made.get_outputs()], made.run(None, feeds), strict=True))


def check(cpu, ascend):
    """The same choice (with these inputs there are no near ties), and the CPU's logits."""
    for layer in range(LAYERS):
        chosen = (np.sort(outputs[f"chosen.{layer}"], -1) for outputs in (cpu, ascend))
        np.testing.assert_array_equal(*chosen)
    assert np.abs(cpu["logits"] - ascend["logits"]).max() <= TOLERANCE * np.abs(cpu["logits"]).max()


def prefill():
    """Of whole blocks, as the vendor's operators ask. The compressed tokens follow from the device's own K and V."""
    on_cpu, on_ascend, weights = sessions("prefill")
    ends = [256, 512, 832]
    feeds = {"tokens": np.random.default_rng(21).integers(0, 256, ends[-1]), "actual_seq_len": np.array(ends)}
    cpu, ascend = run(on_cpu, feeds), run(on_ascend, feeds)
    check(cpu, ascend)
    for layer in range(LAYERS):
        for kind, name in (("k", "key"), ("v", "value")):
            x = ascend[f"cmp_{kind}.{layer}"]
            (weight,) = (w for n, w in weights.items() if n.endswith(f"layers.{layer}.attention.compress_{name}"))
            want = oracle.compress_float64(x, weight, 32, 16, ends)
            # Half a unit of the last place, and what float32 sums lose where large terms cancel.
            terms = oracle.compress_float64(np.abs(x), np.abs(weight), 32, 16, ends)
            error = np.abs(ascend[f"compressed_{kind}.{layer}"].astype(np.float64) - want)
            assert np.all(error <= np.abs(want) * 2.0**-11 + terms * 2.0**-20 + 2.0**-25), (kind, layer)
    assert oracle.ulp_distance(cpu["compressed_k.0"], ascend["compressed_k.0"]) <= 1


def decode():
    """Twenty steps, each side with its own caches: the first layer's within 1 ulp of the CPU.

    The second layer's tokens come from the first one's attention, where the vendor rounds P to 16 bits.
    """
    on_cpu, on_ascend, _ = sessions("decode")
    rng = np.random.default_rng(22)
    batch, pages = 4, 8
    sizes = {"block_num": batch * pages, f"{PAGE}*compressed_num": batch * PAGE}  # one page of compressed tokens each
    start = {
        value.name: rng.standard_normal([sizes.get(dim, dim) for dim in value.shape]).astype(np.float16)
        for value in on_cpu.get_inputs()
        if "." in value.name
    }
    caches = {"cpu": start, "ascend": start}
    compressed_table = rng.permutation(batch)
    feeds = {
        "block_table": rng.permutation(batch * pages).reshape(batch, pages).astype(np.int32),
        "compressed_table": compressed_table[:, None].astype(np.int32),
    }
    lengths, written = np.array([223, 239, 255, 400]), 0
    for _ in range(20):
        lengths = lengths + 1
        complete = (lengths - 32) % 16 == 0
        slots = np.where(complete, compressed_table * PAGE + (lengths - 32) // 16, -1)
        written += complete.sum()
        feeds |= {
            "tokens": rng.integers(0, 256, batch),
            "actual_seq_len": lengths,
            "slot_mapping": slots.astype(np.int32),
        }
        results = {}
        for device, made in (("cpu", on_cpu), ("ascend", on_ascend)):
            results[device] = run(made, {**feeds, **caches[device]})
            caches[device] = {name.removesuffix(".out"): a for name, a in results[device].items() if ".out" in name}
        check(results["cpu"], results["ascend"])
        for name, array in caches["cpu"].items():
            other = caches["ascend"][name]
            if name.endswith(".0"):
                assert oracle.ulp_distance(array, other) <= 1, name
            else:
                error = np.abs(array.astype(np.float32) - other.astype(np.float32)).max()
                assert error <= 2.0**-9 * np.abs(array).max(), (name, error)
    assert written == 7


if __name__ == "__main__":
    assert np.__version__ < "2"
    globals()[sys.argv[1]]()
    gc.collect()  # sessions are released before the simulator counts what is left
