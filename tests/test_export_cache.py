"""export(): a cache that the model updates becomes an output, however the model holds it; nothing wrong is written."""

import copy
import logging
import warnings

import onnx
import onnxruntime
import pytest
import torch
from nsa_models import run_reference
from torch_cases import (
    BLOCK,
    DIM,
    DTYPES,
    HEADS,
    PAGE,
    STRIDE,
    decode_arguments,
    nsa_nodes,
    randn,
    run_onnx,
    same,
    to_numpy,
)

import nsa_onnx
from nsa_onnx import exporters

pytestmark = [pytest.mark.filterwarnings("ignore:.*legacy TorchScript:DeprecationWarning")]


class Holder(torch.nn.Module):
    """A model with a weight and two places for a cache; subclasses say how a step uses them."""

    cache_is_argument = False
    extra = None  # output -> what it updates, as export() shall say

    def __init__(self, dtype=torch.float16):
        super().__init__()
        self.weight = torch.nn.Parameter(randn(BLOCK, HEADS, dtype=dtype, seed=1))
        if not self.cache_is_argument:
            self.register_buffer("kv", randn(5, HEADS, DIM, dtype=dtype, seed=2))
            self.register_buffer("layers", randn(5, 3, HEADS, DIM, dtype=dtype, seed=3))
        self.eval()

    def step(self, x, slots, table, cache, lengths=(64, 80)):
        return nsa_onnx.nsa_compress_infer(
            x, self.weight, slots, BLOCK, STRIDE, PAGE, block_table=table, actual_seq_len=list(lengths), cache=cache
        )


class Argument(Holder):
    cache_is_argument, extra = True, {"cache_out": "cache"}

    def forward(self, x, slots, table, cache):
        self.step(x, slots, table, cache)
        return x[0] + 1


class Returned(Holder):
    cache_is_argument, extra = True, None

    def forward(self, x, slots, table, cache):
        return x[0] + 1, self.step(x, slots, table, cache)


class Buffer(Holder):
    cache_is_argument, extra = False, {"kv_out": "kv"}

    def forward(self, x, slots, table):
        return self.step(x, slots, table, self.kv) * 2


class View(Holder):
    cache_is_argument, extra = False, {"layers_out": "layers"}

    def forward(self, x, slots, table):
        self.step(x, slots, table, self.layers[:, 1])
        return self.layers[:, 0] + 1


class Twice(Holder):
    cache_is_argument, extra = True, {"cache_out": "cache"}

    def forward(self, x, slots, table, cache):
        self.step(x, slots, table, cache)
        self.step(x, slots.flip(0), table, cache, (32, 64))
        return cache[:1].float() * 2


class Nothing(Holder):
    """Returns nothing at all."""

    cache_is_argument, extra = True, {"cache_out": "cache"}

    def forward(self, x, slots, table, cache):
        self.step(x, slots, table, cache)


class InDict(Holder):
    cache_is_argument, extra = True, {"cache_kv_out": "cache_kv"}

    def forward(self, x, slots, table, cache):
        self.step(x, slots, table, cache["kv"])
        return cache["other"] + 1


WAYS = [Argument, Returned, Buffer, View, Twice, Nothing, InDict]


def arguments(way, dtype=torch.float16, seed=0):
    x, slots, table, cache = decode_arguments(dtype, seed=seed)
    if way is InDict:
        return x, slots, table, {"kv": cache, "other": cache.flip(0)}
    return (x, slots, table, cache) if way.cache_is_argument else (x, slots, table)


def leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


def run_eager(model, args):
    """Outputs and, after them, the updated states as they are then; the model and args stay as they are."""
    model, args = copy.deepcopy(model), copy.deepcopy(args)
    with torch.no_grad():
        outputs = model(*args)
    states = [*model.named_buffers()]
    if model.cache_is_argument:
        states.append(("cache", args[3]))
        states += [("cache_kv", args[3]["kv"])] if isinstance(args[3], dict) else []
    return [output for output in leaves(outputs) if output is not None], dict(states)


def assert_serves(way, path, mutated, model, args, run=run_onnx):
    """The file gives eager's outputs, and the states after the step where `mutated` says so."""
    proto = onnx.load(path)
    names = [output.name for output in proto.graph.output]
    outputs, states = run_eager(model, args)
    got = dict(zip(names, run(proto, *leaves(args)[: len(proto.graph.input)]), strict=True))
    assert all(same(a, b) for a, b in zip(got.values(), outputs, strict=False))
    assert len(names) == len(outputs) + len(way.extra or ())
    assert mutated
    for name, source in mutated.items():
        assert same(got[name], states[source])


# --------------------------------------------------------------------------------------------------
# Every way to hold a cache


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way.__name__)
def exported(request, tmp_path_factory):
    way = request.param
    model, args = way(), arguments(way)
    before = copy.deepcopy((model.state_dict(), args))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = exporters.export(model, args, tmp_path_factory.mktemp(way.__name__) / "model.onnx")
    return way, model, args, before, result, caught


def test_updated_caches_are_outputs_and_hold_eagers_bits(exported):
    way, model, args, _, result, _ = exported
    assert_serves(way, result.path, result.mutated, model, args)
    other = arguments(way, seed=9)
    assert_serves(way, result.path, result.mutated, model, other)


def test_the_result_says_which_outputs_are_updated_caches(exported):
    way, _, _, _, result, _ = exported
    if way is Returned:
        (name,) = result.mutated
        assert result.mutated[name] == "cache"
        assert [output.name for output in onnx.load(result.path).graph.output][1] == name
    else:
        assert result.mutated == way.extra


def test_the_model_and_its_arguments_are_left_alone(exported):
    _, model, args, (state, old_args), _, _ = exported
    assert model.__class__ in WAYS
    assert all(same(value, state[name]) for name, value in model.state_dict().items())
    assert all(same(a, b) for a, b in zip(leaves(args), leaves(old_args), strict=True))


def test_export_warns_of_nothing_of_ours(exported):
    *_, caught = exported
    assert not [str(warning.message) for warning in caught if "nsa" in str(warning.message)]


def test_parameters_and_inputs_keep_their_names(exported):
    _, _, _, _, result, _ = exported
    proto = onnx.load(result.path)
    assert "weight" in {tensor.name for tensor in proto.graph.initializer}
    assert [value.name for value in proto.graph.input][:3] == ["x", "slots", "table"]
    assert result.report.ok
    assert result.report.model == str(result.path)


@pytest.mark.parametrize("way", [Argument, Returned, View])
def test_plain_torch_export_warns_where_a_cache_would_vanish(way):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.onnx.export(way(), arguments(way), dynamo=True, verbose=False)
    ours = [str(warning.message) for warning in caught if "the model updates" in str(warning.message)]
    if way is Returned:
        assert not ours
    else:
        (message,) = ours
        (source,) = way.extra.values()
        assert source in message
        assert "nsa_onnx.exporters.export()" in message


@pytest.mark.parametrize("where", ["pages", "buffer", "parameter"])
def test_plain_torch_export_warns_of_pages_that_would_vanish(where):
    """The token that a step writes is lost as the window is."""

    class Step(Holder):
        cache_is_argument = True

        def __init__(self):
            super().__init__()
            pages = decode_arguments()[0]
            if where == "buffer":
                self.register_buffer("held", pages)
            elif where == "parameter":
                self.held = torch.nn.Parameter(pages, requires_grad=False)

        def forward(self, pages, slots, table, cache, tok):
            x = pages if where == "pages" else self.held
            x.view(-1, HEADS, DIM)[63] = tok
            return self.step(x, slots, table, cache)

    with pytest.warns(UserWarning, match=f"the model updates (argument|buffer|parameter) ({where}|held) without"):
        torch.onnx.export(Step(), (*decode_arguments(), randn(HEADS, DIM)), dynamo=True, verbose=False)


@pytest.mark.parametrize("way", [Argument, Returned, Buffer, Twice, Nothing])  # no views, no dicts there
def test_the_legacy_exporter_serves_the_same(way, tmp_path):
    model, args = way(), arguments(way)
    state = copy.deepcopy(model.state_dict())
    result = exporters.export(model, args, tmp_path / "model.onnx", dynamo=False)
    assert_serves(way, result.path, result.mutated, model, args)
    assert set(result.mutated.values()) == set((way.extra or {"": "cache"}).values())
    assert all(same(value, state[name]) for name, value in model.state_dict().items())
    assert [value.name for value in onnx.load(result.path).graph.input][:3] == ["x", "slots", "table"]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("way", WAYS)
def test_compiled_steps_are_eagers(way, backend):
    if backend == "inductor" and way is not View:
        return  # one is enough for the slow one
    torch._dynamo.reset()
    model, args = way(), arguments(way)
    outputs, states = run_eager(model, args)
    with torch._inductor.config.patch(fx_graph_cache=False):  # that cache does not notice a changed kernel
        got = torch.compile(model, backend=backend)(*args)
    assert all(same(a, b) for a, b in zip([leaf for leaf in leaves(got) if leaf is not None], outputs, strict=True))
    assert all(same(buffer, states[name]) for name, buffer in model.named_buffers())
    if way.cache_is_argument:
        assert all(same(a, b) for a, b in zip(leaves(args[3]), leaves(states["cache"]), strict=True))


# --------------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_portable_file_runs_without_our_library(dtype, tmp_path):
    model, args = Twice(dtype), arguments(Twice, dtype)
    result = exporters.export(model, args, tmp_path / "model.onnx", portable=True, opset_version=21)

    def plain(proto, *tensors):
        feeds = {value.name: to_numpy(tensor) for value, tensor in zip(proto.graph.input, tensors, strict=True)}
        if dtype is torch.bfloat16:
            return run_reference(proto, feeds)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, feeds)

    assert_serves(Twice, result.path, result.mutated, model, args, plain)
    assert_serves(Twice, result.path, result.mutated, model, args)  # and with it
    assert {function.name for function in onnx.load(result.path).functions} == {"NsaCompressInfer"}


def test_names_dynamic_shapes_and_keyword_arguments(tmp_path):
    model, (x, slots, table, cache) = Argument(), arguments(Argument)
    result = exporters.export(
        model,
        (x,),
        tmp_path / "model.onnx",
        kwargs={"cache": cache, "table": table, "slots": slots},  # not in the signature's order
        dynamic_shapes={"x": {0: "pages"}, "slots": None, "table": None, "cache": {0: "room"}},
        input_names=["pages_in", "slots_in", "table_in", "cache_in"],
        output_names=["hidden", "cache_next"],
        opset_version=18,
    )
    proto = onnx.load(result.path)
    assert result.mutated == {"cache_next": "cache"}
    assert [value.name for value in proto.graph.input] == ["pages_in", "slots_in", "table_in", "cache_in"]
    assert [value.name for value in proto.graph.output] == ["hidden", "cache_next"]
    assert [dim.dim_param for dim in proto.graph.output[1].type.tensor_type.shape.dim][:1] == ["room"]
    larger = (randn(6, PAGE, HEADS, DIM, seed=7), slots, table, randn(8, HEADS, DIM, seed=8))
    assert_serves(Argument, result.path, result.mutated, model, larger)


def test_a_taken_output_name_is_not_taken_again(tmp_path):
    model, args = Argument(), arguments(Argument)
    result = exporters.export(model, args, tmp_path / "model.onnx", output_names=["cache_out"])
    assert result.mutated == {"cache_out_": "cache"}
    assert_serves(Argument, result.path, result.mutated, model, args)


@pytest.mark.parametrize("dynamo", [True, False])
def test_weights_can_lie_beside_the_file(dynamo, tmp_path):
    model, args = Buffer(), arguments(Buffer)
    result = exporters.export(model, args, tmp_path / "model.onnx", external_data=True, dynamo=dynamo)
    assert len(list(tmp_path.iterdir())) == 2  # names and what happens to old ones: test_export_publish.py
    assert_serves(Buffer, result.path, result.mutated, model, args)
    session = onnxruntime.InferenceSession(result.path, nsa_onnx.session_options())
    assert {value.name for value in session.get_outputs()} >= {"kv_out"}


def test_a_model_without_a_cache_is_exported_as_torch_does(tmp_path):
    class Prefill(Holder):
        def forward(self, x):
            return nsa_onnx.nsa_compress(x, self.weight, BLOCK, STRIDE, actual_seq_len=[x.shape[0]])

    model, x = Prefill(), randn(100, HEADS, DIM)
    result = exporters.export(model, (x,), tmp_path / "model.onnx", dynamic_shapes={"x": {0: "T"}})
    assert result.mutated == {}
    assert len(nsa_nodes(onnx.load(result.path))) == 1
    other = randn(77, HEADS, DIM)
    assert same(run_onnx(onnx.load(result.path), other)[0], model(other))


def test_an_exported_program_that_returns_its_cache_is_fine_and_another_is_refused(tmp_path):
    program = torch.export.export(Returned(), arguments(Returned))
    result = exporters.export(program, (), tmp_path / "model.onnx")
    assert list(result.mutated.values()) == ["cache"]
    with pytest.raises(TypeError, match="ExportedProgram that updates cache without returning it"):
        exporters.export(torch.export.export(Argument(), arguments(Argument)), (), tmp_path / "lost.onnx")
    assert not (tmp_path / "lost.onnx").exists()


def test_the_log_names_the_updated_caches(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="nsa_onnx"):
        (name,) = exporters.export(Returned(), arguments(Returned), tmp_path / "model.onnx").mutated
    assert f"output {name!r} is 'cache' after the update" in caplog.text


# --------------------------------------------------------------------------------------------------
# What is wrong is not written


def test_a_graph_that_breaks_the_contract_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the file before")

    def save_a_broken_graph(program, draft, **_):
        proto = program.model_proto
        nsa_nodes(proto)[0].attribute[0].i = 17
        onnx.save(proto, draft)

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save_a_broken_graph)
    with pytest.raises(RuntimeError, match=r"(?s)breaks the contract, nothing is written.*17"):
        exporters.export(Returned(), arguments(Returned), path)
    assert path.read_bytes() == b"the file before"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_graph_that_is_not_onnx_is_not_written(tmp_path, monkeypatch):
    def save_a_broken_graph(program, draft, **_):
        proto = program.model_proto
        nsa_nodes(proto)[0].input[0] = "nowhere"
        onnx.save(proto, draft)

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save_a_broken_graph)
    with pytest.raises(RuntimeError, match="nowhere"):
        exporters.export(Returned(), arguments(Returned), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_output_with_the_name_of_a_weight_is_told(tmp_path):
    with pytest.raises(RuntimeError, match=r"not valid ONNX, nothing is written\..*name of a weight"):
        exporters.export(Returned(), arguments(Returned), tmp_path / "m.onnx", output_names=["weight", "c"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": lambda x: x}, TypeError, r"model must be a torch\.nn\.Module or .*ExportedProgram, got function"),
        ({"args": [1]}, TypeError, "args must be a tuple of example arguments, got list"),
        ({"path": "missing/model.onnx"}, FileNotFoundError, "there is no directory .*missing"),
        ({"path": "."}, ValueError, "path must be a file's"),
        ({"dynamo": False, "dynamic_shapes": {}}, ValueError, "with dynamo=False pass dynamic_axes"),
    ],
)
def test_arguments_are_checked_before_anything_else(changes, error, message, tmp_path):
    call = {"model": Argument(), "args": arguments(Argument), "path": "model.onnx"} | changes
    call["path"] = tmp_path / call["path"]
    with pytest.raises(error, match=message):
        exporters.export(**call)
