"""Operators that are only put into the list are checked by every rule: no rule knows which operator it has.

Targets are the exception: what a target has is in its own list, and it says what it does not have.
"""

import json
import subprocess
import sys

import pytest

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.base import Lengths
from nsa_onnx.operators.contract import listed
from nsa_onnx.targets import TARGETS

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

from nsa_onnx.checker import RULES, TARGETS, check
from nsa_onnx.targets.preparing import PrepareError

def found(text):
    return sorted({finding.rule for finding in check(onnx.parser.parse_model(text)).findings})

results = []
for op_type, name in others.items():
    for rule, (triggers, accepted) in operators.OPERATORS[op_type].rule_examples.items():
        for expected, text in ((True, triggers), (False, accepted)):
            if text:
                results.append((rule, name, expected, found(text), found(text.replace(op_type, name))))
def sound(op_type):
    examples = [one.accepted for one in operators.OPERATORS[op_type].rule_examples.values()]
    return next(text for text in examples if op_type in text and check(onnx.parser.parse_model(text)).ok)

missing = []
for op_type, name in others.items():
    made = onnx.parser.parse_model(sound(op_type).replace(op_type, name))
    for target in TARGETS.values():
        said = [finding.message for finding in check(made, target=target.name).findings if finding.rule == "NSA102"]
        try:
            refused = "" if target.prepare is None else str(target.prepare(made, folder=None) and "")
        except PrepareError as error:
            refused = str(error)
        missing.append((target.name, name, said, refused))
words = {rule.id: rule.documentation for rule in RULES.values()}
print(json.dumps({"missing": missing, "results": results, "words": words}))
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
    names = [*OPERATORS, *(f"Other{op_type}" for op_type in OPERATORS)]
    assert f"holds {listed(names)}" in " ".join(words["NSA003"].split())
    own = {name: OPERATORS[name.removeprefix("Other")] for name in names}
    sums = [name for name in names if any(one.lengths is Lengths.PREFIX_SUMS for one in own[name].inputs)]
    assert "OtherNsaCompress" in sums
    assert " ".join(words["NSA015"].split()).startswith(f"{listed(sums, 'take')} prefix sums")
    assert "The cache that NsaCompressInfer and OtherNsaCompressInfer return" in words["NSA024"]
    assert "at most 128 in prefill, at most 63 in decode." in words["NSA010"]


def test_a_target_says_that_it_does_not_have_an_operator(told):
    assert len(told["missing"]) > 5
    for target, name, said, refused in told["missing"]:
        message = f"the target does not have the operator {name}, only {{}}"
        there = TARGETS[target].limits
        message = message.format(listed(list(there)) if there else "")
        everything = target in ("cpu", "portable")
        assert said == ([] if everything else [message]), target
        assert refused.count(message) == (0 if everything else 1), (target, refused)
