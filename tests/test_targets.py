"""Targets: each has its own limits, and a model that is prepared for one passes its rules with the same bits."""

from __future__ import annotations

import ast
import re
import time
from dataclasses import replace
from pathlib import Path

import nsa_models as models
import numpy as np
import onnx
import onnx.parser
import oracle
import pytest

import nsa_onnx
from nsa_onnx.checker import RULES, TARGETS, check
from nsa_onnx.cli import main
from nsa_onnx.operators import windows
from nsa_onnx.operators.nsa_compress import contract as prefill
from nsa_onnx.operators.nsa_compress.rule_examples import compress
from nsa_onnx.operators.nsa_compress_infer import contract as decode_contract
from nsa_onnx.operators.nsa_compress_infer.rule_examples import decode
from nsa_onnx.rulebook.rule import Rule
from nsa_onnx.targets import atc, cann, portable, vendor_attention_rules, vendor_rules
from nsa_onnx.targets.preparing import PrepareError

ROOT = Path(__file__).parents[1]
ON_ASCEND = ("cann", "cann-aclnn", "atc")


def parsed(text):
    return onnx.parser.parse_model(text)


def rules_of(report):
    return {finding.rule for finding in report.findings}


# --------------------------------------------------------------------------------------------------
# Limits


def heads(count):
    return compress(x=f"T, {count}, 16", w=f"32, {count}", y=f"R, {count}, 16")


GROWN = {
    "D": (windows, "MAX_HEAD_DIM", 512, compress(x="T, 4, 512", y="R, 4, 512"), "NSA009", "D must be <= 256"),
    "N": (prefill, "LIMITS", replace(prefill.LIMITS, max_heads=256), heads(256), "NSA010", "N must be <= 128"),
    "block": (
        prefill,
        "LIMITS",
        replace(prefill.LIMITS, max_block=256),
        compress(w="256, 4", block=256),
        "NSA011",
        "compress_block_size must be <= 128",
    ),
    "alignment": (windows, "ALIGNMENT", 8, compress(stride=8), "NSA011", "compress_stride must be a multiple of 16"),
    "D of decode": (
        windows,
        "MAX_HEAD_DIM",
        512,
        decode(x="12, 64, 4, 512", cache="9, 4, 512"),
        "NSA009",
        "D must be <= 256",
    ),
    "N of decode": (
        decode_contract,
        "LIMITS",
        replace(decode_contract.LIMITS, max_heads=128),
        decode(x="12, 64, 128, 16", w="32, 128", cache="9, 128, 16"),
        "NSA010",
        "N must be <= 6",
    ),
    "pages": (
        decode_contract,
        "PAGE_BLOCK_SIZES",
        (32, 64, 128),
        decode(x="12, 32, 4, 16", page=32),
        "NSA012",
        "page_block_size must be 64 or 128",
    ),
}


@pytest.mark.parametrize("name", GROWN)
def test_a_target_holds_its_limits_when_the_contract_grows(name, monkeypatch):
    module, constant, value, text, rule_id, words = GROWN[name]
    made = parsed(text)
    assert rule_id in rules_of(check(made)), "the contract has this bound today"
    monkeypatch.setattr(module, constant, value)
    assert check(made).ok, check(made).to_text()
    for target in ON_ASCEND:
        found = [finding for finding in check(made, target=target).findings if finding.rule == rule_id]
        assert [words in finding.message for finding in found] == [True], (target, check(made, target=target).to_text())
    with pytest.raises(PrepareError, match=words):
        atc.prepare_atc(made)


def test_a_node_that_breaks_the_contract_is_not_also_measured_by_the_target():
    made = parsed(compress(x="T, 4, 512", y="R, 4, 512"))
    for target in TARGETS:
        assert len([one for one in check(made, target=target).findings if one.rule == "NSA009"]) == 1


def test_an_empty_cache_is_nothing_for_the_vendor():
    made = parsed(decode(cache="0, 4, 16"))
    assert check(made, target="cann-aclnn").ok
    assert "NSA033" in rules_of(check(made, target="atc"))
    with pytest.raises(PrepareError, match="at least one slot"):
        atc.prepare_atc(made)


@pytest.mark.parametrize(
    ("made", "rule_id"),
    [
        (compress(x="100, 4, 0", y="3, 4, 0", seq=[40, 100]), "NSA036"),
        (decode(x="12, 64, 4, 0", cache="9, 4, 0"), "NSA033"),
    ],
)
def test_no_channels_are_nothing_for_the_vendor(made, rule_id):
    assert check(parsed(made), target="cpu").ok
    assert rule_id not in rules_of(check(parsed(made), target="cann-aclnn"))
    assert rule_id in rules_of(check(parsed(made), target="atc"))
    with pytest.raises(PrepareError, match=r"D must be >= 1 for the vendor's .* operator, got 0: leave the node out"):
        atc.prepare_atc(parsed(made))


def sources(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cc", ".asc", ".txt", ".cmake") and "targets" not in path.parts:
                yield path


VENDOR_LIMIT = re.compile(
    r"VENDOR_\w+ *=|kVendor\w+ *=|for the vendor's|vendor_(?:block|odd_heads|elements|batch|pages|table|no_rows)"
    r"|\b2047\b|\b4294967295\b|2 ?\*\* ?32 - 1|MAX_ODD_HEADS *="
)


def test_no_other_file_than_the_targets_holds_a_limit_of_the_vendor():
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in sources("nsa_onnx", "exporters", "ort_ext", "ascend_kernels", "cmake")
        for match in VENDOR_LIMIT.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
    vendor = (ROOT / "nsa_onnx/targets/vendor.py").read_text(encoding="utf-8")
    assert len(set(VENDOR_LIMIT.findall(vendor))) > 5, "the words are those that the limits have"


def test_no_rule_outside_the_targets_names_one():
    for path in sources("nsa_onnx/checker/rules", "nsa_onnx/rulebook"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert not {text for text in texts if text in TARGETS}, path


def test_every_rule_in_a_targets_module_belongs_to_a_target():
    held = {rule.id for target in TARGETS.values() for rule in target.rules}
    made = {
        one.id
        for module in (cann, vendor_rules, vendor_attention_rules, atc, portable)
        for one in vars(module).values()
        if isinstance(one, Rule)
    }
    assert made == held
    assert held <= set(RULES)


# --------------------------------------------------------------------------------------------------
# Prepared for the provider


def two(a="[T, 1]", b="[1, N]", op="Sub", imports='"" : 18', more=""):
    text = f"<ir_version: 10, opset_import: [{imports}]> g (float{a} a, float{b} b) => (float[R, S] y)"
    return parsed(text + f" {{ y = {op} (a, b) {more} }}")


def outputs(made, **feeds):
    return models.run_ort(made, feeds, nsa_onnx.session_options())


def numbers(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("target", ["cann", "cann-aclnn"])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize(
    ("a", "b", "shapes"),
    [
        ("[T, 1]", "[1, N]", [(3, 1), (1, 5)]),
        ("[1, 4]", "[3, 1]", [(1, 4), (3, 1)]),
        ("[2, 1]", "[3]", [(2, 1), (3,)]),
        ("[1, T]", "[N, 1]", [(1, 0), (2, 1)]),
    ],
)
def test_two_broadcast_operands_become_one_and_no_bit_changes(target, op, a, b, shapes):
    made = two(a, b, op)
    assert rules_of(check(made, target=target)) == {"NSA038"}
    prepared = TARGETS[target].prepare(made)
    assert check(prepared.model, target=target).ok
    assert len(prepared.changes) == 1
    onnx.checker.check_model(prepared.model, full_check=True)
    feeds = dict(zip("ab", (numbers(*shape) for shape in shapes), strict=True))
    (before,), (after,) = outputs(made, **feeds), outputs(prepared.model, **feeds)
    assert before.shape == after.shape
    assert before.tobytes() == after.tobytes()
    assert TARGETS[target].prepare(prepared.model).model == prepared.model


def test_constants_subgraphs_and_functions_are_prepared_too():
    text = """<ir_version: 10, opset_import: ["" : 18, "f" : 1]>
        g (bool go, float[3, 1] a) => (float[R, S] y, float[R, S] z)
        <float[1, 2] b = {1, 2}>
        {
            y = If (go) <
                then_branch = t () => (float[R, S] p) { p = Mul (a, b) },
                else_branch = e () => (float[R, S] q) { q = Add (b, a) }>
            z = f.F (a)
        }
        <domain: "f", opset_import: ["" : 18]> F (v) => (w)
        {
            c = Constant <value = float[2, 1] {1, 2}> ()
            d = Constant <value = float[1, 3] {1, 2, 3}> ()
            w = Sub (c, d)
        }"""
    made = parsed(text)
    assert len(check(made, target="cann").findings) == 3
    prepared = cann.prepare(made)
    assert check(prepared.model, target="cann").ok
    assert len(prepared.changes) == 3
    for go in (True, False):
        feeds = {"go": np.array(go), "a": numbers(3, 1)}
        before, after = outputs(made, **feeds), outputs(prepared.model, **feeds)
        assert [one.tobytes() for one in before] == [one.tobytes() for one in after]


def test_a_model_with_nothing_to_change_is_left_alone():
    made = models.compress([40, 100])
    prepared = cann.prepare(made)
    assert (prepared.model, prepared.changes, prepared.notes) == (made, (), ())


def test_names_of_the_model_are_not_taken_twice():
    made = two(more="nsa_onnx_0_full = Neg (y)")
    assert check(cann.prepare(made).model, target="cann").ok
    onnx.checker.check_model(cann.prepare(made).model, full_check=True)


def test_an_old_version_of_the_operators_is_refused_with_the_way_out():
    with pytest.raises(PrepareError, match=r"Expand needs version >= 8 .* got 7: export the model with a newer one"):
        cann.prepare(two(imports='"" : 7'))


def test_an_attention_like_model_serves_with_our_nodes(tmp_path, capsys):
    """What `--target cann` asked people to edit by hand: a position mask made of two ranges."""
    made = parsed(
        compress(
            x="100, 4, 16",
            y="3, 4, 16",
            seq=[40, 100],
            before=["rows = Neg (column)", "mask = Sub (rows, row)"],
            outputs=["float[3, 5] mask"],
        ).replace("model (", "model (float[3, 1] column, float[1, 5] row, ", 1)
    )
    source, target = tmp_path / "m.onnx", tmp_path / "p.onnx"
    onnx.save(made, source)
    assert main(["check", str(source), "--target", "cann"]) == 1
    assert main(["prepare", str(source), "-o", str(target), "--target", "cann"]) == 0
    assert main(["check", str(target), "--target", "cann"]) == 0
    assert "gave an input its full shape" in capsys.readouterr().out
    x, w = numbers(100, 4, 16).astype(np.float16), numbers(32, 4).astype(np.float16)
    feeds = {"x": x, "w": w, "column": numbers(3, 1), "row": numbers(1, 5)}
    before, after = outputs(made, **feeds), outputs(onnx.load(target), **feeds)
    assert oracle.same_bits(before[0], after[0])
    assert before[1].tobytes() == after[1].tobytes()


# --------------------------------------------------------------------------------------------------
# The command


def test_prepare_atc_is_another_name(tmp_path):
    source = tmp_path / "m.onnx"
    onnx.save(models.infer(table=None), source)
    for name, line in (("a", ["prepare", "--target", "atc"]), ("b", ["prepare-atc"])):
        assert main([*line, str(source), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_option_of_another_target_is_refused(tmp_path, capsys):
    source = tmp_path / "m.onnx"
    onnx.save(models.compress([40, 100]), source)
    line = ["prepare", str(source), "-o", str(tmp_path / "o"), "--target", "cann", "--converter-only"]
    assert main(line) == 2
    assert "--converter-only is nothing that target cann knows" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_what_the_rules_say_of_the_way_out_works():
    for rule in RULES.values():
        for name in re.findall(r"nsa-onnx prepare --target (\S+)", rule.hint):
            assert TARGETS[name].prepare is not None


def test_preparing_takes_time_in_proportion_to_the_model():
    """20 000 nodes that broadcast both inputs: looking through all nodes or names for each would take minutes."""
    count = 20_000
    body = "\n".join(f"y{i} = Sub (a, b)" for i in range(count))
    made = parsed(f"""<ir_version: 10, opset_import: ["" : 18]> g (float[T, 1] a, float[1, N] b) => (float[R, S] y0)
        {{ {body} }}""")
    begin = time.process_time()
    prepared = cann.prepare(made)
    assert time.process_time() - begin < 20
    assert sum(node.op_type == "Expand" for node in prepared.model.graph.node) == count
