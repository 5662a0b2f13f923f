"""Checks that the private parts of torch, onnxscript, onnx and Python that we use still do what we use them for.

A release that lacks one fails here, under the name of the function of ours that wraps it (exporters/private.py).
"""

import ast
import importlib
import inspect
import logging
import sys
import warnings
from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch
from onnxscript import FLOAT, opset18

import nsa_onnx.exporters
from nsa_onnx.exporters import private
from nsa_onnx.graph.inference import is_shown_as
from nsa_onnx.operators import schema
from nsa_onnx.runtime.imports import is_being_imported, when_imported

SOURCES = Path(nsa_onnx.exporters.__file__).parent
TRIED = set()
LIBRARY = torch.library.Library("nsa_onnx_private", "DEF")
OPS = torch.ops.nsa_onnx_private


def tries(*functions):
    """What a test is about."""
    TRIED.update(function.__name__ for function in functions)
    return lambda test: test


def test_everything_private_is_tried():
    ours = [value for value in vars(private).values() if getattr(value, "__module__", "") == private.__name__]
    there = {value.__name__ for value in ours if inspect.isfunction(value) or inspect.isclass(value)}
    assert {name for name in there if not name.startswith("_")} == TRIED


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(path):
    """Names of others that begin with an underscore: attributes of anything but self, imports, strings in getattr."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            names = [node.attr]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [part for alias in node.names for part in alias.name.split(".")]
            names += (getattr(node, "module", None) or "").split(".")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            names = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        yield from (f"{path.name}:{node.lineno}: {name}" for name in names if is_private(name))


def test_no_other_module_of_the_exporters_uses_a_private_name():
    found = {path.name: list(private_names(path)) for path in SOURCES.rglob("*.py")}
    assert found.pop("private.py"), "the search finds nothing where there is something"
    assert [name for names in found.values() for name in names] == []


# --------------------------------------------------------------------------------------------------
# Ops and their kernels


@tries(private.not_compiled)
def test_a_kernel_is_not_compiled():
    seen = []

    @private.not_compiled
    def kernel(x):
        seen.append(torch.compiler.is_compiling())
        return x + 1

    torch._dynamo.reset()
    assert torch.compile(lambda x: kernel(x) * 2, backend="eager")(torch.ones(2)).tolist() == [4, 4]
    assert seen == [False]


@tries(private.has_kernel)
def test_the_dispatcher_is_asked_for_kernels():
    assert private.has_kernel("nsa_onnx::nsa_compress.tensor", "CUDA", "CPU")
    assert not private.has_kernel("nsa_onnx::nsa_compress", "CUDA")


@tries(private.schema)
def test_a_schema_says_what_is_written():
    arguments = private.schema(torch.ops.aten.add_.Tensor).arguments
    assert [bool(a.alias_info and a.alias_info.is_write) for a in arguments] == [True, False, False]
    assert private.schema(len) is None


@tries(private.require)
def test_what_is_required_is_an_error_where_it_does_not_hold():
    private.require(True, lambda: "unused")
    with pytest.raises(RuntimeError, match=r"^the message$"):
        private.require(False, lambda: "the message")


class Half(torch.nn.Module):
    def forward(self, x):
        return x.half()


@tries(private.to_copy)
def test_a_cast_is_this_op_in_a_graph():
    graph = torch.export.export(Half(), (torch.ones(2),)).run_decompositions().graph
    assert private.to_copy() in {node.target for node in graph.nodes}


@tries(private.DispatchMode)
def test_a_dispatch_mode_sees_the_ops_inside_of_functions():
    class Record(private.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen, x = [], torch.zeros(2, 2)
    with Record():
        torch.nn.functional.linear(x, x)
    assert torch.ops.aten.mm.default in seen


# --------------------------------------------------------------------------------------------------
# Gradients and functionalization

LIBRARY.define("twice(Tensor x) -> Tensor", tags=[torch.Tag.pt2_compliant_tag])
LIBRARY.impl("twice", lambda x: x * 2, "CPU")
LIBRARY.define("grow_(Tensor(a!) x) -> Tensor(a!)")
LIBRARY.impl("grow_", lambda x: x.add_(1), "CPU")


@tries(private.below_autograd, private.below_version_counter)
@pytest.mark.parametrize(
    ("below", "key"),
    [(private.below_autograd, "Autograd"), (private.below_version_counter, "ADInplaceOrView")],
)
def test_a_kernel_hands_on_to_the_one_below_it(below, key):
    seen = []

    def kernel(keyset, x):
        seen.append(key)
        return below(OPS.twice.default, keyset, x)

    library = torch.library.Library("nsa_onnx_private", "IMPL")
    library.impl("twice", kernel, key, with_keyset=True)
    try:
        assert OPS.twice(torch.ones(2)).tolist() == [2, 2]
    finally:
        library._destroy()
    assert seen == [key]


@tries(private.shown_by)
def test_a_view_has_a_tensor_that_it_shows():
    x = torch.zeros(4)
    assert private.shown_by(x[1:][1:]) is x
    assert private.shown_by(x) is x


@tries(private.functional_value, private.below_functionalization, private.update_functional)
def test_an_op_brings_its_own_functionalization():
    seen = []

    def functionalize(x):
        plain = private.functional_value(x)
        with private.below_functionalization():
            new = OPS.twice(plain)
        seen.append(plain is not x)
        private.update_functional(x, new)
        return x

    library = torch.library.Library("nsa_onnx_private", "IMPL")
    library.impl("grow_", functionalize, "Functionalize")

    def update(x):
        whole = x.clone()
        OPS.grow_(whole[1:])
        return whole

    try:
        assert torch.func.functionalize(update)(torch.ones(3)).tolist() == [1, 2, 2]
    finally:
        library._destroy()
    assert seen == [True]
    assert private.functional_value(3) == 3


# --------------------------------------------------------------------------------------------------
# Symbolic sizes


@tries(private.declared_dynamic, private.made_constant)
def test_sizes_are_told_apart():
    class Look(torch.nn.Module):
        def forward(self, *tensors):
            seen.extend((private.declared_dynamic(t.shape[0]), private.made_constant(t.shape[0])) for t in tensors)
            torch._check(tensors[0].shape[0] == 5)
            seen.append((private.declared_dynamic(tensors[0].shape[0]), private.made_constant(tensors[0].shape[0])))
            return tensors[0] + 1

    seen, x = [], torch.zeros(5)
    kinds = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.AUTO}, None)
    with pytest.raises(Exception, match="pecialize"):
        torch.export.export(Look(), (x, x.clone(), x.clone()), dynamic_shapes={"tensors": kinds})
    assert seen == [(True, False), (False, False), (False, False), (True, True)]
    assert not private.declared_dynamic(5)


# --------------------------------------------------------------------------------------------------
# Who has called us


class Twice(torch.nn.Module):
    def forward(self, x):
        return OPS.twice(x) + 1


@tries(private.program_being_exported)
def test_the_program_that_is_decomposed_is_found():
    seen = []

    def fake(x):
        seen.append(private.program_being_exported())
        return x.new_empty(x.shape)

    library = torch.library.Library("nsa_onnx_private", "IMPL")
    torch.library.register_fake("nsa_onnx_private::twice", fake, lib=library)
    try:
        program = torch.export.export(Twice(), (torch.ones(2),))
        assert set(seen) == {None}
        program.run_decompositions()
    finally:
        library._destroy()
    assert seen[-1] is program


@tries(private.calls_in_module)
def test_the_callers_are_found_up_to_the_module():
    class Model(torch.nn.Module):
        def forward(self, x):
            seen.extend(frame.f_code.co_name for frame in private.calls_in_module())
            return x

    seen = []
    Model()(1)
    assert "forward" in seen
    assert "test_the_callers_are_found_up_to_the_module" not in seen
    assert private.calls_in_module() == []


@tries(private.loggers_of)
def test_a_packages_loggers_are_found():
    logger = logging.getLogger("nsa_onnx_private.some.part")
    logging.getLogger("nsa_onnx_privateer")
    found = private.loggers_of("nsa_onnx_private")
    assert logger in found
    assert {logger.name.split(".")[0] for logger in found} == {"nsa_onnx_private"}


# --------------------------------------------------------------------------------------------------
# The legacy exporter


def export_legacy(model, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model.eval(), (torch.ones(2),), path, dynamo=False, **options)
    return onnx.load(path).graph.node


@tries(private.traced_model, private.is_tracing, private.trace_graph, private.untraced)
@tries(private.traced_value, private.set_traced_value, private.plain_size)
def test_a_trace_can_be_looked_at_and_changed(tmp_path, recwarn):
    class Model(torch.nn.Module):
        def forward(self, x):
            y = x.exp()
            with private.untraced():
                x.log()
                seen["untraced"] = private.is_tracing()
            seen["tracing"] = private.is_tracing()
            seen["sizes"] = type(x.shape[0]), private.plain_size(x.shape[0])
            seen["model"] = private.traced_model()
            seen["graph"] = str(private.trace_graph())
            private.set_traced_value(x, private.traced_value(y))
            return x.sin()

    seen = {}
    nodes = export_legacy(Model(), tmp_path / "model.onnx")
    assert [node.op_type for node in nodes] == ["Exp", "Sin"]
    assert nodes[1].input[0] == nodes[0].output[0]
    assert callable(seen["model"])
    assert seen["sizes"] == (torch.Tensor, 2)
    assert not [warning for warning in recwarn if warning.category is torch.jit.TracerWarning]
    assert (seen["tracing"], seen["untraced"], private.is_tracing()) == (True, False, False)
    assert "aten::exp" in seen["graph"]
    assert "aten::log" not in seen["graph"]
    assert private.traced_model() is None


LIBRARY.define("pick(Tensor x, int a, float b, int[] c, Tensor? d) -> Tensor")
LIBRARY.impl("pick", lambda x, a, b, c, d: x + a, "CPU")


@tries(private.is_left_out, private.constant_argument, private.constant_ints)
def test_arguments_of_a_recorded_op_can_be_read(tmp_path):
    class Model(torch.nn.Module):
        def forward(self, x):
            return OPS.pick(x, 7, 0.5, [1, 2], None)

    def symbolic(g, x, a, b, c, d):
        seen.extend([private.constant_argument(a, "a", "i"), private.constant_argument(b, "b", "f")])
        seen.extend(
            [private.constant_ints(c), private.constant_ints(x), private.is_left_out(d), private.is_left_out(x)]
        )
        with pytest.raises(Exception, match="'x'"):
            private.constant_argument(x, "x", "i")
        return g.op("Identity", x)

    seen = []
    torch.onnx.register_custom_op_symbolic("nsa_onnx_private::pick", symbolic, 9)
    try:
        export_legacy(Model(), tmp_path / "model.onnx")
    finally:
        torch.onnx.unregister_custom_op_symbolic("nsa_onnx_private::pick", 9)
    assert seen == [7, 0.5, [1, 2], None, True, False]


# --------------------------------------------------------------------------------------------------
# The dynamo exporter's table


@tries(private.translation, private.register_translation)
def test_a_translation_is_known_to_the_plain_exporter(recwarn):
    def translate(*args):
        return opset18.Mul(*args, opset18.Constant(value_float=2.0))

    translate.__signature__ = inspect.Signature([inspect.Parameter("x", inspect.Parameter.POSITIONAL_ONLY)])
    translate.__annotations__ = {"x": FLOAT, "return": FLOAT}
    translated = private.translation(translate, "nsa_onnx_private", 1)
    for _ in range(2):
        private.register_translation(translated, "nsa_onnx_private::twice")
    library = torch.library.Library("nsa_onnx_private", "IMPL")
    torch.library.register_fake("nsa_onnx_private::twice", lambda x: x.new_empty(x.shape), lib=library)
    try:
        program = torch.onnx.export(Twice(), (torch.ones(2),), dynamo=True, verbose=False)
    finally:
        library._destroy()
    assert [node.op_type for node in program.model.graph] == ["Mul", "Add"]
    assert not [warning for warning in recwarn if "registered" in str(warning.message)]


LIBRARY.define("squared(Tensor x) -> Tensor")
LIBRARY.impl("squared", lambda x: x * x, "CPU")


@tries(private.decompose)
def test_an_op_is_decomposed_in_onnx_exports_alone():
    class Model(torch.nn.Module):
        def forward(self, x):
            return OPS.squared(x)

    library = torch.library.Library("nsa_onnx_private", "IMPL")
    torch.library.register_fake("nsa_onnx_private::squared", lambda x: x.new_empty(x.shape), lib=library)
    op = OPS.squared.default
    private.decompose(op, lambda x: x.pow(2))
    try:
        exported = torch.onnx.export(Model(), (torch.ones(2),), dynamo=True, verbose=False)
        program = torch.export.export(Model(), (torch.ones(2),)).run_decompositions()
    finally:
        del torch._decomp.decomposition_table[op]
        library._destroy()
    assert [node.op_type for node in exported.model.graph] == ["Pow"]
    assert op in {node.target for node in program.graph.nodes}


# --------------------------------------------------------------------------------------------------
# Trees


@tries(private.leaves, private.map_leaves, private.with_leaves, private.leaf_paths)
def test_trees_are_taken_apart_and_put_together():
    tree = {"b": [1, None], "a": (2, {"c": 3})}
    assert private.leaves(tree) == [1, None, 2, 3]
    assert private.map_leaves(str, tree) == {"b": ["1", "None"], "a": ("2", {"c": "3"})}
    assert private.with_leaves(tree, [5, 6, 7, 8]) == {"b": [5, 6], "a": (7, {"c": 8})}
    assert private.leaf_paths(tree) == ["b[0]", "b[1]", "a[0]", "a[1]['c']"]


# --------------------------------------------------------------------------------------------------
# What the rest of the package uses of onnx and Python


def test_onnx_shows_an_inference_function_the_nodes_name():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "nsa_onnx" : 1]> '
        "g (float16[T, 1, 16] x, float16[32, 1] w, int64[B] s) => (float16[R, 1, 16] y) "
        "{ y = nsa_onnx.NsaCompress <compress_block_size = 32, compress_stride = 16> (x, w, s) }"
    )
    shown = []
    for name in ("layer.0", "", "0"):
        model.graph.node[0].name = name
        with schema.observing() as seen:
            onnx.shape_inference.infer_shapes(model)
        shown.append(seen[0][0])
    assert [[is_shown_as(display, name) for name in ("layer.0", "0")] for display in shown] == [
        [True, False],
        [False, False],
        [False, True],
    ]


def test_an_import_is_told_of_and_known_to_be_half_done(tmp_path, monkeypatch):
    (tmp_path / "nsa_half").mkdir()
    (tmp_path / "nsa_half" / "__init__.py").write_text("")
    (tmp_path / "nsa_half" / "part.py").write_text(
        "from nsa_onnx.runtime.imports import is_being_imported\nhalf = is_being_imported('nsa_half')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    called = []
    when_imported("nsa_half.part", lambda: called.append("nsa_half.part" in sys.modules))
    try:
        part = importlib.import_module("nsa_half.part")
    finally:
        for name in ("nsa_half.part", "nsa_half"):
            sys.modules.pop(name, None)
    assert called == [True]
    assert part.half
    assert not is_being_imported("nsa_half")
