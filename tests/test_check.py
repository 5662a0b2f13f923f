"""The checker: each rule finds its mistake, accepts what is just inside the bound, and no file breaks the checker."""

from __future__ import annotations

import json
import os

import nsa_models as models
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

import nsa_onnx
from nsa_onnx.analysis import MAX_ALIKE
from nsa_onnx.checker import TARGETS, Report, Severity, UnreadableModelError, check
from nsa_onnx.checker.rules import RULE_OF_ROW, RULES
from nsa_onnx.checker.rules.registry import general
from nsa_onnx.graph.bounds import propagates_safely
from nsa_onnx.graph.outline import Outline
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.example import example_model
from nsa_onnx.operators.expand import expand
from nsa_onnx.operators.facts import NODE_ROWS
from nsa_onnx.operators.schema import OUTPUT_RANKS


def edited(model, *changes):
    for change in changes:
        change(model)
    return model


def set_type(index, element_type):
    return lambda m: setattr(m.graph.input[index].type.tensor_type, "elem_type", element_type)


def rules_of(report):
    return {finding.rule for finding in report.findings}


WIDE = {"x": ("T", 128, 256), "w": (128, 128), "y": ("R", 128, 256)}
DECODE_WIDE = {"x": ("P", 128, 63, 256), "w": (112, 63), "cache": ("S", 63, 256)}
GOOD = {
    "compress": lambda: models.compress(),
    "bfloat16": lambda: models.compress(dtype=models.BFLOAT16),
    "constant lengths": lambda: models.compress([40, 40, 100], x=(100, 4, 16), y=(3, 4, 16)),
    "largest": lambda: models.compress(**WIDE, compress_block_size=128, compress_stride=128),
    "smallest": lambda: models.compress(
        x=("T", 1, 16), w=(16, 1), y=("R", 1, 16), compress_block_size=16, compress_stride=16
    ),
    "infer": lambda: models.infer(),
    "no table": lambda: models.infer(table=None),
    "table left empty": lambda: edited(models.infer(table=None), lambda m: m.graph.node[0].input.append("")),
    "longest lengths": lambda: models.infer([0, 256], table=("B", 4), x=(4, 64, 4, 16), batch=2),
    "largest decode": lambda: models.infer(**DECODE_WIDE, compress_block_size=112, page_block_size=128),
    "expanded": lambda: expand(models.infer(table=None)),
    "no shapes": lambda: edited(
        models.compress(), *[lambda m, i=i: m.graph.input[i].type.tensor_type.ClearField("shape") for i in range(3)]
    ),
    "none of our nodes": lambda: models.model(
        [helper.make_node("Neg", ["x"], ["y"])],
        [models.value("x", np.float16, [2])],
        [models.value("y", np.float16, [2])],
        imports=(),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_right_model_has_no_finding(name):
    report = check(GOOD[name]())
    assert report.ok, report.to_text()
    assert report.findings == ()


def constant(name, element_type, shape, values):
    return lambda m: m.graph.initializer.append(helper.make_tensor(name, element_type, shape, values))


def constant_indices(slots, table):
    made = models.infer([32, 33, 48], x=(12, 64, 4, 16), cache=(9, 4, 16), batch=3, table=(3, 4))
    del made.graph.input[4], made.graph.input[2]
    return edited(
        made,
        constant("slots", TensorProto.INT32, [3], slots),
        constant("table", TensorProto.INT32, [3, 4], [*table, *[-1] * (12 - len(table))]),
    )


def external(location, *, name="seq", **more):
    def change(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField("int64_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=str(value))

    return change


def opset_of_body(model):
    model.functions[0].opset_import[0].version += 1


BAD = {
    "no graph": ("NSA001", ModelProto, "no graph"),
    "empty graph": ("NSA001", lambda: edited(models.compress(), lambda m: m.graph.node.pop()), "no nodes"),
    "domain version": (
        "NSA002",
        lambda: edited(models.compress(), lambda m: setattr(m.opset_import[1], "version", 2)),
        "version 1, got 2",
    ),
    "no import": ("NSA002", lambda: edited(models.compress(), lambda m: m.opset_import.pop()), "not imported"),
    "operator": (
        "NSA003",
        lambda: edited(models.compress(), lambda m: setattr(m.graph.node[0], "op_type", "Nsa")),
        "no operator 'Nsa', only NsaCompress, NsaCompressInfer",
    ),
    "input left out": (
        "NSA004",
        lambda: edited(models.compress(), lambda m: m.graph.node[0].input.pop()),
        "actual_seq_len is a required input",
    ),
    "input empty": (
        "NSA004",
        lambda: edited(models.infer(), lambda m: m.graph.node[0].input.__setitem__(3, "")),
        "cache is a required input",
    ),
    "surplus input": (
        "NSA004",
        lambda: edited(models.compress(), lambda m: m.graph.node[0].input.append("x")),
        "at most 3 inputs, got 4",
    ),
    "no output": (
        "NSA004",
        lambda: edited(models.compress(), lambda m: m.graph.node[0].output.pop()),
        "1 output, got 0",
    ),
    "two outputs": (
        "NSA004",
        lambda: edited(models.compress(), lambda m: m.graph.node[0].output.append("z")),
        "1 output, got 2",
    ),
    "unknown value": (
        "NSA004",
        lambda: edited(models.compress(), lambda m: m.graph.node[0].input.__setitem__(1, "v")),
        "weight: no value 'v'",
    ),
    "attribute left out": ("NSA005", lambda: models.compress(compress_stride=None), "compress_stride is a required"),
    "attribute kind": (
        "NSA005",
        lambda: models.compress(compress_stride=16.0),
        "compress_stride must be an int, got float",
    ),
    "page kind": ("NSA005", lambda: models.infer(page_block_size="64"), "page_block_size must be an int, got str"),
    "attribute unknown": (
        "NSA005",
        lambda: models.compress(page_block_size=64),
        "'page_block_size' is not an attribute",
    ),
    "attribute of no function": (
        "NSA005",
        lambda: edited(models.compress(), lambda m: setattr(m.graph.node[0].attribute[0], "ref_attr_name", "block")),
        "compress_block_size refers to 'block' of a function, and is in none",
    ),
    "attribute twice": (
        "NSA005",
        lambda: edited(
            models.compress(), lambda m: m.graph.node[0].attribute.append(helper.make_attribute("compress_stride", 16))
        ),
        "given 2 times",
    ),
    "float32": (
        "NSA006",
        lambda: edited(models.compress(), set_type(0, 1), set_type(1, 1)),
        "float16 or bfloat16, got float32",
    ),
    "no tensor": (
        "NSA006",
        lambda: edited(models.compress(), lambda m: m.graph.input[2].type.sequence_type.elem_type.SetInParent()),
        "actual_seq_len must be int64, got sequence",
    ),
    "mixed": ("NSA006", lambda: edited(models.compress(), set_type(1, 16)), "dtype of input, float16, got bfloat16"),
    "lengths int32": ("NSA006", lambda: edited(models.compress(), set_type(2, 6)), "must be int64, got int32"),
    "slots int64": ("NSA006", lambda: edited(models.infer(), set_type(2, 7)), "slot_mapping must be int32, got int64"),
    "table int64": ("NSA006", lambda: edited(models.infer(), set_type(5, 7)), "block_table must be int32, got int64"),
    "cache type": ("NSA006", lambda: edited(models.infer(), set_type(3, 16)), "cache must have the dtype of input"),
    "rank": ("NSA007", lambda: models.compress(x=("T", 64)), "rank 3 [T, N, D], got rank 2"),
    "rank of lengths": (
        "NSA007",
        lambda: edited(models.compress(), lambda m: m.graph.input[2].type.tensor_type.shape.dim.add()),
        "rank 1 [B], got rank 2",
    ),
    "rank of table": ("NSA007", lambda: models.infer(table=("B",)), "rank 2 [B, max_pages], got rank 1"),
    "weight rows": ("NSA008", lambda: models.compress(w=(31, 4)), "= 32, got 31"),
    "weight heads": ("NSA008", lambda: models.compress(w=(32, 5)), "N = 4, got 5"),
    "D": ("NSA009", lambda: models.compress(x=("T", 4, 17), y=("R", 4, 17)), "multiple of 16, got 17"),
    "large D": ("NSA009", lambda: models.compress(x=("T", 4, 272), y=("R", 4, 272)), "<= 256, got 272"),
    "heads": ("NSA010", lambda: models.compress(x=("T", 129, 16), w=(32, 129), y=("R", 129, 16)), "<= 128, got 129"),
    "decode heads": (
        "NSA010",
        lambda: models.infer(x=("P", 64, 64, 16), w=(32, 64), cache=("S", 64, 16)),
        "<= 63, got 64",
    ),
    "no heads": ("NSA010", lambda: models.compress(x=("T", 0, 16), w=(32, 0), y=("R", 0, 16)), ">= 1, got 0"),
    "block": ("NSA011", lambda: models.compress(w=(33, 4), compress_block_size=33), "multiple of 16, got 33"),
    "large block": ("NSA011", lambda: models.compress(w=(144, 4), compress_block_size=144), "[16, 128], got 144"),
    "decode block": ("NSA011", lambda: models.infer(w=(128, 4), compress_block_size=128), "[16, 127], got 128"),
    "stride": ("NSA011", lambda: models.compress(compress_stride=48), "got 48"),
    "absurd stride": (
        "NSA011",
        lambda: models.compress([40, 100], compress_stride=-(2**63)),
        "got -9223372036854775808",
    ),
    "page": ("NSA012", lambda: models.infer(x=("P", 32, 4, 16), page_block_size=32), "64 or 128, got 32"),
    "page of input": ("NSA012", lambda: models.infer(page_block_size=128), "= 128, got 64"),
    "pages divide": ("NSA012", lambda: models.infer(table=None, batch=3, x=(4, 64, 4, 16)), "multiple of B = 3"),
    "cache": ("NSA013", lambda: models.infer(cache=("S", 5, 16)), "N = 4, got 5"),
    "batch": ("NSA014", lambda: models.infer([32, 0], batch=3), "B = 3 elements, got 2"),
    "table batch": ("NSA014", lambda: models.infer(batch=3, table=(2, 4)), "B = 3, got 2"),
    "no lengths": ("NSA015", lambda: models.compress([]), "at least 1 element"),
    "decreasing": (
        "NSA015",
        lambda: models.compress([50, 49]),
        "actual_seq_len[1] must be >= the element before it, 50, got 49",
    ),
    "leading 0": ("NSA015", lambda: models.compress([0, 49]), "actual_seq_len[0] must be >= 1, got 0"),
    "not T": ("NSA015", lambda: models.compress([40, 99], x=(100, 4, 16)), "equal T = 100, got 99"),
    "too long": ("NSA015", lambda: models.infer([257], table=("B", 4)), "[0, 256] (pages x page_block_size), got 257"),
    "negative length": ("NSA015", lambda: models.infer([-1]), "actual_seq_len[0] must be >= 0, got -1"),
    "slot": (
        "NSA016",
        lambda: constant_indices([1, -1, 9], [0, -1, -1, -1, -1, -1, -1, -1, 3]),
        "slot_mapping[2] must be in [0, 9), got 9",
    ),
    "slot twice": ("NSA016", lambda: constant_indices([1, -1, 1], [0, -1, -1, -1, -1, -1, -1, -1, 3]), "must differ"),
    "table page": (
        "NSA016",
        lambda: constant_indices([1, -1, 2], [0, -1, -1, -1, -1, -1, -1, -1, 12]),
        "block_table[2, 0] must be in [0, 12), got 12",
    ),
    "data": (
        "NSA017",
        lambda: edited(models.compress([40, 100]), lambda m: m.graph.initializer[0].dims.__setitem__(0, 3)),
        "does not fit its shape [3]",
    ),
    "data without a type": (
        "NSA017",
        lambda: edited(models.compress([40, 100]), lambda m: m.graph.initializer[0].ClearField("data_type")),
        "'seq' has no element type",
    ),
    "declared type": (
        "NSA018",
        lambda: edited(
            models.compress([40, 100]), lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 1)
        ),
        "'y' is declared as float32, inferred is float16",
    ),
    "declared T'": (
        "NSA018",
        lambda: models.compress([40, 100], y=(4, 4, 16)),
        "'y' is declared with dim 0 = 4, inferred is 3",
    ),
    "declared rank": (
        "NSA018",
        lambda: models.compress([40, 100], y=(3, 64)),
        "declared with rank 2, inferred with rank 3",
    ),
    "declared cache": (
        "NSA018",
        lambda: edited(
            models.infer(cache=(9, 4, 16)),
            lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[0], "dim_value", 8),
        ),
        "dim 0 = 8, inferred is 9",
    ),
    "negative dim": ("NSA019", lambda: models.compress(x=(-1, 4, 16)), "'x' is declared with dim 0 = -1"),
    "body's opset": (
        "NSA020",
        lambda: edited(expand(models.compress()), opset_of_body),
        "imports opset 19, the model imports 18",
    ),
    "inference": (
        "NSA021",
        lambda: edited(
            models.compress(), lambda m: m.graph.node.insert(0, helper.make_node("Foo", ["x"], ["z"], domain="other"))
        ),
        "could not be inferred",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_each_rule_finds_what_it_is_for(name):
    rule, make, words = BAD[name]
    report = check(make())
    assert not report.ok
    assert any(f.rule == rule and words in f.message for f in report.findings), report.to_text()
    assert all(finding.severity is RULES[finding.rule].severity for finding in report.findings)
    # One mistake, one rule: what follows from it is not reported again under other names.
    assert len(rules_of(report)) <= 1 + (name in {"input left out", "input empty", "no output", "two outputs"}), (
        report.to_text()
    )


# What an example may show besides its own mistake: a body short enough to read is not ours; what is wrong on one
# target only may be odd on all; no graph of ours has a domain in all of its nodes before it is prepared.
ALSO = {"NSA020": {"NSA026"}, "NSA036": {"NSA022", "NSA035"}, "NSA039": {"NSA035"}, "NSA037": {"NSA035"}}


# The others look at models; this one is about what running them shows (tests/test_check_run.py).
STATIC = [rule_id for rule_id in RULES if rule_id < "NSA100"]


@pytest.mark.parametrize(("rule_id", "target"), [(key, target) for key in STATIC for target in RULES[key].targets])
def test_every_rule_has_a_model_that_triggers_it_and_one_inside_the_bound_that_does_not(rule_id, target):
    triggering = check(onnx.parser.parse_model(RULES[rule_id].example), target=target)
    accepted = check(onnx.parser.parse_model(RULES[rule_id].accepted), target=target)
    assert rule_id in rules_of(triggering)
    assert rule_id not in rules_of(accepted)
    if target == RULES[rule_id].targets[0]:
        also = ALSO.get(rule_id, set()) | ({"NSA035"} if target == "cann-aclnn" else set())
        also |= {"NSA037"} if target == "atc" else set()
        assert rules_of(triggering) <= also | {rule_id}, triggering.to_text()
        assert rules_of(accepted) <= also, accepted.to_text()


@pytest.mark.parametrize("rule_id", [key for key in RULES if set(RULES[key].targets) != set(TARGETS)])
def test_a_rule_of_some_targets_is_silent_on_the_others(rule_id):
    made = onnx.parser.parse_model(RULES[rule_id].example)
    for target in set(TARGETS) - set(RULES[rule_id].targets):
        assert rule_id not in rules_of(check(made, target=target))


def test_every_rule_has_an_id_a_documentation_and_two_models_that_differ():
    assert list(RULES) == [*(f"NSA{number:03}" for number in range(1, len(STATIC) + 1)), "NSA100", "NSA101", "NSA102"]
    for entry in RULES.values():
        assert len(entry.documentation.split()) >= 8
        assert entry.title
        assert entry.example != entry.accepted or entry.id >= "NSA100"
        assert set(entry.targets) <= set(TARGETS)


def test_the_old_rules_have_further_cases():
    assert {rule_id for rule_id, _, _ in BAD.values()} == {f"NSA{number:03}" for number in range(1, 22)}


def test_an_id_is_given_once():
    with pytest.raises(ValueError, match="NSA001 is taken"):
        general("NSA001", "another", example="", accepted="")(lambda model: iter(()))


def rows_of_targets():
    limits = [limit for target in TARGETS.values() for found in (target.limits or {}).values() for limit in found]
    return {row for limit in limits for row in limit.rows}


def test_every_row_of_the_error_table_belongs_to_a_rule():
    rows = {row for operator in OPERATORS.values() for row in operator.contract.rows}
    assert set(RULE_OF_ROW) == {*rows, *NODE_ROWS, *rows_of_targets()}
    assert set(RULE_OF_ROW.values()) <= set(RULES)


def test_findings_say_where():
    branch = helper.make_graph(
        [models.node(outputs=["z"], compress_stride=8)], "then", [], [models.value("z", np.float16, None)]
    )
    source = models.compress()
    made = models.model(
        [helper.make_node("If", ["go"], ["y"], name="choose", then_branch=branch, else_branch=branch)],
        [*source.graph.input, helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        source.graph.output,
    )
    report = check(made)
    assert {f.place for f in report.findings} == {"graph > then of 'choose'"}
    assert {(f.node, f.op_type, f.argument) for f in report.findings} == {("nsa", "NsaCompress", "compress_stride")}
    assert "error NSA011 NsaCompress 'nsa', in graph > then of 'choose':" in report.to_text()


def test_a_wrong_t_in_a_branch_is_found():
    branch = helper.make_graph([models.node(outputs=["z"])], "then", [], [models.value("z", np.float16, (4, 4, 16))])
    source = models.compress([40, 100])
    made = models.model(
        [helper.make_node("If", ["go"], ["y"], then_branch=branch, else_branch=branch)],
        [*source.graph.input, helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        source.graph.output,
        source.graph.initializer,
    )
    assert "'z' is declared with dim 0 = 4, inferred is 3" in check(made).to_text()


def function_model(stride, seq=(40, 100)):
    inner = models.node(compress_stride=None)
    inner.attribute.add(name="compress_stride", ref_attr_name="stride", type=onnx.AttributeProto.INT)
    imports = [helper.make_opsetid("nsa_onnx", 1)]
    function = helper.make_function("f", "F", ["x", "w", "seq"], ["y"], [inner], imports, ["stride"])
    source = models.compress(list(seq))
    call = helper.make_node("F", ["x", "w", "seq"], ["y"], domain="f", stride=stride)
    return models.model(
        [call],
        source.graph.input,
        source.graph.output,
        source.graph.initializer,
        functions=[function],
        imports=(("nsa_onnx", 1), ("f", 1)),
    )


def test_nodes_in_functions_are_checked_with_what_their_calls_give_them():
    good = check(function_model(16))
    assert good.ok
    assert good.nodes == ("nsa",)
    (finding,) = check(function_model(16, (40, 39))).findings
    assert (finding.rule, finding.node, finding.place) == ("NSA015", "nsa", "function f.F")
    assert rules_of(check(function_model(8))) == {"NSA011"}


@pytest.mark.parametrize(("left_out", "rule"), [("attribute", "NSA005"), ("input", "NSA004")])
def test_what_a_call_of_a_function_leaves_out_is_found(left_out, rule):
    made = function_model(16)
    getattr(made.graph.node[0], left_out).pop()
    (finding,) = check(made).findings
    assert (finding.rule, finding.node) == (rule, "nsa")
    assert "required" in finding.message


def test_findings_alike_are_summed_up():
    report = check(models.infer([-1] * 1000))
    assert {finding.rule for finding in report.findings} == {"NSA015"}
    assert len(report.findings) == MAX_ALIKE + 1
    assert report.findings[-1].message == f"actual_seq_len: {1000 - MAX_ALIKE} more like these"


def test_lengths_that_are_computed_from_constants_are_checked():
    made = models.compress([50, 40])
    made.graph.initializer[0].name = "seq_before"
    made.graph.node.insert(0, helper.make_node("Cast", ["seq_before"], ["seq"], to=TensorProto.INT64))
    (finding,) = check(made).findings
    assert (finding.rule, finding.node) == ("NSA015", "nsa")


def test_a_wrong_shape_behind_the_node_is_found():
    made = models.compress([40, 100])
    made.graph.node.append(helper.make_node("Neg", ["y"], ["z"]))
    made.graph.output.append(models.value("z", np.float16, (5, 4, 16)))
    (finding,) = check(made).findings
    assert (finding.rule, finding.message) == ("NSA018", "'z' is declared with dim 0 = 5, inferred is 3")


def test_a_default_that_a_run_may_replace_is_no_constant():
    made = models.compress()
    made.graph.initializer.append(models.lengths([50, 40]))
    assert check(made).ok


def test_the_public_function_is_the_packages():
    import nsa_onnx.checker as package

    assert nsa_onnx.check is package.check
    assert isinstance(nsa_onnx.check(models.compress()), Report)


def test_unknown_targets_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="target must be one of cpu, portable, cann, cann-aclnn, atc, got 'gpu'"):
        check(models.compress(), target="gpu")


def test_severities_may_be_named():
    warned = nsa_onnx.check(models.compress([16, 32], w=(48, 4), compress_block_size=48))
    assert (warned.count("warning"), warned.count("error")) == (1, 0)
    assert warned.fails("warning") and not warned.fails("error")
    for ask in (warned.fails, warned.count, nsa_onnx.check(models.compress([40, 100])).fails):
        with pytest.raises(ValueError, match="'note' is not a valid Severity"):
            ask("note")


def test_the_report_as_json_is_a_summary_and_entries():
    report = check(models.compress(compress_stride=8))
    data = json.loads(report.to_json())
    assert data["summary"] == {"ok": False, "errors": 2, "warnings": 0, "nodes": 1, "passing": [], "failing": ["nsa"]}
    assert [set(entry) >= {"level", "source", "message", "nodes"} for entry in data["entries"]] == [True, True]
    assert data["entries"][0]["level"] == "error"
    assert data["entries"][0]["source"] == "NSA011"
    assert data["entries"][0]["nodes"] == ["nsa"]
    assert report.count(Severity.ERROR) == 2
    assert json.loads(check(models.compress()).to_json())["summary"]["passing"] == ["nsa"]


def test_names_from_the_file_do_not_reach_the_terminal_as_they_are(tmp_path):
    made = models.compress(compress_stride=8)
    made.graph.node[0].name = "\x1b[2J\nmodel: ok"
    made.graph.output[0].name = made.graph.node[0].output[0] = "\x1b[0m\n"
    inner = helper.make_graph([made.graph.node[0]], "\x1b[1m\nmodel: ok", [], made.graph.output)
    made.graph.node[0].CopyFrom(helper.make_node("If", ["go"], ["z"], then_branch=inner, else_branch=inner))
    path = tmp_path / "\x1b[3mm.onnx"
    path.write_bytes(made.SerializeToString())
    text = check(path).to_text()
    assert "\x1b" not in text
    assert sum("NSA011" in line for line in text.splitlines()) == 4  # two rows in two branches
    assert all(line.startswith(("error NSA", "warning NSA", str(tmp_path))) for line in text.splitlines())


# --------------------------------------------------------------------------------------------------
# Files


def test_a_file_is_checked_by_its_path(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(models.compress(), path)
    assert check(path).ok
    assert check(str(path)).model == str(path)


def make_fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("create", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "not a file"),
        (make_fifo, "not a file"),
        (lambda path: path.write_bytes(b"this is no model"), "not an ONNX model"),
        (lambda path: path.write_bytes(models.compress().SerializeToString()[:-7]), "not an ONNX model"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**31), "at most"),
    ],
)
def test_unreadable_files_are_refused_by_name(tmp_path, create, words):
    path = tmp_path / "m.onnx"
    create(path)
    with pytest.raises(UnreadableModelError, match=words) as caught:
        check(path)
    assert str(path) in str(caught.value)


def save_with_external(folder, seq, location="data.bin", data=None, **more):
    made = edited(models.compress(seq), external(location, **more))
    (folder / "data.bin").write_bytes(np.array(seq, "<i8").tobytes() if data is None else data)
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_external_lengths_are_read_from_the_model_s_folder(tmp_path):
    assert check(save_with_external(tmp_path, [40, 100])).ok
    assert rules_of(check(save_with_external(tmp_path, [50, 40]))) == {"NSA015"}
    wrong_t = onnx.load(save_with_external(tmp_path, [40, 100]), load_external_data=False)
    wrong_t.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    (tmp_path / "wrong.onnx").write_bytes(wrong_t.SerializeToString())
    assert rules_of(check(tmp_path / "wrong.onnx")) == {"NSA018"}
    shifted = np.array([7, 50, 40], "<i8").tobytes()
    assert rules_of(check(save_with_external(tmp_path, [1, 2], data=shifted, offset=8))) == {"NSA015"}


def test_external_weights_are_not_loaded(tmp_path):
    made = models.compress([40, 100])
    made.graph.input.pop(1)
    weight = helper.make_tensor("w", TensorProto.FLOAT16, [32, 4], np.ones(128, np.float16))
    made.graph.initializer.insert(0, weight)
    edited(made, lambda m: m.graph.initializer[0].ClearField("raw_data"), external("missing.bin"))
    made.graph.initializer[0].ClearField("int32_data")
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    assert check(path).ok


@pytest.mark.parametrize("where", ["../secret.bin", "link.bin", "/absolute", "", "data.bin/..", "no.bin", "a\0b"])
def test_external_data_is_never_read_from_elsewhere(tmp_path, where):
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.array([50, 40], "<i8").tobytes())
    (folder / "link.bin").symlink_to(secret)
    location = str(secret) if where == "/absolute" else where
    report = check(save_with_external(folder, [40, 100], location))
    assert rules_of(report) == {"NSA017"}


@pytest.mark.parametrize("more", [{"offset": -1}, {"offset": "x"}, {"offset": 1}, {"offset": 2**70}])
def test_external_offsets_are_checked(tmp_path, more):
    assert rules_of(check(save_with_external(tmp_path, [40, 100], **more))) == {"NSA017"}


# --------------------------------------------------------------------------------------------------
# Hostile models


def doubling_functions(depth):
    imports = [helper.make_opsetid("f", 1), helper.make_opsetid("", 18)]
    functions = [
        helper.make_function(
            "f",
            f"F{level}",
            ["x"],
            ["y"],
            [
                helper.make_node(f"F{level + 1}", ["x"], ["m"], domain="f"),
                helper.make_node(f"F{level + 1}", ["m"], ["y"], domain="f"),
            ],
            imports,
        )
        for level in range(depth)
    ]
    last = helper.make_function("f", f"F{depth}", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], imports)
    made = models.compress(compress_stride=8)
    made.graph.node.append(helper.make_node("F0", ["x"], ["z"], domain="f"))
    made.opset_import.append(imports[0])
    made.functions.extend([*functions, last])
    return made


def recursive_function():
    imports = [helper.make_opsetid("f", 1)]
    made = models.compress(compress_stride=8)
    made.graph.node.append(helper.make_node("A", ["x"], ["z"], domain="f"))
    made.opset_import.append(imports[0])
    for name, other in (("A", "B"), ("B", "A")):
        node = helper.make_node(other, ["x"], ["y"], domain="f")
        made.functions.append(helper.make_function("f", name, ["x"], ["y"], [node], imports))
    return made


def deep_branches(depth):
    inner = models.node(outputs=["y"], compress_stride=8)
    for _ in range(depth):
        graph = helper.make_graph([inner], "g", [], [models.value("y", np.float16, None)])
        inner = helper.make_node("If", ["go"], ["y"], then_branch=graph, else_branch=helper.make_graph([], "e", [], []))
    source = models.compress()
    return models.model([inner], source.graph.input, source.graph.output)


def doubling_lengths(depth, call=False, **shapes):
    """Concats that put the lengths behind themselves, again and again; in a function or in the graph."""
    made = models.compress(compress_stride=8, **shapes)
    made.graph.input.pop()
    made.graph.initializer.append(models.lengths([1], "s0"))
    double = [helper.make_node("Concat", ["a", "a"], ["b"], axis=0)]
    made.functions.append(helper.make_function("f", "Double", ["a"], ["b"], double, [helper.make_opsetid("", 18)]))
    made.opset_import.add(domain="f", version=1)
    for level in range(depth):
        names = [f"s{level}"], ["seq" if level == depth - 1 else f"s{level + 1}"]
        node = helper.make_node("Double", *names, domain="f")
        if not call:
            node = helper.make_node("Concat", names[0] * 2, names[1], axis=0)
        made.graph.node.insert(level, node)
    return made


HOSTILE = [
    lambda: doubling_functions(40),
    lambda: doubling_lengths(21),
    lambda: doubling_lengths(21, call=True),
    recursive_function,
    lambda: deep_branches(20),
    lambda: models.compress(x=(2**62, 4, 16), w=(2**40, 4), compress_stride=8),
    lambda: edited(models.compress([40, 100], compress_stride=8), lambda m: setattr(m.graph.node[0], "name", "")),
    lambda: edited(models.compress([40], compress_stride=8), lambda m: m.graph.initializer[0].dims.append(2**62)),
    # A cycle, and a value that two nodes make.
    lambda: edited(models.compress(compress_stride=8), lambda m: m.graph.node[0].input.__setitem__(0, "y")),
    lambda: edited(models.compress(compress_stride=8), lambda m: m.graph.node.append(m.graph.node[0])),
]


@pytest.mark.parametrize("make", HOSTILE)
@pytest.mark.parametrize("target", TARGETS)
def test_hostile_models_give_findings_in_time(make, target):
    assert "NSA011" in rules_of(check(make(), target=target))


def safely(model):
    return propagates_safely(model, Outline.of(model), OUTPUT_RANKS)


@pytest.mark.parametrize("call", [True, False])
def test_onnx_is_not_let_to_concatenate_without_bound(call):
    assert safely(doubling_lengths(15, call))
    assert not safely(doubling_lengths(21, call))
    assert not safely(doubling_lengths(3000, call))


@pytest.mark.parametrize("call", [True, False])
def test_a_few_concatenations_still_give_lengths(call):
    text = check(doubling_lengths(3, call, x=(9, 4, 16))).to_text()
    assert "actual_seq_len[7], the last element, must equal T = 9, got 1" in text


def field(number, payload):
    """A length-delimited protobuf field."""
    size, length = len(payload), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + payload


def test_nesting_beyond_protobuf_s_depth_is_unreadable(tmp_path):
    graph = b""
    for _ in range(5000):
        graph = field(1, field(5, field(6, graph)))  # graph.node.attribute.g
    path = tmp_path / "deep.onnx"
    path.write_bytes(field(7, graph))
    with pytest.raises(UnreadableModelError, match="not an ONNX model"):
        check(path)


CORPUS = [
    models.compress([40, 100], x=(100, 4, 16), y=(3, 4, 16)).SerializeToString(),
    expand(models.infer(table=None)).SerializeToString(),
    constant_indices([1, -1, 2], [0, -1, -1, -1, -1, -1, -1, -1, 3]).SerializeToString(),
    function_model(16).SerializeToString(),
    # Whatever rules look at: computed lengths, two updates of a cache, a body, a branch, a decomposed compression.
    *(onnx.parser.parse_model(RULES[key].example).SerializeToString() for key in STATIC if key > "NSA022"),
]


@settings(max_examples=300)
@given(data=st.data())
def test_no_mutated_file_breaks_the_checker(tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from(CORPUS)))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "delete", "copy"]))
        if kind == "set":
            content[position] = data.draw(st.integers(0, 255))
        elif kind == "delete":
            del content[position : position + data.draw(st.integers(1, 8))]
        else:
            end = data.draw(st.integers(position, min(position + 64, len(content))))
            content[position:position] = content[position:end]
        if not content:
            break
    path = tmp_path_factory.getbasetemp() / "mutated.onnx"
    path.write_bytes(content)
    try:
        report = check(path, target=data.draw(st.sampled_from(list(TARGETS))))
    except UnreadableModelError:
        return
    report.to_text().encode()
    json.loads(report.to_json())


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("op_type", OPERATORS)
def test_an_input_may_have_any_rank(op_type, rank):
    operator = OPERATORS[op_type]
    for name in operator.input_names:
        model = example_model(operator, operator.example)
        del model.graph.initializer[:]
        model.graph.ClearField("value_info")
        known = {one.name: one for one in model.graph.input}
        if name not in known:
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, [2] * rank))
        else:
            known[name].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2] * rank))
        assert not check(model).ok or rank == 1


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), "64", [64], 0, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("op_type", OPERATORS)
def test_an_attribute_may_have_any_value(op_type, value):
    operator = OPERATORS[op_type]
    for attribute in operator.attributes:
        model = example_model(operator, operator.example)
        kept = [one for one in model.graph.node[0].attribute if one.name != attribute.name]
        model.graph.node[0].ClearField("attribute")
        model.graph.node[0].attribute.extend([*kept, helper.make_attribute(attribute.name, value)])
        assert not check(model).ok or (attribute.is_float and value == 0.5)
