"""Which kernels torch_npu's ops get from us, and which stay as they are."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import oracle
import pytest
import torch
import torch_npu

import nsa_onnx
from nsa_onnx import exporters
from nsa_onnx.exporters import torch_npu as hooks
from nsa_onnx.exporters.operators import OPERATORS, nsa_compress, nsa_compress_infer
from nsa_onnx.exporters.operators.base import find_op

KEYS = ("CPU", "Meta", "Autograd", "AutogradCPU", "Functionalize", "Tracer", "ADInplaceOrView")


def python(code, **environment):
    """What ``code`` prints as JSON, in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


PREFILL, DECODE = nsa_compress.OPERATOR, nsa_compress_infer.OPERATOR
COMPRESS, INFER = (operator.npu_op.removeprefix("npu::") for operator in (PREFILL, DECODE))
NAMES = tuple(operator.npu_op.removeprefix("npu::") for operator in OPERATORS if operator.npu_op)
ATTENTION = tuple(operator.npu_function for operator in OPERATORS if operator.npu_form is not None)
OWN_KERNELS = f"""
import json, torch
def own(name):
    return [key for key in {KEYS} if torch._C._dispatch_has_kernel_for_dispatch_key("npu::" + name, key)]
def on_npu(name):
    return [line for line in torch._C._dispatch_dump_table("npu::" + name).splitlines() if "PrivateUse1:" in line]
def defined():
    return sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("npu::"))
def report():
    names = {NAMES}
    loaders = [type(loader).__name__ for loader in (torch_npu.__loader__, torch_npu.__spec__.loader)]
    print(json.dumps([{{n: own(n) for n in names}}, {{n: on_npu(n) for n in names}}, defined(), loaders]))
"""


@pytest.fixture(scope="module")
def bare():
    """torch_npu without us: own kernels, the table's NPU lines, all op names, and the module's loaders."""
    return python(OWN_KERNELS + "import torch_npu; report()")


def test_the_schemas_are_the_wheels():
    for operator in filter(lambda one: one.npu_op, OPERATORS):
        assert str(find_op(operator.npu_op)._schema) == operator.npu_schema
    assert torch.Tag.out in torch.ops.npu.npu_nsa_compress_infer.cache.tags


def test_this_torch_npu_brings_none_of_what_we_attach(bare):
    own, *_ = bare
    assert own == {name: [] for name in NAMES}


@pytest.mark.parametrize("imports", ["import nsa_onnx.exporters, torch_npu", "import torch_npu, nsa_onnx.exporters"])
def test_either_order_of_import_attaches_all_and_leaves_the_npu_alone(imports, bare):
    own, on_npu, defined, loaders = python(OWN_KERNELS + imports + "; report()")
    assert own == {
        COMPRESS: ["CPU", "Meta", "Autograd"],
        INFER: ["CPU", "Meta", "AutogradCPU", "Functionalize", "Tracer"],
        **{name: ["CPU", "Meta", "AutogradCPU", "Tracer"] for name in ATTENTION},
    }
    assert on_npu == bare[1]
    assert len(on_npu[COMPRESS]) >= 2
    assert defined == bare[2]
    assert loaders == ["SourceFileLoader"] * 2, "the import hook has left its loader in the module"


def test_kernels_that_torch_npu_brings_are_kept():
    """Stands for a newer torch_npu: kernels that are there when we come."""
    code = """
import json, torch, torch_npu
theirs = torch.library.Library("npu", "IMPL")
names = {"npu_nsa_compress": 0, "npu_nsa_compress_infer.cache": -1}
called = []
def kernel(key):
    return lambda *args, **kwargs: (called.append(key), args[0].new_zeros(7))[1]
for name in names:
    torch.library.register_fake("npu::" + name, kernel("fake"), lib=theirs)
    theirs.impl(name, kernel("CPU"), "CPU")
    theirs.impl(name, kernel("autograd"), "AutogradCPU")
    theirs.impl(name, kernel("functionalize"), "Functionalize")
import nsa_onnx.exporters
x, w = torch.ones(64, 1, 16).half(), torch.ones(32, 1).half()
torch_npu.npu_nsa_compress(x, w, 32, 16, actual_seq_len=[64])
with torch.inference_mode():
    torch_npu.npu_nsa_compress(x.clone(), w.clone(), 32, 16, actual_seq_len=[64])
torch_npu.npu_nsa_compress(x.to("meta"), w.to("meta"), 32, 16, actual_seq_len=[64])
slots = torch.zeros(1).int()
infer = torch.ops.npu.npu_nsa_compress_infer
infer(x[None], w, slots, 32, 16, 64, actual_seq_len=[64], cache=x)
torch.func.functionalize(lambda c: infer(x[None], w, slots, 32, 16, 64, actual_seq_len=[64], cache=c))(x)
print(json.dumps(called))
"""
    assert python(code) == ["autograd", "CPU", "fake", "autograd", "functionalize"]


def test_a_torch_npu_that_cannot_be_imported_says_so_itself():
    code = """
import json
import nsa_onnx.exporters
said = []
for _ in range(2):
    try:
        import torch_npu
    except ImportError as error:
        said.append(str(error))
print(json.dumps(said))
"""
    said = python(code, LD_LIBRARY_PATH="")
    assert len(said) == 2
    assert all(".so" in message for message in said)


# --------------------------------------------------------------------------------------------------
# The kernels


def arrays(dtype, *shapes):
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype(dtype) for shape in shapes]


def tensor(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_eager_on_the_cpu_gives_the_contracts_bits(dtype):
    x, w = arrays(dtype, (150, 3, 32), (48, 3))
    y = torch_npu.npu_nsa_compress(tensor(x), tensor(w), 48, 16, actual_seq_len=[70, 70, 150])
    assert oracle.same_bits(numpy(y), oracle.compress_exact(x, w, 48, 16, [70, 70, 150]))

    pages, cache = arrays(dtype, (5, 64, 3, 32), (6, 3, 32))
    slots, table = np.array([4, -1, 0], np.int32), np.array([[3, 1], [0, 9], [2, 4]], np.int32)
    lengths = [96, 50, 64]
    expected = oracle.infer_exact(pages, w, slots, 48, 16, 64, table, lengths, cache)
    held = tensor(cache)
    result = torch_npu.npu_nsa_compress_infer(
        *(tensor(pages), tensor(w), torch.from_numpy(slots), 48, 16, 64),
        **{"block_table": torch.from_numpy(table), "actual_seq_len": lengths, "cache": held},
    )
    assert result is held
    assert not oracle.same_bits(numpy(held), arrays(dtype, (5, 64, 3, 32), (6, 3, 32))[1])
    assert oracle.same_bits(numpy(held), expected)


def test_gradients_are_those_of_our_op():
    x, w = (tensor(a) for a in arrays(np.float16, (90, 2, 16), (32, 2)))
    gradients = []
    for op in (torch_npu.npu_nsa_compress, nsa_onnx.nsa_compress):
        leaves = [t.clone().requires_grad_() for t in (x, w)]
        (op(*leaves, 32, 16, actual_seq_len=[90]).float() ** 2).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(*gradients, strict=True))


def test_a_decode_step_has_no_gradient_and_says_so():
    pages, w, cache = (tensor(a) for a in arrays(np.float16, (1, 64, 2, 16), (32, 2), (2, 2, 16)))
    slots = torch.zeros(1, dtype=torch.int32)
    cache = torch_npu.npu_nsa_compress_infer(
        pages, w.requires_grad_(), slots, 32, 16, 64, actual_seq_len=[48], cache=cache
    )
    with pytest.raises(NotImplementedError, match="has no gradient"):
        cache.sum().backward()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_missing_lengths_are_named(device):
    x, w = torch.zeros(64, 1, 16, dtype=torch.half, device=device), torch.zeros(32, 1, dtype=torch.half, device=device)
    with pytest.raises(TypeError, match=r"actual_seq_len must be .* got None"):
        torch_npu.npu_nsa_compress(x, w, 32, 16)
    slots = torch.zeros(1, dtype=torch.int32, device=device)
    with pytest.raises(TypeError, match=r"actual_seq_len must be .* got None"):
        torch_npu.npu_nsa_compress_infer(x[None], w, slots, 32, 16, 64, cache=x)


def test_our_ops_on_npu_tensors_go_to_torch_npu():
    """No NPU here: the kernels for it are there, and give torch_npu what it takes."""
    for op in (PREFILL.op, DECODE.op, DECODE.in_place):
        for overload in op.schemas:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"nsa_onnx::{overload}", "PrivateUse1")
    x, w = (tensor(a) for a in arrays(np.float16, (64, 2, 16), (32, 2)))
    for lengths in ([64], torch.tensor([64])):
        y = hooks.npu_kernel(PREFILL, PREFILL.op)(x, w, 32, 16, actual_seq_len=lengths)
        assert torch.equal(y, exporters.nsa_compress(x, w, 32, 16, actual_seq_len=[64]))
        cache = torch.zeros(2, 2, 16).half()
        arguments = {"actual_seq_len": lengths, "cache": cache}
        step = x[None], w, torch.tensor([1], dtype=torch.int32), 32, 16, 64
        new = hooks.npu_kernel(DECODE, DECODE.op)(*step, **arguments)
        assert not cache.any()
        assert new[1].any()
