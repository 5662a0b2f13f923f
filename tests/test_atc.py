"""``prepare --target atc``: what ATC's parser rejects is rewritten to the same bits; what cannot be is refused."""

from __future__ import annotations

import nsa_models as models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nsa_onnx
from nsa_onnx.checker import UnreadableModelError
from nsa_onnx.cli import main
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.expand import expand
from nsa_onnx.runtime.session import session_options
from nsa_onnx.targets.atc import prepare_atc
from nsa_onnx.targets.atc_table import MAX_CONSTANT_PAGES
from nsa_onnx.targets.preparing import PrepareError


def subgraphs(node):
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def rejections(model):
    """The error codes for which the public source of ATC's parser rejects a model, without operators' own."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    found = set()
    if not model.graph.input or not model.graph.output:
        found.add("E16001")
    graphs = [model.graph]
    for graph in graphs:  # grows
        names = [value.name for value in graph.input] + [node.name for node in graph.node if node.name]
        names += [
            f"{tensor.name}_{index}" for index, tensor in enumerate(sorted(graph.initializer, key=lambda t: t.name))
        ]
        if len(set(names)) != len(names):
            found.add("E19009")
        tensors = list(graph.initializer)
        for node in graph.node:
            if node.op_type == "If":
                graphs += subgraphs(node)
            if node.op_type == "Constant":
                tensors += [attribute.t for attribute in node.attribute if attribute.name == "value"]
                if all(attribute.name != "value" for attribute in node.attribute):
                    found.add("empty constant")
            elif node.domain and node.domain not in versions:
                found.add("E19999")
            elif not node.domain and len(versions) != 1:
                found.add("E16005")
            elif (node.domain or "ai.onnx", node.op_type) not in KNOWN_OPS:
                found.add("E16002")
        typed = {TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.UINT64}
        for tensor in tensors:
            if tensor.data_type not in typed and not tensor.raw_data and 0 not in tensor.dims:
                found.add("no raw data")
    return found


STANDARD = "Shape Gather Max Mod Div Add Squeeze Range Mul Reshape Cast If Relu Neg Identity Slice Unsqueeze Concat"
KNOWN_OPS = {("ai.onnx", op) for op in STANDARD.split()} | {("nsa_onnx", op) for op in OPERATORS}


# --------------------------------------------------------------------------------------------------
# Models and what they are fed

SEQ = [40, 100]


def compress_feeds(dtype=np.float16, seq=None):
    generator = np.random.default_rng(1)
    feeds = {"x": generator.standard_normal((100, 4, 16)).astype(dtype), "w": generator.random((32, 4)).astype(dtype)}
    return feeds if seq is None else {**feeds, "seq": np.array(seq, np.int64)}


def infer_feeds(table=None):
    generator = np.random.default_rng(2)
    feeds = {
        "x": generator.standard_normal((8, 64, 4, 16)).astype(np.float16),
        "w": generator.random((32, 4)).astype(np.float16),
        "slots": np.array([4, -1, 0, 2], np.int32),
        "cache": generator.standard_normal((6, 4, 16)).astype(np.float16),
        "seq": np.array([48, 33, 128, 64], np.int64),
    }
    return feeds if table is None else {**feeds, "table": np.array(table, np.int32)}


def around():
    """Standard nodes before and after ours: an initializer of 16-bit numbers as integers, a list as a Constant."""
    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[100, 4, 16]),
        helper.make_node("Reshape", ["flat", "shape"], ["x"], name="flat"),
        models.node(outputs=("z",)),
        helper.make_node("Mul", ["z", "scale"], ["y"], name="scale_0"),
    ]
    scale = helper.make_tensor("scale", TensorProto.FLOAT16, [1], [1.5])
    inputs = [models.value("flat", np.float16, (6400,)), models.value("w", np.float16, (32, 4))]
    outputs = [models.value("y", np.float16, ("R", 4, 16))]
    return models.model(nodes, inputs, outputs, [models.lengths(SEQ), scale], imports=(("nsa_onnx", 1), ("unused", 3)))


def around_feeds():
    feeds = compress_feeds()
    return {"flat": feeds["x"].reshape(-1), "w": feeds["w"]}


def branches(*then):
    """An If: `then` makes "r", or our node does; else it is a constant."""
    result = [models.value("r", np.float16, ("R", 4, 16))]
    default = numpy_helper.from_array(np.ones((1, 4, 16), np.float16), "default")
    other = [helper.make_node("Constant", [], ["r"], name="default", value=default)]
    ours = list(then) or [models.node(outputs=("r",))]
    node = helper.make_node(
        "If",
        ["go"],
        ["y"],
        name="if",
        then_branch=helper.make_graph(ours, "then", [], result, [models.lengths(SEQ)]),
        else_branch=helper.make_graph(other, "else", [], result),
    )
    inputs = [models.value("x", np.float16, (100, 4, 16)), models.value("w", np.float16, (32, 4))]
    inputs.append(models.value("go", TensorProto.BOOL, ()))
    return models.model([node], inputs, [models.value("y", np.float16, ("R", 4, 16))])


def functions():
    """A function that calls a function that has our node, standard nodes and an attribute of its caller."""
    ours = models.node(inputs=("a", "b", "lengths"), outputs=("c",), compress_stride=None)
    ours.attribute.append(
        onnx.AttributeProto(name="compress_stride", ref_attr_name="step", type=onnx.AttributeProto.INT)
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nsa_onnx", 1), helper.make_opsetid("local", 1)]
    inner = helper.make_function("local", "Inner", ["a", "b", "lengths"], ["c"], [ours], opsets, ["step"])
    call = helper.make_node("Inner", ["n", "b", "lengths"], ["c"], domain="local", step=32)
    negated = helper.make_node("Neg", ["a"], ["n"])
    outer = helper.make_function("local", "Outer", ["a", "b", "lengths"], ["c"], [negated, call], opsets)
    nodes = [helper.make_node("Outer", ["x", "w", "seq"], ["y"], domain="local", name="call")]
    inputs = [models.value("x", np.float16, (100, 4, 16)), models.value("w", np.float16, (32, 4))]
    outputs = [models.value("y", np.float16, ("R", 4, 16))]
    imports = (("local", 1),)  # ours is imported by the function alone
    return models.model(nodes, inputs, outputs, [models.lengths(SEQ)], functions=[inner, outer], imports=imports)


STATIC = {"x": (8, 64, 4, 16), "batch": 4, "cache": (6, 4, 16)}
TABLE = [[7, 6], [5, 4], [3, 2], [1, 0]]
CASES = {
    "compress": (models.compress(SEQ), compress_feeds()),
    "bfloat16": (models.compress(SEQ, models.BFLOAT16), compress_feeds(models.BFLOAT16)),
    "lengths fed": (models.compress(), compress_feeds(seq=SEQ)),
    "standard nodes": (around(), around_feeds()),
    "with table": (models.infer(), infer_feeds(TABLE)),
    "constant table": (models.infer(table=None, **STATIC), infer_feeds()),
    "computed table": (models.infer(table=None), infer_feeds()),
    "expanded compress": (expand(models.compress(SEQ)), compress_feeds()),
    "expanded infer": (expand(models.infer(table=None)), infer_feeds()),
    "branch": (branches(), {**compress_feeds(), "go": np.array(True)}),
    "functions": (functions(), compress_feeds()),
}
# What the parser says to the models as they are.
REJECTED = {
    "standard nodes": {"E16005", "E19009", "empty constant", "no raw data"},
    "expanded infer": {"E16005", "empty constant"},
    "branch": {"E16005"},
    "functions": {"E16002"},
}


def run(model, feeds):
    return models.run_ort(model, feeds, session_options())


@pytest.fixture(params=CASES)
def case(request):
    return request.param, *CASES[request.param]


def test_what_the_parser_rejects_is_gone_and_the_bits_are_the_same(case):
    name, model, feeds = case
    assert rejections(model) == REJECTED.get(name, set())
    before = model.SerializeToString()
    prepared = prepare_atc(model)
    assert model.SerializeToString() == before  # a copy was changed
    assert rejections(prepared.model) == set()
    assert not prepared.model.functions
    for got, want in zip(run(prepared.model, feeds), run(model, feeds), strict=True):
        assert got.dtype == want.dtype
        assert np.array_equal(got.view(np.uint16), want.view(np.uint16))


def test_decode_nodes_have_their_table(case):
    _, model, _ = case
    for node in prepare_atc(model).model.graph.node:
        assert node.op_type != "NsaCompressInfer" or (len(node.input) == 6 and all(node.input))


def test_preparing_a_prepared_model_changes_nothing(case):
    _, model, _ = case
    once = prepare_atc(model)
    twice = prepare_atc(once.model)
    assert twice.changes == ()
    assert twice.model.SerializeToString() == once.model.SerializeToString()


def test_changes_are_named():
    assert prepare_atc(models.compress(SEQ)).changes == ()
    changes = "\n".join(prepare_atc(around()).changes)
    for words in ("'value'", "raw bytes", "E19009", "'unused'", "E16005"):
        assert words in changes
    assert "constant block_table [4, 2]" in "\n".join(prepare_atc(CASES["constant table"][0]).changes)
    assert "dropped the portable bodies" in "\n".join(prepare_atc(CASES["expanded infer"][0]).changes)
    assert "inlined 2 local functions" in "\n".join(prepare_atc(functions()).changes)


def test_the_default_table_is_a_constant_where_it_is_known_and_small():
    made = prepare_atc(CASES["constant table"][0]).model
    (constant,) = [node for node in made.graph.node if node.op_type == "Constant"]
    assert numpy_helper.to_array(constant.attribute[0].t).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    large = {**STATIC, "x": (4 * MAX_CONSTANT_PAGES, 64, 4, 16)}
    assert "Range" in {node.op_type for node in prepare_atc(models.infer(table=None, **large)).model.graph.node}


def test_the_computed_table_uses_no_attribute_that_older_plugins_pass_over():
    for node in prepare_atc(models.infer(table=None)).model.graph.node:
        assert node.op_type not in ("Shape", "Reshape") or not node.attribute


def test_a_computed_table_refuses_pages_that_do_not_divide():
    feeds = infer_feeds()
    feeds["x"] = feeds["x"][:7]
    with pytest.raises(Exception, match="check_block_num"):
        run(prepare_atc(models.infer(table=None)).model, feeds)


# --------------------------------------------------------------------------------------------------
# Refusals


def reasons(model, **options):
    with pytest.raises(PrepareError) as caught:
        prepare_atc(model, **options)
    return caught.value.reasons


def loop():
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [models.value("i", TensorProto.INT64, ()), models.value("go", TensorProto.BOOL, ())],
        [models.value("on", TensorProto.BOOL, ())],
    )
    made = models.compress(SEQ)
    made.graph.node.append(helper.make_node("Loop", ["", ""], [], name="again", body=body))
    return made


def without(part):
    made = models.compress(SEQ)
    del getattr(made.graph, part)[:]
    return made


def recursive():
    made = functions()
    made.functions[0].node.append(helper.make_node("Outer", ["a", "b", "lengths"], ["d"], domain="local"))
    return made


def import_of(domain, version, made=None):
    made = made or models.compress(SEQ)
    made.opset_import.add(domain=domain, version=version)
    return made


def foreign():
    made = models.compress(SEQ)
    made.graph.node.append(helper.make_node("NsaSelect", ["x"], ["z"], name="select", domain="nsa_onnx"))
    return made


def sparse():
    made = around()
    values = helper.make_sparse_tensor(
        helper.make_tensor("v", 1, [1], [1.0]), helper.make_tensor("i", 7, [1], [0]), [3]
    )
    made.graph.node.append(helper.make_node("Constant", [], ["s"], name="sparse", sparse_value=values))
    return made


WIDE = {"x": ("P", 64, 51, 16), "w": (32, 51), "cache": ("S", 51, 16)}
LONG = {"w": (80, 4), "compress_block_size": 80}
LENGTHS = [1] * 2048
REFUSED = {
    "window": (models.infer(**LONG), "node 'nsa' (NsaCompressInfer): compress_block_size must be <= 64", "got 80: use"),
    "odd heads": (models.infer(**WIDE), "N must be even above 50", "got 51: pad"),
    "no rows": (models.compress([16, 32], w=(48, 4), compress_block_size=48), "T' must be >= 1", "got 0"),
    "no rows, any cut": (models.compress(x=(31, 4, 16)), "T' must be >= 1", "got 0"),
    "no token": (models.compress(x=(0, 4, 16)), "T' must be >= 1", "got 0"),
    "batch": (models.infer(LENGTHS, batch=2048, table=(2048, 1)), "actual_seq_len must have <= 2047", "got 2048"),
    "no batch": (models.infer([], batch=0, table=(0, 4)), "actual_seq_len must have >= 1", "got 0"),
    "no pages": (models.infer(x=(0, 64, 4, 16)), "input.shape[0] must be >= 1", "got 0"),
    "cache": (models.infer(cache=(2**27, 4, 16)), "cache must have <= 4294967295 elements", "got 8589934592"),
    "input": (models.compress(x=(2**27, 4, 16)), "input must have <= 4294967295 elements", "got 8589934592"),
    "contract": (models.compress([50, 40]), "actual_seq_len[1] must be >= the element before it, 50, got 40", "check"),
    "divides": (models.infer(table=None, **{**STATIC, "x": (7, 64, 4, 16)}), "must be a multiple of B = 4", "got 7"),
    "old opset": (models.infer(table=None, opset=11), "version >= 12", "got 11"),
    "loop": (loop(), "node 'again' (Loop)", "branches of If only"),
    "no input": (without("input"), "0 inputs", "E16001"),
    "no output": (without("output"), "0 outputs", "E16001"),
    "recursion": (recursive(), "functions call one another more than", "inlined"),
    "two versions": (import_of("ai.onnx", 17), "domain 'ai.onnx' is imported with versions 18 and 17", "import one"),
    "foreign": (foreign(), "node 'select' (NsaSelect): domain nsa_onnx has no such operator", "NsaCompress"),
    "sparse": (sparse(), "node 'sparse' (Constant): sparse_value", "make it dense"),
    "no import": (
        models.model([models.node()], *[models.compress(SEQ).graph.input] * 2, imports=()),
        "'nsa_onnx'",
        "not imported",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused_with_value_bound_and_way_out(name):
    model, *words = REFUSED[name]
    (reason,) = [reason for reason in reasons(model) if words[0] in reason]
    assert words[1] in reason
    assert "\n" not in reason


def test_the_vendor_s_bounds_themselves_are_taken():
    prepare_atc(models.infer(w=(64, 4), compress_block_size=64))
    prepare_atc(models.infer(x=("P", 64, 49, 16), w=(32, 49), cache=("S", 49, 16)))
    prepare_atc(models.infer(x=("P", 64, 52, 16), w=(32, 52), cache=("S", 52, 16)))
    prepare_atc(models.infer([1] * 2047, batch=2047, table=(2047, 1)))
    prepare_atc(models.compress([32]))


def test_standard_nodes_in_branches_are_refused_unless_for_the_converter_alone():
    """onnxruntime takes the domain "ai.onnx" everywhere but in branches; the converter needs it there."""
    ours = models.node(outputs=("c",))
    model = branches(ours, helper.make_node("Relu", ["c"], ["r"], name="relu"))
    (reason,) = reasons(model)
    assert "node 'relu' (Relu)" in reason and "E16005" in reason and "onnxruntime" in reason
    made = prepare_atc(model, converter_only=True).model
    assert rejections(made) == set()
    with pytest.raises(Exception, match=r"ai\.onnx"):
        run(made, {**compress_feeds(), "go": np.array(True)})


def test_several_reasons_are_all_told():
    found = reasons(models.infer(**{**WIDE, "w": (80, 51)}, compress_block_size=80))
    assert len(found) == 2


def test_notes_tell_what_may_still_stop_the_converter():
    def notes(model):
        return "\n".join(prepare_atc(model).notes)

    assert notes(models.compress(SEQ)) == ""
    assert "bfloat16" in notes(models.compress(SEQ, models.BFLOAT16))
    assert "not constant" in notes(models.compress())
    assert "checks no length" in notes(models.infer())
    several = models.compress()
    for number in range(1, 4):
        several.graph.node.add().CopyFrom(several.graph.node[0])
        several.graph.node[-1].name, several.graph.node[-1].output[0] = f"nsa{number}", f"out{number}"
    (note,) = prepare_atc(several).notes
    assert note.startswith("node 'nsa' (NsaCompress) and 3 more nodes: actual_seq_len is not constant; ")
    assert "version 21" in notes(of_opset(21))
    assert "start and end of Shape" in notes(CASES["expanded infer"][0])
    assert "plugin for domain 'com.other'" in notes(with_other_domain())


def of_opset(opset):
    made = around()
    next(entry for entry in made.opset_import if not entry.domain).version = opset
    return made


def with_other_domain():
    made = import_of("com.other", 1)
    made.graph.node.append(helper.make_node("Other", ["x"], ["o"], name="other", domain="com.other"))
    return made


# --------------------------------------------------------------------------------------------------
# Files


def command(capsys, *arguments):
    status = main(["prepare-atc", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_command_writes_the_model_and_prints_the_changes(capsys, tmp_path):
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(around(), source)
    status, out, err = command(capsys, source, "-o", target)
    assert (status, err) == (0, "")
    assert "E16005" in out
    assert onnx.load(target) == prepare_atc(around()).model
    said = f"nothing to change\nlimits are for another command: nsa-onnx check --target atc {target}\n"
    said += f"wrote {target} for target atc\n"
    assert command(capsys, target, "-o", target) == (0, said, "")


def test_a_refusal_is_a_line_per_reason_and_nothing_is_written(capsys, tmp_path):
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(models.infer(**{**WIDE, "w": (80, 51)}, compress_block_size=80), source)
    status, out, err = command(capsys, source, "-o", target)
    assert (status, out, len(err.splitlines())) == (1, "", 2)
    assert all(line.startswith(f"nsa-onnx: {source}: node 'nsa'") for line in err.splitlines())
    assert not target.exists()


def test_what_is_no_model_exits_2(capsys, tmp_path):
    source = tmp_path / "a.onnx"
    text = models.compress(SEQ)
    text.graph.node[0].name = "nsa_name"
    for data in (b"no model", b"", text.SerializeToString().replace(b"nsa_name", b"\xff\xfe_name\xff")[:]):
        source.write_bytes(data)
        status, out, err = command(capsys, source, "-o", tmp_path / "b.onnx")
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert str(source) in err
    assert not (tmp_path / "b.onnx").exists()


def test_weights_beside_the_model_stay_there(capsys, tmp_path):
    made = around()
    weights = numpy_helper.from_array(compress_feeds()["w"], "w")
    made.graph.initializer.append(weights)
    del made.graph.input[1]
    onnx.save(made, tmp_path / "a.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    status, _, err = command(capsys, tmp_path / "a.onnx", "-o", tmp_path / "b.onnx")
    assert (status, err) == (0, "")
    before, after = (
        nsa_onnx.create_session(tmp_path / name, device="cpu").run(None, {"flat": around_feeds()["flat"]})[0]
        for name in ("a.onnx", "b.onnx")
    )
    assert np.array_equal(before.view(np.uint16), after.view(np.uint16))
    (tmp_path / "other").mkdir()
    status, _, err = command(capsys, tmp_path / "a.onnx", "-o", tmp_path / "other" / "b.onnx")
    assert (status, len(err.splitlines())) == (2, 1)


def test_lengths_in_an_external_file_count(tmp_path, capsys):
    made = models.compress([16, 31])
    onnx.save(made, tmp_path / "a.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    status, _, err = command(capsys, tmp_path / "a.onnx", "-o", tmp_path / "b.onnx")
    assert status == 1
    assert "T' must be >= 1" in err


def test_mutated_files_never_end_in_a_traceback():
    generator = np.random.default_rng(0)
    sources = [
        CASES[name][0].SerializeToString() for name in ("standard nodes", "functions", "branch", "expanded infer")
    ]
    refused = 0
    for number in range(300):
        data = bytearray(sources[number % len(sources)])
        for _ in range(generator.integers(1, 5)):
            data[generator.integers(len(data))] = generator.integers(256)
        model = onnx.ModelProto()
        try:
            model.ParseFromString(bytes(data))
        except Exception:
            continue
        try:
            prepare_atc(model)
        except (PrepareError, UnreadableModelError):
            refused += 1
    assert 0 < refused < 300
