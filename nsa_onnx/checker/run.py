"""``check --run``: runs each NSA node on generated input and compares the result with a float64 reference.

A node is taken out of its model and run in onnxruntime, with our library, on the CPU. What the model says about its
inputs is kept: types, shapes, constant lengths and indices. The rest is generated so that it is valid. The reference
is written from the operator's definition alone, so that it does not repeat a mistake of the kernels.

The allowed difference: the definition asks for float32 sums in order, then one rounding. A sum of n float32 terms is
off by at most ``gamma * sum(|terms|)``, gamma = n u / (1 - n u), u = 2^-24 (N. Higham, Accuracy and Stability of
Numerical Algorithms, 4.2; the products are exact). Rounding is monotonic, so the result lies between the two ends of
that interval, rounded. A kernel that sums in another order, in float32 at least, passes as well.

onnxruntime is imported when the first node is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from ..analysis import Analysis
from ..operators import OPERATORS
from ..operators.base import Attribute, Attributes, NotRunError, Operator, Output, Sample, T
from ..operators.contract import DOMAIN, OPSET_VERSION
from ..operators.facts import NodeFacts
from ..operators.numbers import Floats
from ..operators.results import Wanted
from ..rulebook.finding import Finding, Severity
from ..runtime.session import create_session, session_options
from .report import NodeRun
from .rules import RULES
from .rules.running import COMPUTES

# Different nodes of one model that are run; a real model repeats a few.
MAX_NODES = 256


class RunUnavailableError(RuntimeError):
    """Nodes cannot be run on this machine; the message says what is missing."""


@dataclass(frozen=True)
class _Outcome:
    """Of one run: distance from the reference and what is wrong, or None and why it was not run."""

    ulps: int | None
    note: str
    problem: str = ""


def require_onnxruntime() -> None:
    """Raise RunUnavailableError if nodes cannot be run here."""
    try:
        session_options()
    except RuntimeError as error:
        raise RunUnavailableError(str(error)) from error


def run_nodes(model: Analysis, found: Sequence[Finding]) -> tuple[tuple[NodeRun, ...], tuple[Finding, ...]]:
    """Run each NSA node that has no error.

    Args:
        found: what the rules have found.

    Returns:
        What came of each node, and findings of rule NSA100.

    Raises:
        RunUnavailableError: onnxruntime or our library is missing.
    """
    require_onnxruntime()
    errors = {(finding.node, finding.place) for finding in found if finding.severity is Severity.ERROR}
    runs: list[NodeRun] = []
    findings: list[Finding] = []
    known: dict[object, _Outcome] = {}
    for node in model.nodes:
        if (node.name, node.scope.place) in errors or node.facts is None:
            outcome = _Outcome(None, "it has errors")
        else:
            key = _identity(node.facts)
            if key not in known and len(known) < MAX_NODES:
                known[key] = _run(node.facts)
            outcome = known.get(key) or _Outcome(None, f"{MAX_NODES} other nodes were run")
        runs.append(NodeRun(node.name, node.op_type, node.scope.place, outcome.ulps, outcome.note))
        if outcome.problem:
            message = f"{outcome.problem} ({outcome.note})"
            rule = RULES[COMPUTES]
            place = node.scope.place
            findings.append(Finding(rule.id, rule.severity, message, node.name, node.op_type, "", place, rule.hint))
    return tuple(runs), tuple(findings)


def _identity(facts: NodeFacts) -> object:
    """Nodes that are alike are run once."""
    constants = tuple((name, value.shape, value.tobytes()) for name, value in sorted(facts.constants.items()))
    inputs = tuple(sorted(facts.inputs.items(), key=lambda item: item[0]))
    attributes = tuple(facts.number(name) for name in OPERATORS[facts.op_type].attribute_names)
    return facts.op_type, attributes, inputs, constants


def _run(facts: NodeFacts) -> _Outcome:
    operator = OPERATORS[facts.op_type]
    try:
        attributes = {one.name: _attribute(facts, one) for one in operator.attributes}
        made = operator.sample(facts, attributes)
    except NotRunError as error:
        return _Outcome(None, str(error))
    exact = operator.reference(made.values, attributes)
    try:
        got = _compute(operator, _model(operator, attributes, made), made.values)
    except Exception as error:  # onnxruntime has classes of its own
        return _Outcome(None, made.note, f"onnxruntime does not run it: {(str(error).splitlines() or ['?'])[0]}")
    outcomes = list(map(_compared, operator.outputs, got, exact, repeat(made)))
    wrong = next((outcome for outcome in outcomes if outcome.problem), None)
    return wrong or _Outcome(max(one.ulps for one in outcomes if one.ulps is not None), made.note)


def _attribute(facts: NodeFacts, attribute: Attribute) -> int | float:
    value = facts.number(attribute.name)
    if value is None:
        raise NotRunError(f"{attribute.name} is set by the caller of its function")
    return value


def _compared(output: Output, got: Floats, wanted: Wanted, made: Sample) -> _Outcome:
    verdict = wanted.judge(output.name, got, output.dtype(made.dtype))
    return _Outcome(verdict.ulps, made.note, verdict.problem)


# --------------------------------------------------------------------------------------------------
# onnxruntime

_ELEMENT_TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def _model(operator: Operator, attributes: Attributes, made: Sample) -> ModelProto:
    """The node alone. Its floats come and go as float32, which holds them exactly: NumPy has no bfloat16."""
    node = helper.make_node(operator.op_type, [], [], domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    before, inputs, after, outputs = [], [], [], []
    for name in operator.input_names:
        if name not in made.values:
            node.input.append("")
            continue
        value, floats = made.values[name], name in operator.float_inputs
        element = TensorProto.FLOAT if floats else helper.np_dtype_to_tensor_dtype(value.dtype)
        inputs.append(helper.make_tensor_value_info(name, element, value.shape))
        half = f"{name}_16"
        if floats:
            node.input.append(half)
            before.append(helper.make_node("Cast", [name], [half], to=_ELEMENT_TYPES[made.dtype]))
        else:
            node.input.append(name)
    for one in operator.outputs:
        half = f"{one.name}_16"
        if one.type == T:
            node.output.append(half)
            after.append(helper.make_node("Cast", [half], [one.name], to=TensorProto.FLOAT))
        else:
            node.output.append(one.name)
        element = helper.np_dtype_to_tensor_dtype(np.dtype(one.dtype("float32")))
        outputs.append(helper.make_tensor_value_info(one.name, element, None))
    graph = helper.make_graph([*before, node, *after], "node", inputs, outputs)
    # Old enough for every onnxruntime that we support.
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OPSET_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _compute(operator: Operator, model: ModelProto, values: Mapping[str, npt.NDArray[Any]]) -> list[Floats]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is told by the exception
    session = create_session(model, device="cpu", options=options)
    floats = operator.float_inputs
    feeds = {name: value.astype(np.float32) if name in floats else value for name, value in values.items()}
    return [np.asarray(output).astype(np.float64) for output in session.run(None, feeds)]
