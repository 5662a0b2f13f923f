"""Models with portable bodies that tools have rewritten: renamed, reordered, inlined or dropped bodies are reported."""

from __future__ import annotations

import json

import nsa_models as models
import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import oracle
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from nsa_onnx.checker import check
from nsa_onnx.cli import main
from nsa_onnx.graph.form import form_of
from nsa_onnx.graph.walk import nodes_below
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.copies import copies, is_body, is_operator
from nsa_onnx.operators.expand import expand
from nsa_onnx.operators.nsa_compress_infer.rule_examples import decode, decode_node

BOTH = {"NsaCompress": models.compress, "NsaCompressInfer": models.infer}
BOTH_MODELS = pytest.mark.parametrize("make", BOTH.values(), ids=BOTH.keys())


def portable(make):
    return expand(make())


def rules(model, **more):
    return sorted(finding.rule for finding in check(model, **more).findings)


def run_cli(capsys, *arguments):
    status = main(["check", *map(str, arguments)])
    return status, capsys.readouterr().out


# --------------------------------------------------------------------------------------------------
# Prefixes


def prefixed(model):
    return onnx.compose.add_prefix(model, "p_")


def merged(model):
    """Two models of one kind side by side, with prefixes: only names are at stake."""
    return onnx.compose.merge_models(model, model, io_map=[], prefix1="a_", prefix2="b_")


@BOTH_MODELS
@pytest.mark.parametrize("tool", [prefixed, merged])
def test_a_renamed_body_is_a_warning_and_expand_repairs_it(make, tool):
    model = portable(make)
    made = tool(model)
    assert all(node.op_type not in BOTH for node in made.graph.node)
    assert set(rules(made)) == {"NSA043"}
    assert check(made).findings[0].severity.value == "warning"
    assert "expand" in check(made).findings[0].hint
    repaired = expand(made)
    assert rules(repaired, target="portable") == []
    assert [node.op_type for node in repaired.graph.node] == [model.graph.node[-1].op_type] * len(made.graph.node)
    assert [function.name for function in repaired.functions] == [model.functions[0].name]
    assert expand(repaired) == repaired


def test_a_repaired_model_gives_the_contract_s_bits_and_runs_our_kernel():
    made = prefixed(portable(models.compress))
    feeds = {
        "p_x": np.random.default_rng(0).standard_normal((100, 4, 16)).astype(np.float16),
        "p_w": np.random.default_rng(1).random((32, 4)).astype(np.float16),
        "p_seq": np.array([40, 100]),
    }
    want = oracle.compress_exact(feeds["p_x"], feeds["p_w"], 32, 16, [40, 100])
    for model in (made, expand(made)):
        assert oracle.same_bits(models.run_ort(model, feeds)[0], want)
        assert oracle.same_bits(models.run_reference(model, feeds)[0], want)


def test_a_copy_in_a_function_or_in_another_domain_is_repaired_too():
    made = portable(models.compress)
    function, node = made.functions[0], made.graph.node[0]
    function.domain, function.name = node.domain, node.op_type = "other", "Copy"
    next(one for one in made.opset_import if one.domain == "nsa_onnx").domain = "other"
    outer = helper.make_function(
        "f", "F", ["x", "w", "seq"], ["y"], [node], [helper.make_opsetid("other", 1), helper.make_opsetid("", 18)]
    )
    made.functions.append(outer)
    made.opset_import.add(domain="f", version=1)
    del made.graph.node[:]
    made.graph.node.append(helper.make_node("F", ["x", "w", "seq"], ["y"], domain="f"))
    assert copies(made) == {("other", "Copy"): "NsaCompress"}
    (found,) = check(made).findings
    assert (found.rule, found.place) == ("NSA043", "function f.F")
    repaired = expand(made)
    assert rules(repaired, target="portable") == []
    assert len(check(repaired).nodes) == 1


def test_a_function_of_our_domain_that_is_no_copy_is_a_warning_and_stays():
    made = prefixed(portable(models.compress))
    made.functions[0].node[0].attribute[0].i = 5
    (found,) = check(made).findings
    assert found.rule == "NSA043"
    assert "neither" in found.message
    with pytest.raises(ValueError, match="no such operator"):
        expand(made)


def test_an_operator_that_nothing_defines_stays_an_error():
    made = models.compress()
    made.graph.node[0].op_type = "p_NsaCompress"
    assert rules(made) == ["NSA003"]


# --------------------------------------------------------------------------------------------------
# The same body, written in another way


@pytest.mark.parametrize(("opset", "ours"), [(15, False), (16, True), (18, True), (None, False)])
def test_a_body_is_one_for_each_opset_that_ours_have(opset, ours):
    body = OPERATORS["NsaCompress"].body(18 if opset is None else max(16, opset))
    del body.opset_import[:]
    if opset is not None:
        body.opset_import.add(version=opset)
    assert is_body("NsaCompress", body) is ours
    assert not is_body("NsaCompressInfer", body)


@pytest.mark.parametrize("more", [0, 1])
def test_a_body_may_have_grown_to_twice_its_size(more):
    body = OPERATORS["NsaCompress"].body(18)
    room = 2 * len(form_of(body, max_nodes=1000).nodes) - len(list(nodes_below(body.node)))
    body.node.extend(helper.make_node("Identity", ["input"], [f"same_{number}"]) for number in range(room + more))
    assert is_body("NsaCompress", body) is (not more)


@pytest.mark.parametrize("domain", ["com.other", "nsa_onnx", "other"])
@pytest.mark.parametrize("name", ["NsaCompress", "Other"])
def test_an_operator_has_its_name_and_our_domain(domain, name):
    function = helper.make_function(domain, name, [], [], [], [])
    assert is_operator(function) is ((domain, name) == ("nsa_onnx", "NsaCompress"))


def rewritten(model, change):
    """The model with the body's nodes as a tool writes them."""
    function = model.functions[0]
    nodes = change(list(function.node))
    del function.node[:]
    function.node.extend(nodes)
    return model


def sorted_again(nodes):
    """Another topological order: of those that can be next, always the last one."""
    ready, done, left = [], {""} | set(portable_inputs), list(nodes)
    while left:
        at = max(i for i, node in enumerate(left) if captured(node) <= done | {"compress"})
        ready.append(left.pop(at))
        done |= set(ready[-1].output)
    return ready


portable_inputs = {"input", "weight", "actual_seq_len", "slot_mapping", "cache", "block_table"}


def captured(node):
    """What a node reads, its loop's body from outside included."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            inner = {value.name for value in attribute.g.input}
            for one in attribute.g.node:
                names |= set(one.input) - inner
                inner |= set(one.output)
    return names


def respelled(nodes):
    """Each Constant's `value_int` and `value_ints` as `value`, as onnx-graphsurgeon writes them."""
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Constant" and not attribute.ref_attr_name and attribute.name != "value":
                value = helper.get_attribute_value(attribute)
                node.attribute[0].CopyFrom(
                    helper.make_attribute("value", numpy_helper.from_array(np.array(value, np.int64)))
                )
    return nodes


def merged_constants(nodes):
    """Equal Constants once, Identity gone, as onnxslim leaves them."""
    first, other = {}, {}
    kept = []
    for node in nodes:
        node.input[:] = [other.get(name, name) for name in node.input]
        for attribute in node.attribute:
            for inner in attribute.g.node if attribute.HasField("g") else ():
                inner.input[:] = [other.get(name, name) for name in inner.input]
        key = str(node.attribute)
        if node.op_type == "Constant" and first.setdefault(key, node.output[0]) != node.output[0]:
            other[node.output[0]] = first[key]
        elif node.op_type == "Identity":
            other[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    return kept


def through_identities(nodes):
    """An Identity in front of every node's first input, as some tools leave them."""
    for index, node in enumerate(list(nodes)):
        if node.input and node.input[0]:
            name = f"same_{index}"
            nodes.insert(nodes.index(node), helper.make_node("Identity", [node.input[0]], [name]))
            node.input[0] = name
    return nodes


def renamed(nodes):
    names = {name: f"value_{i}" for i, name in enumerate(name for node in nodes for name in node.output)}
    kept = {name: name for name in ("output", "cache_out")}
    for node in nodes:
        node.name = "n"
        for names_of in (node.input, node.output):
            names_of[:] = [kept.get(name, names.get(name, name)) for name in names_of]
        for attribute in node.attribute:
            for inner in attribute.g.node if attribute.HasField("g") else ():
                inner.input[:] = [names.get(name, name) for name in inner.input]
    return nodes


CHANGES = [sorted_again, respelled, merged_constants, renamed, through_identities]


@BOTH_MODELS
@pytest.mark.parametrize("change", CHANGES)
def test_order_names_and_spelling_do_not_make_another_body(make, change):
    model = rewritten(portable(make), change)
    # Decode's body has no two equal constants and no Identity.
    assert model != portable(make) or (make, change) == (models.infer, merged_constants)
    onnx.checker.check_model(model)
    assert rules(model, target="portable") == []
    assert is_body(model.functions[0].name, model.functions[0])


@BOTH_MODELS
def test_all_at_once_and_under_another_name(make):
    model = portable(make)
    for change in CHANGES:
        rewritten(model, change)
    assert rules(model) == []
    assert rules(prefixed(model)) == ["NSA043"]


@BOTH_MODELS
def test_every_single_constant_and_edge_of_a_body_matters(make):
    """One number or one input of one node is another: never taken for ours."""
    clean = portable(make)
    seen = 0
    for index, node in enumerate(clean.functions[0].node):
        model = ModelProto()
        model.CopyFrom(clean)
        changed = model.functions[0].node[index]
        constants = [one for one in changed.attribute if one.name in ("value_int", "value_ints")]
        if constants and not constants[0].ref_attr_name:
            given = helper.get_attribute_value(constants[0])
            other = [one + 1 for one in given] if isinstance(given, list) else given + 1
            constants[0].CopyFrom(helper.make_attribute(constants[0].name, other))
        elif len(changed.input) > 1 and changed.input[0] != changed.input[1]:
            changed.input[0], changed.input[1] = changed.input[1], changed.input[0]
        else:
            continue
        seen += 1
        assert "NSA026" in rules(model), node
    assert seen > 30


# --------------------------------------------------------------------------------------------------
# Bodies that are gone


@BOTH_MODELS
def test_dropped_bodies_are_an_error_for_target_portable(make):
    made = onnx.version_converter.convert_version(portable(make), 21)
    assert not made.functions
    assert rules(made) == []
    assert set(rules(made, target="portable")) == {"NSA044"}
    assert rules(expand(made), target="portable") == []


def test_what_else_keeps_a_file_from_running_without_our_library():
    model = onnx.parser.parse_model(decode(table=None))
    body = portable(models.infer).functions[0]
    model.functions.append(body)
    (found,) = check(model, target="portable").findings
    assert "block_table must be connected" in found.message
    assert rules(expand(model), target="portable") == []
    old = portable(models.compress)
    old.ir_version = 7
    assert "ir_version" in check(old, target="portable").findings[0].message
    other = portable(models.compress)
    other.functions[0].node[0].attribute[0].i = 9
    assert rules(other, target="portable") == ["NSA026", "NSA044"]
    two = expand(onnx.parser.parse_model(decode(after=[decode_node(cache_of_second(), "c2", name="b")])))
    del two.functions[:]
    (found,) = [one for one in check(two, target="portable").findings if one.rule == "NSA044"]
    assert "(2 nodes)" in found.message


def cache_of_second():
    return "x, w, slots, cache_out, seq, table"


@BOTH_MODELS
@pytest.mark.parametrize("tool", ["inliner", "onnxscript"])
def test_inlined_bodies_are_found_and_fail_the_count(make, tool, tmp_path, capsys):
    model = portable(make)
    if tool == "inliner":
        made = onnx.inliner.inline_local_functions(model)
    else:
        optimizer = pytest.importorskip("onnxscript.optimizer")
        made = optimizer.optimize(model)
    report = check(made, min_nodes=1)
    assert not report.nodes
    assert {"NSA028", "NSA101"} <= {finding.rule for finding in report.findings}
    onnx.save(made, tmp_path / "m.onnx")
    status, out = run_cli(capsys, tmp_path / "m.onnx", "--min-nodes", 1, "--fail-on", "error")
    assert status == 1
    assert "error NSA101 the model has 0 NSA nodes, at least 1 are expected" in out
    assert "(0 NSA nodes checked)" in out


def test_nodes_in_functions_count_where_the_graph_calls_them():
    model = models.compress([40, 100])
    model.functions.append(helper.make_function("mine", "Inner", ["x"], ["y"], [], model.opset_import))
    inner, outer = model.functions[0], model.functions.add()
    inner.node.append(model.graph.node[0])
    outer.CopyFrom(inner)
    outer.name = "Outer"
    del outer.node[:]
    outer.node.append(helper.make_node("Inner", ["x"], ["y"], domain="mine"))
    (own,) = model.graph.node
    own.CopyFrom(helper.make_node("Outer", list(own.input)[:1], list(own.output), domain="mine"))
    assert "NSA101" not in rules(model, min_nodes=1)
    own.CopyFrom(helper.make_node("Relu", list(own.input)[:1], list(own.output)))
    (found,) = [one for one in check(model, min_nodes=1).findings if one.rule == "NSA101"]
    assert "has 0 NSA nodes" in found.message


@pytest.mark.parametrize("domain", ["nsa_onnx.v1", "NSA_ONNX", "", "ai.onnx", "custom"])
@BOTH_MODELS
def test_a_node_of_ours_under_another_domain_is_told(make, domain):
    model = make()
    (node,) = model.graph.node
    node.domain = domain
    model.opset_import.add(domain=domain, version=20 if domain in ("", "ai.onnx") else 1)
    (found,) = [one for one in check(model).findings if one.rule == "NSA045"]
    assert (repr(domain) if domain else "it has no domain") in found.message and found.severity.value == "warning"
    model.graph.node.append(node)
    (found,) = [one for one in check(model).findings if one.rule == "NSA045"]
    assert found.message.endswith("(1 more like it)")
    del model.graph.node[1]
    node.op_type = "Mine"
    assert "NSA045" not in rules(model)


@pytest.mark.parametrize("value", ["-1", "x", "1.5", "9999999999"])
def test_min_nodes_is_a_number(value, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["check", f"--min-nodes={value}", "m.onnx"])
    assert caught.value.code == 2
    assert "--min-nodes: must be a number of nodes" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# Summaries, quiet, .ort


def test_every_summary_says_how_many_nodes_were_checked(tmp_path, capsys):
    for name in ("a", "b"):
        onnx.save(models.compress([40, 100]), tmp_path / f"{name}.onnx")
    for name in ("text", "github"):
        _, out = run_cli(capsys, tmp_path, "--format", name)
        assert out.splitlines()[-1] == "2 models: 2 ok, 0 errors, 0 warnings (2 NSA nodes checked)"
    _, out = run_cli(capsys, tmp_path, "--format", "json")
    assert json.loads(out)["summary"]["nodes"] == 2
    assert [one["summary"]["nodes"] for one in json.loads(out)["reports"]] == [1, 1]
    _, out = run_cli(capsys, tmp_path, "--format", "sarif")
    assert json.loads(out)["runs"][0]["properties"] == {"models": 2, "nsaNodes": 2}


def test_quiet_shows_findings_and_the_last_line(tmp_path, capsys):
    for number in range(20):
        onnx.save(models.compress([40, 100]), tmp_path / f"good{number}.onnx")
    onnx.save(models.compress([50, 40]), tmp_path / "bad.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no")
    status, loud = run_cli(capsys, tmp_path)
    quiet_status, quiet = run_cli(capsys, tmp_path, "--quiet")
    assert status == quiet_status == 2
    assert [line for line in loud.splitlines() if "good" not in line] == quiet.splitlines()
    assert quiet.splitlines()[-1].startswith("22 models: 20 ok, ")
    (tmp_path / "broken.onnx").unlink()
    assert run_cli(capsys, tmp_path, "--quiet")[0] == 1
    (tmp_path / "bad.onnx").unlink()
    assert run_cli(capsys, tmp_path, "--quiet") == (
        0,
        "20 models: 20 ok, 0 errors, 0 warnings (20 NSA nodes checked)\n",
    )


def test_a_file_in_onnxruntime_s_own_format_is_called_that(tmp_path, capsys):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    identity = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [models.value("x", TensorProto.FLOAT, [2])],
            [models.value("y", TensorProto.FLOAT, [2])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnxruntime.InferenceSession(identity.SerializeToString(), options)
    (tmp_path / "named.onnx").write_bytes((tmp_path / "m.ort").read_bytes())
    for name in ("m.ort", "named.onnx"):
        status = main(["check", str(tmp_path / name)])
        error = capsys.readouterr().err
        assert status == 2
        assert "(.ort)" in error
        assert "check, or convert, the ONNX file" in error
