"""The legacy exporter, dynamo=False, with our own ops; for torch_npu's see with_torch_npu/test_onnx_routes.py."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from torch_cases import decode_arguments, dims, nsa_nodes, randn, run_onnx, same, value_dims

import nsa_onnx
from nsa_onnx import exporters

WEIGHT = randn(32, 2, seed=9)


def compress(x, lengths=(64, 150)):
    return exporters.nsa_compress(x, WEIGHT.to(x.dtype), 32, 16, actual_seq_len=lengths)


def infer(x, slots, table, cache, lengths=(64, 80)):
    return exporters.nsa_compress_infer(
        x, WEIGHT, slots, 32, 16, 64, block_table=table, actual_seq_len=lengths, cache=cache
    )


class Model(torch.nn.Module):
    """A module out of a function of (module, arguments), with a cache to use."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("cache", randn(5, 2, 16, seed=4))

    def forward(self, *arguments):
        return self.function(self, *arguments)


def export(function, arguments, path, **options):
    """The exported model; torch's word on deprecation is the only one that may be said."""
    model = Model(function).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model, arguments, path, dynamo=False, **options)
    assert torch.equal(model.cache, Model(function).cache), "the export has left its marks in the buffer"
    made = onnx.load(path)
    onnx.checker.check_model(made, full_check=True, check_custom_domain=True)
    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_constant_lengths_give_the_exact_shape_and_bits(dtype, tmp_path):
    x = randn(150, 2, 16, dtype=dtype)
    made = export(lambda m, x: compress(x), (x,), tmp_path / "m.onnx")
    assert dims(made.graph.output[0]) == [compress(x).shape[0], 2, 16]
    assert [(o.domain, o.version) for o in made.opset_import if o.domain] == [("nsa_onnx", 1)]
    assert same(run_onnx(made, x)[0], compress(x))


def test_lengths_from_shapes_and_from_a_tensor_serve_any_size(tmp_path):
    x, other, axes = randn(150, 2, 16), randn(96, 2, 16), {"x": {0: "tokens"}}
    made = export(
        lambda m, x: compress(x, [64, x.shape[0]]), (x,), tmp_path / "m.onnx", input_names=["x"], dynamic_axes=axes
    )
    assert same(run_onnx(made, other)[0], compress(other, [64, 96]))
    made = export(
        lambda m, x, n: compress(x, n),
        (x, torch.tensor([64, 150])),
        tmp_path / "m.onnx",
        input_names=["x", "n"],
        dynamic_axes=axes | {"n": {0: "segments"}},
    )
    assert same(run_onnx(made, other, torch.tensor([32, 64, 96]))[0], compress(other, [32, 64, 96]))
    (node,) = nsa_nodes(made)
    first, *rest = value_dims(made, node.output[0])
    assert (isinstance(first, str), rest) == (True, [2, 16])


@pytest.mark.parametrize("dim", ["tokens", "batch"])
def test_constant_lengths_and_a_dynamic_size_do_not_go_together(dim, tmp_path):
    x, slots, table, cache = decode_arguments()
    if dim == "tokens":
        call = lambda m, x: compress(x), (randn(150, 2, 16),)
    else:
        call = lambda m, slots, table: infer(x, slots, table, cache), (slots, table)
    with pytest.raises(RuntimeError, match=r"is dynamic, but .*int64 tensor"):
        export(*call, tmp_path / "m.onnx", input_names=["x"], dynamic_axes={"x": {0: dim}})
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("with_table", [True, False])
def test_decode_leaves_the_table_out_where_there_is_none(with_table, tmp_path):
    x, slots, table, cache = decode_arguments()
    arguments = (x, slots, cache, table) if with_table else (x, slots, cache)
    made = export(lambda m, x, slots, cache, t=None: infer(x, slots, t, cache), arguments, tmp_path / "m.onnx")
    (node,) = nsa_nodes(made)
    assert len(node.input) == (6 if with_table else 5)
    expected = infer(x, slots, table if with_table else None, cache.clone())
    assert same(run_onnx(made, *arguments)[0], expected)


def test_a_buffer_is_exported_as_it_was_and_two_calls_build_on_each_other(tmp_path):
    x, slots, table, _ = decode_arguments()

    def twice(model, x, slots, table):
        infer(x, slots, table, model.cache, [64, 50])
        infer(x, slots - 1, table, model.cache, [50, 80])
        return model.cache

    made = export(twice, (x, slots, table), tmp_path / "m.onnx")
    (buffer,) = [t for t in made.graph.initializer if t.name == "cache"]
    assert same(onnx.numpy_helper.to_array(buffer), Model(twice).cache)
    assert len(nsa_nodes(made)) == 2
    assert same(run_onnx(made, x, slots, table)[0], Model(twice)(x, slots, table))


def test_a_cache_behind_a_view_is_refused(tmp_path):
    x, slots, table, cache = decode_arguments()
    caches = torch.stack([cache, cache])
    with pytest.raises(RuntimeError, match=r"cache is a view .*dynamo=True"):
        export(lambda m, c: infer(x, slots, table, c[1]) + c.sum(), (caches,), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("used", [True, False])
def test_an_update_that_is_not_returned_is_warned_of(used, tmp_path):
    x, slots, table, _ = decode_arguments()

    def lose(model, x, slots, table):
        result = infer(x, slots, table, model.cache)
        return result.sum() if used else x + 1

    with pytest.warns(UserWarning, match=r"nsa_onnx\.exporters\.export\(\)"):
        torch.onnx.export(Model(lose).eval(), (x, slots, table), tmp_path / "m.onnx", dynamo=False)


def test_export_returns_the_cache_and_keeps_lengths_as_an_initializer(tmp_path):
    x, slots, table, _ = decode_arguments()

    def lose(model, x, slots, table):
        return infer(x, slots, table, model.cache).sum()

    result = exporters.export(Model(lose).eval(), (x, slots, table), tmp_path / "m.onnx", dynamo=False)
    assert dict(result.mutated) == {"cache_out": "cache"}
    made = onnx.load(result.path)
    (node,) = nsa_nodes(made)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    assert constants[node.input[4]].tolist() == [64, 80]
    eager = Model(lose)
    total = eager(x, slots, table)
    outputs = run_onnx(made, x, slots, table)
    assert np.array_equal(outputs[0], total.numpy())
    assert same(outputs[1], eager.cache)


def test_a_traced_function_still_updates_its_cache():
    """torch.jit.trace is no ONNX export: what it records writes into the cache it is given."""
    x, slots, table, cache = decode_arguments()
    traced = torch.jit.trace(infer, (x, slots, table, cache.clone()), check_trace=False)
    for lengths_of_view in (cache.clone(), torch.stack([cache, cache])[1]):
        given = lengths_of_view
        expected = infer(x, slots, table, given.clone())
        assert same(traced(x, slots, table, given), expected)
        assert same(given, expected)


def test_registering_twice_changes_nothing(tmp_path):
    exporters.torchscript.register()
    made = export(
        lambda m, x: nsa_onnx.nsa_compress(x, WEIGHT, 32, 16, actual_seq_len=[150]),
        (randn(150, 2, 16),),
        tmp_path / "m.onnx",
    )
    assert len(nsa_nodes(made)) == 1
