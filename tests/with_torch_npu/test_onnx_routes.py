"""torch_npu's models as ONNX: the same nodes and attributes as our own ops, and the same bits in onnxruntime."""

import inspect
import warnings

import numpy as np
import onnx
import pytest
import torch
import torch_npu
from torch_cases import decode_arguments, randn

import nsa_onnx
import nsa_onnx.exporters as exporters

TORCH_NPU = torch_npu.npu_nsa_compress, torch_npu.npu_nsa_compress_infer
OURS = nsa_onnx.nsa_compress, nsa_onnx.nsa_compress_infer


class Prefill(torch.nn.Module):
    def __init__(self, ops):
        super().__init__()
        self.compress = ops[0]
        self.weight = torch.nn.Parameter(randn(32, 2, seed=9))

    def forward(self, x):
        return self.compress(x, self.weight, 32, 16, actual_seq_len=[64, 150]) + 1


class Decode(torch.nn.Module):
    def __init__(self, ops, with_table=True):
        super().__init__()
        self.infer, self.with_table = ops[1], with_table
        self.weight = torch.nn.Parameter(randn(32, 2, seed=9))
        self.register_buffer("cache", randn(5, 2, 16, seed=4))

    def forward(self, x, slots, table):
        arguments = {"block_table": table} if self.with_table else {}
        return self.infer(x, self.weight, slots, 32, 16, 64, actual_seq_len=[64, 80], cache=self.cache, **arguments)


def arguments_of(model):
    return (randn(150, 2, 16),) if isinstance(model, Prefill) else decode_arguments()[:3]


def dynamo(model, path, **options):
    torch.onnx.export(model, arguments_of(model), path, dynamo=True, verbose=False, **options)


def with_table(model, path):
    dynamo(model, path, custom_translation_table=exporters.onnx_translation_table())


def legacy(model, path):
    names = list(inspect.signature(model.forward).parameters)
    torch.onnx.export(model, arguments_of(model), path, dynamo=False, input_names=names)


def ours(model, path):
    exporters.export(model, arguments_of(model), path)


def our_legacy(model, path):
    exporters.export(model, arguments_of(model), path, dynamo=False)


ROUTES = [dynamo, with_table, legacy, ours, our_legacy]
MODELS = {
    "prefill": Prefill,
    "decode": Decode,
    "decode without a table": lambda ops: Decode(ops, with_table=False),
}


def canonical(path):
    """A model as nested tuples in which values are numbered in the order of their appearance."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True, check_custom_domain=True)
    numbers = {"": -1}

    def number(name):
        return numbers.setdefault(name, len(numbers))

    def typed(value):
        return number(value.name), value.type.SerializeToString()

    graph = model.graph
    return {
        "imports": sorted((opset.domain, opset.version) for opset in model.opset_import),
        "inputs": [typed(value) for value in graph.input],
        "nodes": [
            (
                *(node.domain, node.op_type, [number(name) for name in node.input]),
                [number(name) for name in node.output],
                sorted(attribute.SerializeToString() for attribute in node.attribute),
            )
            for node in graph.node
        ],
        "outputs": [typed(value) for value in graph.output],
        "initializers": sorted((number(t.name), onnx.numpy_helper.to_array(t).tolist()) for t in graph.initializer),
    }


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("route", ROUTES)
def test_the_graph_is_the_one_of_our_own_ops(route, kind, tmp_path):
    for name, ops in (("npu.onnx", TORCH_NPU), ("ours.onnx", OURS)):
        route(MODELS[kind](ops).eval(), tmp_path / name)
    theirs = canonical(tmp_path / "npu.onnx")
    assert theirs == canonical(tmp_path / "ours.onnx")
    assert ("nsa_onnx", 1) in theirs["imports"]
    assert sum(node[0] == "nsa_onnx" for node in theirs["nodes"]) == 1


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("route", ROUTES)
def test_onnxruntime_gives_eagers_bits_from_the_cache_before_the_export(route, kind, tmp_path):
    model = MODELS[kind](TORCH_NPU).eval()
    route(model, tmp_path / "model.onnx")
    arguments = arguments_of(model)
    session = nsa_onnx.create_session(tmp_path / "model.onnx", device="cpu")
    names = [value.name for value in session.get_inputs()]
    result = session.run(None, {n: a.numpy() for n, a in zip(names, arguments, strict=False)})[0]
    with torch.no_grad():
        expected = MODELS[kind](TORCH_NPU)(*arguments)
    assert np.array_equal(result, expected.numpy())
    if kind != "prefill":
        assert torch.equal(model.cache, MODELS[kind](TORCH_NPU).cache), "the export has left its marks in the buffer"


@pytest.mark.parametrize("kind", MODELS)
def test_the_legacy_exporter_says_that_it_is_deprecated_and_nothing_else(kind, tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        legacy(MODELS[kind](TORCH_NPU).eval(), tmp_path / "model.onnx")
    assert {warning.category for warning in said} == {DeprecationWarning}


# --------------------------------------------------------------------------------------------------
# The example of torch_npu's documentation


class Documented(torch.nn.Module):
    def __init__(self, length, with_table):
        super().__init__()
        self.length, self.with_table = length, with_table

    def forward(self, input, weight, slot_mapping, block_table, cache):
        table = {"block_table": block_table} if self.with_table else {}
        return torch_npu.npu_nsa_compress_infer(
            input, weight, slot_mapping, 32, 16, 128, actual_seq_len=[self.length], cache=cache, **table
        )


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("length", [43, 48])  # the documented length completes no window; the other one does
def test_the_documented_example_exports_checks_and_runs(length, dynamo, with_table, tmp_path):
    arguments = (
        *(randn(1, 128, 1, 192), randn(32, 1, seed=1)),
        *(torch.zeros(1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)),
        torch.zeros(1, 1, 192, dtype=torch.float16),
    )
    model = Documented(length, with_table).eval()
    result = exporters.export(model, arguments, tmp_path / "model.onnx", dynamo=dynamo)
    assert nsa_onnx.check(result.path).ok
    session = nsa_onnx.create_session(result.path, device="cpu")
    known = dict(zip(inspect.signature(model.forward).parameters, arguments, strict=True))
    given = session.run(None, {value.name: known[value.name].numpy() for value in session.get_inputs()})[0]
    expected = model(*arguments)
    assert np.array_equal(given, expected.numpy())
    assert expected.any() == (length == 48)


# --------------------------------------------------------------------------------------------------
# What cannot be exported


def test_a_cache_that_would_vanish_is_warned_of(tmp_path):
    class Loses(Decode):
        def forward(self, x, slots, table):
            return super().forward(x, slots, table).sum()

    for route in (dynamo, legacy):
        with pytest.warns(UserWarning, match=r"nsa_onnx\.exporters\.export\(\)"):
            route(Loses(TORCH_NPU).eval(), tmp_path / "model.onnx")
    for route in (ours, our_legacy):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            route(Loses(TORCH_NPU).eval(), tmp_path / "model.onnx")
        assert not [w for w in said if "exporters.export" in str(w.message)]
        assert [value.name for value in onnx.load(tmp_path / "model.onnx").graph.output][-1] == "cache_out"


@pytest.mark.parametrize("route", [dynamo, ours, legacy, our_legacy])
def test_missing_lengths_are_named(route, tmp_path):
    class Missing(Prefill):
        def forward(self, x):
            return torch_npu.npu_nsa_compress(x, self.weight, 32, 16)

    with pytest.raises(Exception, match="actual_seq_len must be"):
        route(Missing(TORCH_NPU).eval(), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
