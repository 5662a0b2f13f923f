"""torch.export, run_decompositions and torch.compile give eager's results and caches, to the bit."""

import os
import subprocess
import sys

import pytest
import torch
import torch_npu
from torch_cases import decode_arguments, randn

import nsa_onnx.exporters  # noqa: F401 - attaches the kernels

WEIGHT = randn(32, 2, seed=9)


class Prefill(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(WEIGHT.clone())

    def forward(self, x):
        return torch_npu.npu_nsa_compress(x, self.weight, 32, 16, actual_seq_len=[64, 150]) * 2


def step(x, weight, slots, table, lengths, cache):
    return torch_npu.npu_nsa_compress_infer(
        x, weight, slots, 32, 16, 64, block_table=table, actual_seq_len=lengths, cache=cache
    )


class Decode(torch.nn.Module):
    """A decode step whose cache is held in one of five ways."""

    def __init__(self, holds):
        super().__init__()
        self.holds = holds
        self.weight = torch.nn.Parameter(WEIGHT.clone())
        self.register_buffer("kept", randn(3, 5, 2, 16, seed=4))

    def forward(self, x, slots, table, cache):
        if self.holds == "argument":
            return step(x, self.weight, slots, table, [64, 80], cache) + 1
        if self.holds == "argument, returned":
            return step(x, self.weight, slots, table, [64, 80], cache)
        if self.holds == "result ignored":
            step(x, self.weight, slots, table, [64, 80], cache)
            return cache.sum((1, 2))
        if self.holds == "two calls":
            step(x, self.weight, slots, table, [64, 50], cache)
            return step(x, self.weight, slots - 1, table, [50, 80], cache) * 2
        return step(x, self.weight, slots, table, [64, 80], self.kept[1]) + self.kept.sum()  # "view of a buffer"


HOLDS = ("argument", "argument, returned", "result ignored", "two calls", "view of a buffer")


def exported(model, arguments):
    return torch.export.export(model, arguments).module()


def exported_strictly(model, arguments):
    return torch.export.export(model, arguments, strict=True).run_decompositions().module()


def decomposed(model, arguments):
    return torch.export.export(model, arguments).run_decompositions().module()


def compiled(backend):
    def compile_(model, arguments):
        torch._dynamo.reset()
        return torch.compile(model, backend=backend, fullgraph=True)

    return compile_


ROUTES = {
    "export": exported,
    "export, strict": exported_strictly,
    "run_decompositions": decomposed,
    "aot_eager": compiled("aot_eager"),
}
INDUCTOR = {"inductor": compiled("inductor")}


def state(model, cache):
    return {"cache": cache} | {name.removeprefix("_orig_mod."): buffer for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("holds", HOLDS)
@pytest.mark.parametrize("route", ROUTES)
def test_decode_gives_eagers_result_and_cache(route, holds):
    assert_like_eager(ROUTES[route], holds)


@pytest.mark.parametrize("holds", ["result ignored", "view of a buffer"])
def test_decode_through_inductor_gives_eagers_result_and_cache(holds):
    assert_like_eager(INDUCTOR["inductor"], holds)


def assert_like_eager(route, holds):
    x, slots, table, cache = decode_arguments()
    eager, model = Decode(holds), Decode(holds)
    expected_cache, given_cache = cache.clone(), cache.clone()
    run = route(model, (x, slots, table, cache.clone()))
    with torch.no_grad():
        for _ in range(2):  # a second step sees what the first has left
            expected, given = eager(x, slots, table, expected_cache), run(x, slots, table, given_cache)
            assert torch.equal(expected, given)
            x = x + 1
    before, expected, given = state(Decode(holds), cache), state(eager, expected_cache), state(run, given_cache)
    assert all(torch.equal(given[name], expected[name]) for name in given)  # strict export drops unused buffers
    assert [name for name in given if not torch.equal(given[name], before[name])] == [
        "kept" if holds == "view of a buffer" else "cache"
    ]


@pytest.mark.parametrize("route", [*ROUTES, *INDUCTOR])
def test_prefill_gives_eagers_result(route):
    x, model = randn(150, 2, 16), Prefill()
    with torch.no_grad():
        assert torch.equal((ROUTES | INDUCTOR)[route](model, (x,))(x), model(x))


def test_prefill_can_be_trained_through_torch_compile():
    x, model = randn(150, 2, 16), Prefill()
    torch._dynamo.reset()
    gradients = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        run(x).float().square().sum().backward()
        gradients.append(model.weight.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


def test_without_our_functionalize_kernel_the_cache_is_lost():
    """Upstream's bug that the kernel is for. When this fails, look whether the kernel is still needed."""
    code = """
import torch
from nsa_onnx.exporters import ops
ops.install_functionalize = lambda *args: None
import torch_npu
from torch_cases import decode_arguments, randn

class Decode(torch.nn.Module):
    def forward(self, x, w, slots, cache):
        return torch_npu.npu_nsa_compress_infer(x, w, slots, 32, 16, 64, actual_seq_len=[64, 80], cache=cache)

x, slots, _, cache = decode_arguments()
program = torch.export.export(Decode(), (x, randn(32, 2), slots, cache)).run_decompositions()
cache_node = next(node for node in program.graph.nodes if node.name == "cache")
print("cache is read:", bool(cache_node.users))
"""
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=300)
    assert "cache is read: False" in ran.stdout, ran.stdout + ran.stderr
