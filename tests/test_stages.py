"""Rules on what the stages of a layer hand on and see, and what explain draws of them."""

import re
from itertools import accumulate, pairwise

import numpy as np
import onnx.parser
import pytest

from nsa_onnx import check
from nsa_onnx.explain import explain
from nsa_onnx.graph.tensors import TensorFacts, Unknown
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.facts import NodeFacts
from nsa_onnx.operators.model_text import integers
from nsa_onnx.operators.nsa_compress_attention.rule_examples import attention
from nsa_onnx.operators.nsa_compress_attention_infer.rule_examples import attention_step
from nsa_onnx.operators.nsa_selected_attention.rule_examples import RULE_EXAMPLES, select
from nsa_onnx.operators.nsa_selected_attention_infer.rule_examples import select_step


def found(text, rule):
    return [finding.message for finding in check(onnx.parser.parse_model(text)).findings if finding.rule == rule]


def masked(hidden, ends, tokens):
    """Prefill with a constant atten_mask, its rows as strings of 0 and 1; windows of 32 tokens."""
    values = [int(bit) for row in hidden for bit in row]
    shape = f"{len(hidden)}, {len(hidden[0])}"
    made = attention(
        q=f"{ends[-1]}, 4, 32",
        y=f"{ends[-1]}, 4, 16",
        topk=f"{ends[-1]}, 2, 2",
        k=f"{tokens[-1]}, 2, 32",
        v=f"{tokens[-1]}, 2, 16",
        ends=ends,
        tokens=tokens,
        blocks=list(accumulate(-(-(end - start) // 4) for start, end in pairwise((0, *tokens)))),
        masks=[shape],
    )
    constant = integers("hidden", values, "bool", shape)
    return made.replace(f"bool[{shape}] hidden", "bool unused").replace("<int64", f"<{constant}, int64", 1)


def test_rows_before_the_first_window_is_complete_may_see_nothing():
    assert found(masked(["11"] * 31 + ["01"] * 2, (33,), (2,)), "NSA048") == []
    assert found(masked(["11"] * 32 + ["01"], (33,), (2,)), "NSA048") == [
        "atten_mask: row 31 sees no token, so the result is an average of all"
    ]
    assert found(masked(["01"] * 31 + ["11"] * 2, (33,), (2,)), "NSA048") == [
        "atten_mask: row 31 and 1 more rows sees no token, so the result is an average of all"
    ]


def test_a_row_is_blind_to_the_tokens_of_its_own_sequence():
    """The second column is not hidden, but the longer sequence alone has a second compressed token."""
    hidden = ["100"] * 40
    assert found(masked(hidden, (40,), (2,)), "NSA048") == []
    (message,) = found(masked(hidden, (40, 50), (1, 3)), "NSA048")
    assert message.startswith("atten_mask: row 31 and 8 more rows")
    # A sequence too short to see anything has no row behind its first window.
    assert found(masked(hidden, (31, 71), (1, 3)), "NSA048") == []


def test_which_constants_tell_the_rows_that_see_nothing():
    operator = OPERATORS["NsaCompressAttention"]
    ends, tokens = np.array([40, 80]), np.array([0, 2])
    hidden = np.ones((40, 2), bool)

    def blind(mask=hidden, block=32, **constants):
        facts = NodeFacts(operator.op_type, {"compress_block_size": block}, {}, constants, {"atten_mask": mask})
        found = operator.blind_rows(facts)
        return found and (found[0], found[1].tolist())

    assert blind() == blind(actual_seq_qlen=ends) == ("atten_mask", list(range(31, 40)))
    assert blind(actual_cmp_seq_kvlen=tokens, block=40) == ("atten_mask", [39])
    # The first sequence has no tokens to see.
    assert blind(actual_seq_qlen=np.array([40, 72]), actual_cmp_seq_kvlen=tokens) == ("atten_mask", [31])
    for nothing in (blind(block=Unknown()), blind(np.zeros((40, 2), bool))):
        assert nothing is None
    assert operator.blind_rows(NodeFacts(operator.op_type, {"compress_block_size": 32}, {})) is None


def test_which_nodes_look_ahead():
    def told(op_type, attributes, inputs=()):
        return OPERATORS[op_type].looks_ahead(NodeFacts(op_type, attributes, dict.fromkeys(inputs, TensorFacts())))

    prefill = "NsaSelectedAttention"
    later = ("causal", "causal = 0, so a query token sees the later tokens of its blocks")
    assert [told(prefill, {"causal": value}) for value in (0, 1, Unknown())] == [later, None, None]
    assert told(prefill, {}) is None
    all_seen = "without atten_mask every query token sees all compressed tokens of its sequence"
    assert told("NsaCompressAttention", {}) == ("atten_mask", all_seen)
    assert told("NsaCompressAttention", {}, ["atten_mask"]) is None


def test_sizes_are_compared_through_nodes_that_change_the_form_only():
    text = RULE_EXAMPLES["NSA046"].triggers
    (message,) = found(text, "NSA046")
    for made, expected in (("Identity (topk)", [message]), ("Neg (topk)", [])):
        changed = text.replace("    [read]", f"    other = {made}\n    [read]").replace("k, v, topk", "k, v, other")
        assert "other, ends" in changed and found(changed, "NSA046") == expected


AGREEING = RULE_EXAMPLES["NSA046"].accepted
SIZE = "select_block_size"
MADE = "topk_indices was made with {} = {} by NsaCompressAttention, got {}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (AGREEING, []),
        (RULE_EXAMPLES["NSA046"].triggers, [MADE.format(SIZE, 64, 128)]),
        (AGREEING.replace(f"{SIZE} = 64", f"{SIZE} = 128", 1), [MADE.format(SIZE, 128, 64)]),
        # What is not there or unknown is for other rules.
        (AGREEING.replace(f"{SIZE} = 64, ", "", 1), []),
        (AGREEING.replace("c, topk = ", "topk = "), []),
        (AGREEING.replace("c, topk = ", "topk, c = "), []),
        (AGREEING.replace("k, v, topk", 'k, v, ""'), []),
    ],
)
def test_stages_agree_in_their_sizes(text, words):
    assert found(text, "NSA046") == words


def test_a_prefill_that_looks_ahead_says_why():
    (told,) = check(onnx.parser.parse_model(RULE_EXAMPLES["NSA047"].triggers)).findings
    assert (told.rule, told.argument, told.node) == ("NSA047", "causal", "nsa")
    assert told.message == "causal = 0, so a query token sees the later tokens of its blocks"
    assert found(RULE_EXAMPLES["NSA047"].accepted, "NSA047") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            attention(tokens=(63, 83), ends=(1000, 1320), blocks=(16, 21)),
            ["1,008 tokens, 2 of 16 blocks", "320 tokens, 2 of 5 blocks", "83 compressed tokens"],
        ),
        (attention_step(lengths=[62, 0]), ["1,008 tokens, 2 of 16 blocks", "always chosen", "62 compressed tokens"]),
        (
            select(ends=(1, 3), key_ends=(100, 130)),
            ["100 tokens, 2 of 4 blocks", "reads at most 2 blocks", "94 tokens"],
        ),
        (attention(), ["1,008 tokens", "320 tokens", "48 tokens", "63 compressed", "20 compressed", "3 compressed"]),
        (
            attention_step(),
            ["1,008 tokens", "336 tokens", "32 tokens", "62 compressed", "20 compressed", "1 compressed"],
        ),
        (attention_step(lengths=[1, 0]), ["32 tokens, 1 of 1 block", "0 tokens, 0 of 0 blocks"]),
        (select(), ["1,000 tokens, 2 of 32 blocks", "320 tokens, 2 of 10", "40 tokens, 2 of 2", "64 tokens"]),
        (select_step(), ["1,000 tokens, 2 of 32 blocks", "320 tokens, 2 of 10", "40 tokens, 2 of 2", "64 tokens"]),
        (select_step(lengths=[100, 20]), ["100 tokens, 2 of 4 blocks", "20 tokens, 1 of 1 block", "84 tokens"]),
    ],
)
def test_the_page_shows_the_blocks_of_each_sequence_and_what_is_read(text, words):
    page = re.sub(r"<[^>]+>", "", explain(onnx.parser.parse_model(text)))
    assert [word for word in words if word not in page] == []


ABSURD = [
    attention_step(lengths=[2**33, 5]),
    attention(tokens=(2**33, 2**34), ends=(1, 2), blocks=(1, 2), stride=2**34),
    attention(tokens=(2**33, 2**34), ends=(1, 2), blocks=(1, 2), stride=2**20),
]


@pytest.mark.parametrize("text", ABSURD, ids=["tokens", "stride", "product"])
def test_a_page_of_absurd_sizes_is_made_at_once_and_draws_nothing(text):
    page = explain(onnx.parser.parse_model(text))
    assert "cannot be drawn" in page or "no size to draw" in page
