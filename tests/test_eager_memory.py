"""Where eager calls put their results: in memory of the caller's library, once, in huge pages if it is much."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import nsa_onnx
from nsa_onnx.exporters import operators as exporters
from nsa_onnx.operators import OPERATORS, arrays
from nsa_onnx.runtime import native

LARGE = 8 << 20  # bytes of a result


def example(operator):
    """Inputs of an operator's example, in the node's order: float16 arrays, and indices."""
    rng = np.random.default_rng(0)
    given = operator.example
    floats = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in given.shapes.items()}
    return [(floats | given.indices).get(name) for name in operator.input_names]


def in_torch(array):
    return torch.from_numpy(array.copy()) if isinstance(array, np.ndarray) and array.dtype == np.float16 else array


# The others' results are the caller's own memory, in place.
ALLOCATING = [name for name, one in OPERATORS.items() if not all(output.updates for output in one.outputs)]


@pytest.fixture(params=["alone", "with the exporters"])
def torch_ops(request, monkeypatch):
    """Eager calls on tensors, with and without torch ops that serve them."""
    ops = {one.node.op_type: one.function for one in exporters.OPERATORS}
    monkeypatch.setattr(arrays, "_torch_ops", ops if request.param != "alone" else {})


@pytest.mark.parametrize("op_type", ALLOCATING)
@pytest.mark.usefixtures("torch_ops")
def test_tensors_give_tensors_that_torch_has_allocated(op_type):
    operator = OPERATORS[op_type]
    inputs, attributes = example(operator), operator.example.attributes
    wanted = operator.call(inputs, attributes)
    got = operator.call([in_torch(one) for one in inputs], attributes)
    for array, tensor in zip(wanted, got, strict=True):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.untyped_storage().resizable(), "memory that torch did not allocate"
        assert tensor.numpy().tobytes() == array.tobytes()


def large_call(library):
    """A call with a result of LARGE bytes: windows of 16 tokens that do not overlap."""
    x, w = np.ones((LARGE // 1024 * 16, 4, 128), np.float16), np.ones((16, 4), np.float16)
    operands = map(torch.from_numpy, (x, w)) if library == "torch" else (x, w)
    return lambda: nsa_onnx.nsa_compress(*operands, 16, 16, actual_seq_len=[len(x)])


def address(result):
    return result.data_ptr() if isinstance(result, torch.Tensor) else result.ctypes.data


def flags(place):
    """What Linux says of the mapping that holds an address: man proc_pid_smaps, VmFlags."""
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text("utf-8")):
        begin, end = (int(one, 16) for one in mapping.split(" ", 1)[0].split("-"))
        if begin <= place < end:
            return mapping.rpartition("VmFlags:")[2].split()
    raise AssertionError("no mapping")


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.usefixtures("torch_ops")
def test_large_results_are_meant_for_huge_pages(library):
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("the system has no huge pages")
    result = large_call(library)()
    assert result.nbytes == LARGE
    assert "hg" in flags(address(result) + LARGE // 2)


def test_a_result_in_numpy_begins_with_a_cache_line():
    results = [
        arrays.new_result((size, 3), np.empty(0, np.uint8), dtype) for size in range(1, 70) for dtype in ("", "int32")
    ]
    assert {one.ctypes.data % 64 for one in results} == {0}
    assert [(one.shape, one.dtype.name) for one in results[-2:]] == [((69, 3), "uint8"), ((69, 3), "int32")]


@pytest.mark.usefixtures("torch_ops")
def test_a_result_is_allocated_once():
    call = large_call("torch")
    tracemalloc.start()  # NumPy tells it of its arrays, torch does not
    try:
        result = call()
        assert tracemalloc.get_traced_memory()[1] < LARGE // 8
    finally:
        tracemalloc.stop()
    assert result.shape == (LARGE // 1024, 4, 128) and bool((result == 16).all())


def test_only_whole_pages_of_the_memory_are_advised(monkeypatch):
    asked = []

    class Library:
        def madvise(self, begin, size, advice):
            asked.append((begin.value, size.value, advice))

    monkeypatch.setattr(native.ctypes, "CDLL", lambda _: Library())
    native.advise_huge_pages(0x1234, 4 << 20)
    native.advise_huge_pages(0x1234, (4 << 20) - 1)
    assert asked == [(0x2000, 0x1234 + (4 << 20) - 0x2000, native.mmap.MADV_HUGEPAGE)]
