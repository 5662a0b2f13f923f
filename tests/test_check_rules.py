"""What single rules find and accept beyond their examples: computed lengths, caches, bodies, targets."""

from __future__ import annotations

import time
from contextlib import suppress

import nsa_models as models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nsa_onnx.checker import RULES, TARGETS, Severity, UnreadableModelError, check
from nsa_onnx.fuse import candidates
from nsa_onnx.graph import folding as limits
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.bodies import MIN_OPSET
from nsa_onnx.operators.expand import expand
from nsa_onnx.operators.hints import HINTS
from nsa_onnx.operators.nsa_compress.rule_examples import compress
from nsa_onnx.operators.nsa_compress_infer.rule_examples import decode, decode_node
from nsa_onnx.rulebook.rule import rule
from nsa_onnx.targets import vendor
from nsa_onnx.targets.atc import prepare_atc


def parsed(text):
    return onnx.parser.parse_model(text)


def rules_of(report):
    return {finding.rule for finding in report.findings}


def found(model, rule, **more):
    return [finding for finding in check(model, **more).findings if finding.rule == rule]


# --------------------------------------------------------------------------------------------------
# Lengths that nodes compute from constants: [40, 60] are the lengths throughout, [40, 100] the prefix sums

COMPUTED = {
    "CumSum": ["axis = Constant <value_int = 0> ()", "seq = CumSum (lengths, axis)"],
    "CumSum, Cast": [
        "axis = Constant <value_int = 0> ()",
        "small = Cast <to = 6> (lengths)",
        "sums = CumSum (small, axis)",
        "seq = Cast <to = 7> (sums)",
    ],
    "Concat": [
        "zero = Constant <value_ints = [0]> ()",
        "one = Constant <value_ints = [1]> ()",
        "two = Constant <value_ints = [2]> ()",
        "a = Slice (lengths, zero, one)",
        "b = Slice (lengths, one, two)",
        "c = Add (a, b)",
        "seq = Concat <axis = 0> (a, c)",
    ],
    "Reshape, Gather": [
        "column = Constant <value_ints = [2, 1]> ()",
        "row = Constant <value_ints = [2]> ()",
        "zero = Constant <value_int = 0> ()",
        "two = Reshape (lengths, column)",
        "sums = CumSum (two, zero)",
        "indices = Constant <value_ints = [0, 1]> ()",
        "same = Gather (sums, indices)",
        "seq = Reshape (same, row)",
    ],
    "T by Shape": [
        "zero = Constant <value_ints = [0]> ()",
        "one = Constant <value_ints = [1]> ()",
        "a = Slice (lengths, zero, one)",
        "T = Shape <start = 0, end = 1> (x)",
        "seq = Concat <axis = 0> (a, T)",
    ],
    "Unsqueeze, Squeeze, Identity": [
        "axes = Constant <value_ints = [0]> ()",
        "zero = Constant <value_int = 0> ()",
        "a = Unsqueeze (lengths, axes)",
        "b = Squeeze (a, axes)",
        "c = CumSum (b, zero)",
        "seq = Identity (c)",
    ],
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_lengths_are_checked_and_t_is_recomputed(name):
    def made(tokens, rows, first):
        return parsed(compress(x=f"{tokens}, 4, 16", y=f"{rows}, 4, 16", seq=[first, 60], before=COMPUTED[name]))

    assert check(made(100, 3, 40)).ok, check(made(100, 3, 40)).to_text()
    assert rules_of(check(made(100, 4, 40))) == {"NSA018"}
    if name != "T by Shape":
        assert rules_of(check(made(99, 3, 40))) == {"NSA015"}
    assert rules_of(check(made(100, 3, -40))) == {"NSA015"}


@pytest.mark.parametrize(("slot", "rules"), [(8, set()), (9, {"NSA016"})])
def test_computed_slots_and_tables_are_checked(slot, rules):
    made = parsed(
        decode(seq=[32, 33, 48], before=["slots = Cast <to = 6> (wide)", "table = Cast <to = 6> (wide_table)"])
    )
    kept = [value for value in made.graph.input if value.name not in ("slots", "table")]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    made.graph.initializer.append(models.lengths([1, -1, slot], "wide"))
    made.graph.initializer.append(helper.make_tensor("wide_table", TensorProto.INT64, [3, 4], [0] * 12))
    assert rules_of(check(made)) == rules


def test_what_a_run_decides_is_not_guessed():
    for seq in ("seq = Add (lengths, more)", "seq = Where (which, lengths, lengths)"):
        text = compress(x="100, 4, 16", seq=[50, 40], before=[seq])
        text = text.replace("float16[32, 4] w", "float16[32, 4] w, int64[2] more, bool[2] which")
        assert check(parsed(text)).ok


def test_a_branch_computes_with_the_constants_around_it():
    inner = "{k} = g{k} () => (float16[R, 4, 16] y{k}) {{ s{k} = CumSum (lengths, axis) y{k} = {node} }}"
    node = "nsa_onnx.NsaCompress <compress_block_size = 32, compress_stride = 16> (x, w, s{k})"
    branches = ", ".join(inner.format(k=k, node=node.format(k=k)) for k in ("then_branch", "else_branch"))
    text = (
        '<ir_version: 10, opset_import: ["" : 18, "nsa_onnx" : 1]>\n'
        "g (float16[{T}, 4, 16] x, float16[32, 4] w, bool go) => (float16[R, 4, 16] y)\n"
        f"<int64[2] lengths = {{40, 60}}, int64 axis = {{0}}> {{ y = If (go) <{branches}> }}"
    )
    assert check(parsed(text.replace("{T}", "100"))).ok
    assert rules_of(check(parsed(text.replace("{T}", "99")))) == {"NSA015"}


ONE, BIG = "one = Constant <value_ints = [1]> ()", "big = Constant <value_ints = [1099511627776]> ()"
# Nodes that make lengths which, were they computed, would fill the memory; or that are broken.
BOMBS = {
    "ConstantOfShape": [BIG, "seq = ConstantOfShape (big)"],
    "Expand": [BIG, "seq = Expand (lengths, big)"],
    "Tile": [BIG, ONE, "seq = Tile (one, big)"],
    "Range": [
        "zero = Constant <value_int = 0> ()",
        "step = Constant <value_int = 1> ()",
        "end = Constant <value_int = 1099511627776> ()",
        "seq = Range (zero, end, step)",
    ],
    "Range by 0": ["zero = Constant <value_int = 0> ()", "seq = Range (zero, zero, zero)"],
    "Gather": [BIG, "huge = ConstantOfShape (big)", "seq = Gather (lengths, huge)"],
    "broadcast": [
        "n = Constant <value_ints = [1000000]> ()",
        "column = Constant <value_ints = [1000000, 1]> ()",
        "a = ConstantOfShape (n)",
        "b = Reshape (a, column)",
        "seq = Add (a, b)",
    ],
    "zero and huge": [
        "n = Constant <value_ints = [0, 1099511627776]> ()",
        "a = ConstantOfShape (n)",
        "seq = ReduceSum <keepdims = 0> (a, zeros)",
        "zeros = Constant <value_ints = [0]> ()",
    ],
    "cycle": ["seq = Add (a, lengths)", "a = Add (seq, lengths)"],
    "itself": ["seq = Add (seq, lengths)"],
    "twice": ["seq = Neg (lengths)", "seq = Neg (lengths)"],
    "long": ["s0 = Neg (lengths)", *[f"s{i + 1} = Neg (s{i})" for i in range(20_000)], "seq = Neg (s20000)"],
    "diamonds": ["s0 = Neg (lengths)", *[f"s{i + 1} = Add (s{i}, s{i})" for i in range(200)], "seq = Neg (s200)"],
    "divide by 0": ["zero = Constant <value_ints = [0]> ()", "seq = Div (lengths, zero)"],
    "broken": ["seq = Reshape (lengths)"],
    "attributes": ["seq = Concat <axis = 99> (lengths, lengths)"],
    "unknown": ["seq = Neg (nowhere)"],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BOMBS)
def test_computing_lengths_is_bounded(kind):
    made = parsed(compress(x="100, 4, 16", seq=[40, 100], stride=8, before=BOMBS[kind]))
    begin = time.process_time()
    assert "NSA011" in rules_of(check(made))
    assert time.process_time() - begin < 10  # noisy machines; unbounded it would be for ever


def test_a_model_has_a_budget_of_nodes_and_elements(monkeypatch):
    text = compress(x="99, 4, 16", seq=[40, 60], before=COMPUTED["CumSum"])
    assert rules_of(check(parsed(text))) == {"NSA015"}
    for name, value in (("MAX_NODES", 0), ("MAX_ELEMENTS", 1), ("MAX_TOTAL_ELEMENTS", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(limits, name, value)
            assert check(parsed(text)).ok, name


# --------------------------------------------------------------------------------------------------
# Lengths and prefix sums


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (compress(x="100, 4, 16", seq=[40, 60]), "lengths"),
        (compress(seq=[50, 40]), ""),  # T is not known
        (compress(x="100, 4, 16", seq=[0, 40, 100]), "leading_zero"),
        (compress(seq=[0, 40, 100]), "leading_zero"),
        (compress(x="100, 4, 16", seq=[40, 70]), ""),
        (decode(seq=[100, 200, 300]), "prefix_sums"),
        (decode(seq=[300, 100, 300]), ""),
    ],
)
def test_wrong_lengths_that_the_other_operator_takes_get_a_hint(text, hint):
    (first, *_) = found(parsed(text), "NSA015")
    assert [name for name, known in HINTS.items() if first.message.endswith(known.ending)] == [hint] * bool(hint)


def test_prefix_sums_that_need_more_pages_than_there_are_get_a_warning():
    # 12 pages of 64 tokens; prefix sums of 4 sequences of 64 tokens need 1 + 2 + 3 + 4 pages, 5 of them 15.
    def made(*seq, pages=12):
        return parsed(decode(x=f"{pages}, 64, 4, 16", batch=str(len(seq)), table=f"{len(seq)}, 5", seq=seq))

    assert rules_of(check(made(64, 128, 192, 256, 320))) == {"NSA023"}
    assert check(made(64, 128, 192, 256)).ok
    assert check(made(64, 128, 192, 256, 320, pages=15)).ok
    assert check(made(320, 256, 192, 128, 64)).ok  # not prefix sums


def test_cumsum_before_the_decode_operator_gets_a_warning():
    axis = "axis = Constant <value_int = 0> ()"
    text = decode(before=[axis, "sums = CumSum (given, axis)", "seq = Cast <to = 7> (sums)"])
    text = text.replace("float16[32, 4] w", "float16[32, 4] w, int32[3] given")
    (finding,) = found(parsed(text), "NSA023")
    assert "comes from CumSum" in finding.message and finding.severity is Severity.WARNING
    assert check(parsed(text.replace("CumSum (given, axis)", "Add (given, axis)"))).ok


def test_what_is_summed_up_and_given_to_prefill_as_it_is_gets_a_warning():
    axis = "axis = Constant <value_int = 0> ()"
    text = compress(before=[axis], after=["sums = CumSum (seq, axis)"], outputs=["int64[B] sums"])
    assert "is also summed up" in found(parsed(text), "NSA023")[0].message
    assert check(parsed(text.replace("int64[B] seq", "int64[1] seq").replace("int64[B] sums", "int64[1] sums"))).ok


# --------------------------------------------------------------------------------------------------
# Caches

FLOAT16 = "float16[9, 4, 16]"


@pytest.mark.parametrize("op", ["Identity (cache_out)", "Cast <to = 1> (cache_out)", "Reshape (cache_out, shape)"])
def test_a_cache_that_is_handed_on_to_an_output_is_not_lost(op):
    before = ["shape = Constant <value_ints = [9, 64]> ()"]
    made = parsed(decode(carried=False, before=before, after=[f"z = {op}"], outputs=["z"]))
    assert check(made).ok, check(made).to_text()


@pytest.mark.parametrize("after", [[], ["z = Identity (cache_out)"], ["s = Shape (cache_out)", "z = Identity (s)"]])
def test_a_cache_that_no_output_holds_is_lost(after):
    text = decode(carried=False, after=after, outputs=["float16[12, 64, 4, 16] other"], before=["other = Neg (x)"])
    (finding,) = check(parsed(text)).findings
    assert (finding.rule, finding.node, finding.argument) == ("NSA024", "nsa", "cache")
    assert "'cache_out', the updated cache, is no output" in finding.message
    assert "make the updated cache an output" in finding.hint


def test_chained_updates_end_in_one_output():
    second = decode_node("x, w, slots, cache_out, seq, table", "cache_2", name="second")
    assert check(parsed(decode(carried=False, after=[second], outputs=[f"{FLOAT16} cache_2"]))).ok


def test_a_cache_may_leave_by_a_branch():
    node = decode_node("x, w, slots, cache, seq, table", "inner", name="nsa").replace("\n", " ")
    branches = f"then_branch = t () => ({FLOAT16} inner) {{ {node} }}, else_branch = e () => ({FLOAT16} same) "
    branches += "{ same = Identity (cache) }"
    text = decode(after=[f"y = If (go) <{branches}>"]).replace("=> (", "=> (" + FLOAT16 + " y, ", 1)
    lines = text.splitlines()
    kept = [line for line in lines if "cache_out" not in line or "=>" in line or "If" in line]
    text = (
        "\n".join(kept)
        .replace(f", {FLOAT16} cache_out)", ")", 1)
        .replace("float16[32, 4] w", "float16[32, 4] w, bool go")
    )
    text = text.replace("      <compress_block_size = 32, compress_stride = 16, page_block_size = 64>\n", "", 1)
    text = text.replace("      (x, w, slots, cache, seq, table)\n", "", 1)
    assert check(parsed(text)).ok, check(parsed(text)).to_text()


def stale(reader, before=False):
    where = {"before": [reader]} if before else {"after": [reader]}
    return parsed(decode(outputs=["z"], **where))


def test_the_cache_of_before_is_not_read_after_the_update():
    (finding,) = check(stale("[late] z = Neg (cache)")).findings
    assert (finding.rule, finding.node) == ("NSA025", "nsa")
    assert finding.message == "'cache', the cache before the update, is read by Neg 'late' after this node"
    assert check(stale("z = Neg (cache)", before=True)).ok
    assert check(stale("z = Shape (cache)")).ok
    assert check(stale("z = Neg (cache_out)")).ok


def test_a_branch_behind_the_update_that_reads_the_old_cache_is_found():
    branches = ", ".join(f"{k}_branch = {k} () => (r{k}) {{ r{k} = Neg (cache) }}" for k in ("then", "else"))
    text = decode(outputs=["z"], after=[f"z = If (go) <{branches}>"]).replace("16[32, 4] w", "16[32, 4] w, bool go")
    assert rules_of(check(parsed(text))) == {"NSA025"}


# --------------------------------------------------------------------------------------------------
# Portable bodies


def both_bodies(opset=18):
    return expand(models.infer(opset=opset)), expand(models.compress(opset=opset))


@pytest.mark.parametrize("opset", [MIN_OPSET, 18, 20, 23])
def test_our_bodies_are_ours_in_every_opset(opset):
    for made in both_bodies(opset):
        assert check(made).ok, check(made).to_text()


def renamed(name):
    return f"v_{name}" if name else name


def rename(nodes):
    for node in nodes:
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
        node.name, node.doc_string, node.domain = "", "said", "ai.onnx"
        for attribute in node.attribute:
            rename(attribute.g.node) if attribute.HasField("g") else None
            for value in (*attribute.g.input, *attribute.g.output):
                value.name = renamed(value.name)


def test_names_and_documentation_do_not_make_another_body():
    for made in both_bodies():
        function = made.functions[0]
        rename(function.node)
        function.input[:], function.output[:] = map(renamed, function.input), map(renamed, function.output)
        assert check(made).ok, check(made).to_text()


def loop_of(function):
    return next(node for node in function.node if node.op_type == "Loop").attribute[0].g


def merge_names(function, name, other):
    for node in function.node:
        node.input[:] = [other if one == name else one for one in node.input]
        node.output[:] = [other if one == name else one for one in node.output]


DIFFERENCES = {
    "a node more": lambda f: f.node.insert(0, helper.make_node("Neg", ["weight"], ["unused"])),
    "a node less": lambda f: f.node.pop(0),
    "the last node less": lambda f: f.node.pop(),
    "an orphan": lambda f: f.node[0].output.__setitem__(0, "orphan"),
    "one name for two values": lambda f: merge_names(f, "one", "zero"),
    "an operator": lambda f: setattr(next(n for n in f.node if n.op_type == "Add"), "op_type", "Sub"),
    "a domain": lambda f: setattr(f.node[-1], "domain", "other"),
    "an input": lambda f: f.node[-1].input.__setitem__(1, "weight"),
    "a constant": lambda f: setattr(f.node[0].attribute[0], "i", 7),
    "a tensor": lambda f: setattr(
        next(a for n in f.node for a in n.attribute if a.HasField("t")).t, "raw_data", b"\1\0\0\0\0\0\0\0"
    ),
    "an attribute more": lambda f: f.attribute.append("extra"),
    "inside the loop": lambda f: loop_of(f).node[0].input.__setitem__(0, "j"),
    "two values made one": lambda f: f.node[-1].input.__setitem__(0, f.node[-1].input[1]),
    "inputs swapped": lambda f: f.input.__setitem__(slice(0, 2), [f.input[1], f.input[0]]),
    "an initializer": lambda f: loop_of(f).initializer.append(models.lengths([1], "j")),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_another_body_is_reported(name):
    for made in both_bodies():
        DIFFERENCES[name](made.functions[0])
        assert len(found(made, "NSA026")) == 1


def test_a_body_for_an_opset_that_ours_do_not_have_is_reported():
    (made, _) = both_bodies()
    made.opset_import[0].version = made.functions[0].opset_import[0].version = MIN_OPSET - 1
    assert "imports opset 15, ours need at least 16" in found(made, "NSA026")[0].message


# --------------------------------------------------------------------------------------------------
# Indices that are constant where lengths are not


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ([1, 2, 8], None),
        ([-1, -1, -1], None),
        ([1, 2, 9], "slot_mapping[2] should be < 9, got 9"),
        ([1, 2, 1], "slot_mapping[2] should differ from slot_mapping[0], got 1"),
    ],
)
def test_constant_slots_without_lengths_get_a_warning(slots, words):
    findings = check(parsed(decode(slots=slots))).findings
    assert [(finding.rule, finding.message) for finding in findings] == ([("NSA029", words)] if words else [])


def test_a_constant_table_without_lengths_gets_a_warning():
    (finding,) = check(parsed(decode(pages=[0] * 6 + [12] + [-7] * 5))).findings
    assert (finding.rule, finding.message) == ("NSA029", "block_table[1, 2] should be < 12, got 12")
    assert check(parsed(decode(pages=[0] * 6 + [11] + [-7] * 5))).ok


# --------------------------------------------------------------------------------------------------
# Targets


@pytest.mark.parametrize("target", TARGETS)
def test_the_report_names_its_target(target):
    assert check(models.compress(), target=target).target == target


def test_our_kernels_take_what_the_vendor_s_do_not():
    text = decode(x="12, 64, 51, 16", w="80, 51", cache="9, 51, 16", block=80, table=None)
    assert check(parsed(text), target="cpu").ok
    assert check(parsed(text), target="cann").ok
    assert rules_of(check(parsed(text), target="cann-aclnn")) == {"NSA030", "NSA031"}
    assert rules_of(check(parsed(text), target="atc")) == {"NSA030", "NSA031", "NSA032"}
    for finding in check(parsed(text), target="atc").findings:
        assert finding.hint


def test_t_0_of_unknown_lengths_is_found_for_atc():
    short, long = (compress(x=f"{tokens}, 4, 16", y="R, 4, 16") for tokens in (31, 32))
    assert "NSA036" in rules_of(check(parsed(short), target="atc"))
    assert "NSA036" not in rules_of(check(parsed(long), target="atc"))
    assert rules_of(check(parsed(short))) == {"NSA022"}


def test_a_wrong_node_is_not_also_measured_by_the_vendor():
    text = decode(x="12, 64, 51, 16", w="144, 51", cache="9, 51, 16", block=144)
    assert rules_of(check(parsed(text), target="cann-aclnn")) == {"NSA011"}


def test_what_is_prepared_for_atc_has_no_finding_there_but_the_products():
    made = expand(parsed(decode(table=None, after=["[a] z = Neg (cache_out)", "[a] zz = Neg (z)"], outputs=["zz"])))
    before = rules_of(check(made, target="atc"))
    assert {"NSA037", "NSA039", "NSA041"} <= before
    after = check(prepare_atc(made).model, target="atc")
    assert after.ok, after.to_text()
    compressing = prepare_atc(expand(parsed(compress(after=["z = Neg (y)"], outputs=["z"])))).model
    assert rules_of(check(compressing, target="atc")) == {"NSA035"}


def binary(a, b, op="Sub"):
    text = f'<ir_version: 10, opset_import: ["" : 18]> g (float{a} a, float{b} b) => (y) {{ [n] y = {op} (a, b) }}'
    return rules_of(check(parsed(text), target="cann"))


@pytest.mark.parametrize(
    ("a", "b"), [("[2, 1]", "[1, 3]"), ("[2, 1]", "[3]"), ("[T, 1]", "[1, N]"), ("[4, 1, 2]", "[3, 1]")]
)
def test_two_broadcast_operands_are_found(a, b):
    for op in ("Add", "Sub", "Mul", "Div"):
        assert binary(a, b, op) == {"NSA038"}
        assert binary(b, a, op) == {"NSA038"}
    assert binary(a, b, "Max") == set()


@pytest.mark.parametrize(
    ("a", "b"),
    [("[2, 3]", "[1, 3]"), ("[2, 3]", "[3]"), ("[1, 1]", "[1]"), ("[2, 3]", "[]"), ("", "[1, 3]"), ("[1]", "[1, 3]")],
)
def test_one_broadcast_operand_is_fine(a, b):
    assert binary(a, b) == binary(b, a) == set()


def test_a_limit_of_a_target_is_in_its_message():
    block = parsed(decode(w="80, 4", block=80))
    (finding,) = check(block, target="cann-aclnn").findings
    assert f"<= {vendor.DECODE_MAX_BLOCK}" in finding.message and "got 80" in finding.message


# --------------------------------------------------------------------------------------------------
# Hostile


def many_caches(count):
    """Every node hands the same cache to the next and reads all that were before."""
    nodes = [
        models.node("NsaCompressInfer", ["x", "w", "slots", f"c{i}", "seq"], [f"c{i + 1}"], page_block_size=64)
        for i in range(count)
    ]
    nodes.append(helper.make_node("Concat", [f"c{i}" for i in range(count)], ["all"], axis=0))
    source = models.infer(table=None)
    source.graph.input[3].name = "c0"
    return models.model(nodes, source.graph.input, [models.value("all", np.float16, None)])


def test_a_thousand_chained_caches_take_seconds():
    begin = time.process_time()
    check(many_caches(1000))
    assert time.process_time() - begin < 20


def test_names_that_are_not_text_reach_no_traceback():
    content = parsed(decode(after=["[late] z = Neg (cache)"], outputs=["z"])).SerializeToString()
    for name in (b"cache", b"late", b"slots", b"nsa", b"Neg"):
        broken = onnx.ModelProto.FromString(content.replace(name, b"\xff" * len(name)))
        for target in TARGETS:
            with suppress(UnreadableModelError):
                check(broken, target=target).to_text().encode()


def test_values_of_a_wrong_kind_are_for_the_other_rules():
    made = models.compress()
    made.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"x"]))
    made.graph.node.insert(0, helper.make_node("Cast", ["s"], ["t"], to=TensorProto.INT64))
    made.graph.node[1].input[2] = "t"
    assert check(made).ok


@pytest.mark.parametrize("kind", ["float", "int64"])
@pytest.mark.parametrize("op", ["Cast <to = 7> (huge)", "Add (huge, huge)", "Gather (huge, index)", "Squeeze (huge)"])
def test_onnx_is_not_let_to_propagate_tensors_of_absurd_sizes(kind, op):
    made = parsed(
        compress(stride=8, before=[f"z = {op}"]).replace(
            "int64[B] seq", f"int64[B] seq, {kind}[{2**40}] huge, int64[1] index"
        )
    )
    begin = time.process_time()
    assert "NSA011" in rules_of(check(made))
    assert time.process_time() - begin < 10


def test_shapes_that_nodes_compute_from_constants_are_used():
    before = ["two = Constant <value_ints = [2]> ()", "n = Mul (two, two)", "dims = Concat <axis = 0> (t, n, d)"]
    before += [
        "x = Reshape (flat, dims)",
        "t = Constant <value_ints = [100]> ()",
        "d = Constant <value_ints = [16]> ()",
    ]
    order = [before[0], before[1], before[4], before[5], before[2], before[3]]
    text = compress(x="100, 4, 16", y="3, 4, 16", w="32, 5", seq=[40, 100], before=order)
    made = parsed(text.replace("float16[100, 4, 16] x", "float16[6400] flat"))
    assert rules_of(check(made)) == {"NSA008"}


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand", "Tile", "Range", "broadcast"])
def test_what_would_be_too_large_is_not_even_tried(kind, monkeypatch):
    tried = []
    evaluate = limits.evaluate
    monkeypatch.setattr(limits, "evaluate", lambda node, *more: (tried.append(node.op_type), evaluate(node, *more))[1])
    check(parsed(compress(seq=[40, 100], before=BOMBS[kind])))
    assert BOMBS[kind][-1].split()[2] not in tried


def test_shapes_of_values_count_as_constants_in_large_models():
    # Relu is none of the operators with which onnx is let to propagate data: only we know T then.
    text = compress(x="100, 4, 16", y="4, 4, 16", seq=[40, 60], before=["z = Relu (x)", *COMPUTED["T by Shape"]])
    assert rules_of(check(parsed(text))) == {"NSA018"}


def test_segments_that_are_all_too_short_give_a_warning():
    made = parsed(compress(x="100, 4, 16", y="0, 4, 16", seq=[31, 62, 93, 100]))
    assert rules_of(check(made)) == {"NSA022"}


def test_lengths_that_need_too_many_pages_either_way_are_no_prefix_sums():
    seq = [64, 128, 192, 256, 320]
    assert check(parsed(decode(x="4, 64, 4, 16", batch="5", table="5, 5", seq=seq))).ok


def test_slots_of_sequences_that_do_not_write_may_hold_anything():
    assert check(parsed(decode(seq=[33, 33, 33], slots=[9, 1, 1], pages=[99] * 12))).ok


def test_atc_takes_constants_without_a_domain_and_one_domain_without_names():
    constant = compress(before=["c = Constant <value_int = 0> ()"])
    assert rules_of(check(parsed(constant), target="atc")) == {"NSA035"}
    alone = '<ir_version: 10, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Neg (x) }'
    assert check(parsed(alone), target="atc").ok


def test_a_node_with_the_name_of_an_input_is_found_for_atc():
    text = '<ir_version: 10, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { [x] y = Neg (x) }'
    assert rules_of(check(parsed(text), target="atc")) == {"NSA041"}


def test_a_cache_that_something_was_computed_from_is_not_handed_on():
    made = parsed(decode(carried=False, after=["z = Neg (cache_out)"], outputs=["z"]))
    assert rules_of(check(made)) == {"NSA024"}


def test_what_only_looks_like_the_compression_is_left_alone():
    # D = 8 is not within the operator's limits, so no node could be put in.
    made = parsed(RULES["NSA028"].example.replace("4, 16]", "4, 8]"))
    assert [bool(one.reason) for one in candidates(made)] == [True]
    assert check(made).ok


def test_every_example_of_an_operator_is_one_of_a_rule():
    shown = {rule_id for operator in OPERATORS.values() for rule_id in operator.rule_examples}
    assert shown and shown <= set(RULES)


def test_a_documentation_has_short_lines_whatever_names_stand_in_it():
    names = " ".join(["LongOperatorName"] * 20)
    made = rule("NSA999", "title", documentation=f"{names}.\n\nKept\nas it is.")(lambda model: iter(()))
    first, second = made.documentation.split("\n\n")
    assert first.split() == f"{names}.".split() and max(map(len, first.splitlines())) < 120
    assert second == "Kept\nas it is."
    assert made.example == made.accepted == ""
