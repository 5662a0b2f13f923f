"""Operators that are only put into the list are checked by every rule: no rule knows which operator it has."""

import json
import subprocess
import sys

import pytest

# Of each operator, another one of the same kind, which nothing but the list names. In a process of its own: schemas
# and rules are made from the list when they are imported.
SCRIPT = """
import json
from dataclasses import replace

from nsa_onnx import operators

others = {}
for op_type, operator in list(operators.OPERATORS.items()):
    name = f"Other{op_type}"
    own = {
        "contract": replace(operator.contract, op_type=name),
        "body_text": operator.body_text.replace(op_type, name),
        "rule_examples": {},
        "pattern": None,
    }
    others[op_type] = name
    operators.OPERATORS[name] = type(name, (type(operator),), own)()

import onnx.parser

from nsa_onnx.checker import RULES, check

def found(text):
    return sorted({finding.rule for finding in check(onnx.parser.parse_model(text)).findings})

results = []
for op_type, name in others.items():
    for rule, (triggers, accepted) in operators.OPERATORS[op_type].rule_examples.items():
        for expected, text in ((True, triggers), (False, accepted)):
            if text:
                results.append((rule, name, expected, found(text), found(text.replace(op_type, name))))
print(json.dumps({"results": results, "words": {rule.id: rule.documentation for rule in RULES.values()}}))
"""


@pytest.fixture(scope="module")
def told():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_rule_finds_the_same_of_another_operator(told):
    # Where the model is in standard operators, nothing is replaced; NsaCompres is no name of the other's.
    assert len(told["results"]) > 50
    for rule, name, expected, own, other in told["results"]:
        assert own == other, (rule, name)
        assert (rule in own) == expected, (rule, name)


def test_rules_name_the_operators_that_they_hold_for(told):
    words = told["words"]
    assert "holds NsaCompress, NsaCompressInfer, OtherNsaCompress and OtherNsaCompressInfer" in words["NSA003"]
    assert words["NSA015"].startswith("NsaCompress and OtherNsaCompress take prefix sums")
    assert "The cache that NsaCompressInfer and OtherNsaCompressInfer return" in words["NSA024"]
    assert words["NSA010"].endswith("at most 128 in prefill, at most 63 in decode.")
