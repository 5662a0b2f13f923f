"""What the vendor's attention operators do not take, found in models: every limit, on both sides of it.

Each limit is that of ops-transformer; tests/sim_cann/attention.py shows that our library and the simulated vendor
refuse the same calls.
"""

import onnx.parser
import pytest

from nsa_onnx.checker import check
from nsa_onnx.operators.nsa_compress_attention.rule_examples import attention
from nsa_onnx.operators.nsa_compress_attention_infer.rule_examples import attention_step
from nsa_onnx.operators.nsa_selected_attention.rule_examples import select
from nsa_onnx.operators.nsa_selected_attention_infer.rule_examples import select_step
from nsa_onnx.targets import vendor_attention as vendor
from nsa_onnx.targets.atc import prepare_atc
from nsa_onnx.targets.preparing import PrepareError

# A node within all limits, and what is changed in its text to leave one of them: the words of the finding.
COMPRESS = attention(
    q="100, 4, 32",
    k="20, 2, 32",
    v="20, 2, 16",
    y="100, 4, 16",
    topk="100, 2, 2",
    ends=(40, 100),
    tokens=(8, 20),
    blocks=(2, 5),
)
STEP = attention_step(lengths=[7, 150])
SELECT = select(
    q="40, 4, 192", k="192, 2, 192", v="192, 2, 128", y="40, 4, 128", topk="40, 2, 2", ends=(10, 40), key_ends=(64, 192)
)
SELECT_STEP = select_step(
    q="2, 4, 192", k="6, 64, 1, 192", v="6, 64, 1, 128", topk="2, 1, 2", y="2, 4, 128", lengths=[60, 130]
).replace("key_value_head_num = 2", "key_value_head_num = 1")
WITHIN = {"compress": COMPRESS, "compress step": STEP, "select": SELECT, "select step": SELECT_STEP}

BEYOND = {
    "stride": (
        COMPRESS,
        {
            "stride = 16": "stride = 80",
            "block_size = 32": "block_size = 80",
            "size = 64": "size = 80",
            "{2, 5}": "{8, 20}",
        },
        "NSA011",
    ),
    "count": (COMPRESS, {"count = 2": "count = 33", "int32[100, 2, 2]": "int32[100, 2, 33]"}, "NSA011"),
    "group": (COMPRESS, {"num = 4": "num = 6", "[100, 4": "[100, 6"}, "NSA010"),
    "few blocks": (COMPRESS, {"{8, 20}": "{4, 20}", "{2, 5}": "{1, 5}"}, "NSA052"),
    "no tokens": (COMPRESS, {"{8, 20}": "{20, 20}", "{2, 5}": "{5, 5}"}, "NSA051"),
    "step head dim": (STEP, {"4, 32] q": "4, 208] q", "2, 32] k": "2, 208] k"}, "NSA009"),
    "step page": (
        STEP,
        {"64, 2, 32": "144, 2, 32", "64, 2, 16": "144, 2, 16", "page_block_size = 64": "page_block_size = 144"},
        "NSA012",
    ),
    "step no tokens": (STEP, {"{7, 150}": "{0, 150}"}, "NSA051"),
    "step few blocks": (STEP, {"{7, 150}": "{1, 150}"}, "NSA052"),
    "select head dim": (SELECT, {"192] q": "256] q", "192] k": "256] k"}, "NSA009"),
    "select value dim": (SELECT, {"128] v": "64] v", "128] y": "64] y"}, "NSA009"),
    "select partial block": (SELECT, {"{64, 192}": "{70, 192}"}, "NSA052"),
    "select no queries": (SELECT, {"{10, 40}": "{40, 40}"}, "NSA051"),
    "select scale": (SELECT, {"scale_value = 0.25": "scale_value = -0.25"}, "NSA054"),
    "select step heads": (
        SELECT_STEP,
        {"head_num = 4": "head_num = 257", "key_value_head_num = 1": "key_value_head_num = 257"}
        | {"[2, 4,": "[2, 257,", "64, 1,": "64, 257,", "int32[2, 1, 2]": "int32[2, 257, 2]"},
        "NSA049",
    ),
    "select step page": (
        SELECT_STEP,
        {"64, 1, 192": "96, 1, 192", "64, 1, 128": "96, 1, 128", "page_block_size = 64": "page_block_size = 96"},
        "NSA012",
    ),
    "select step few tokens": (SELECT_STEP, {"{60, 130}": "{60, 63}"}, "NSA052"),
}


def rules(text, target):
    return {finding.rule for finding in check(onnx.parser.parse_model(text), target=target).findings}


def changed(text, changes):
    for before, after in changes.items():
        assert before in text, (before, text)
        text = text.replace(before, after)
    return text


@pytest.mark.parametrize("name", WITHIN)
@pytest.mark.parametrize("target", ["cann", "cann-aclnn"])
def test_a_node_within_the_limits_has_no_finding(name, target):
    assert rules(WITHIN[name], target) - {"NSA035"} == rules(WITHIN[name], "cpu")


@pytest.mark.parametrize("name", BEYOND)
@pytest.mark.parametrize("target", ["cann", "cann-aclnn"])
def test_a_node_beyond_a_limit_has_one_with_a_way_out(name, target):
    text, changes, rule = BEYOND[name]
    made = changed(text, changes)
    assert rule not in rules(made, "cpu"), "the contract takes it"
    (finding,) = [one for one in check(onnx.parser.parse_model(made), target=target).findings if one.rule == rule]
    assert "for the vendor's" in finding.message
    assert finding.hint or rule < "NSA049", "the contract's rules name the bound"


@pytest.mark.parametrize("name", WITHIN)
def test_a_converted_graph_has_none_of_the_operators(name):
    model = onnx.parser.parse_model(WITHIN[name])
    (finding,) = [one for one in check(model, target="atc").findings if one.rule == "NSA102"]
    with pytest.raises(PrepareError) as refused:
        prepare_atc(model)
    for said in (finding.message, str(refused.value)):
        assert "the target does not have the operator" in said and "stand in another order" in said


def test_every_operator_has_sizes_for_c_plus_plus():
    assert list(vendor.SIZES) == list(vendor.OPERATORS)
