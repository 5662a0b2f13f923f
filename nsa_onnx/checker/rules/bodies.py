"""Rules NSA020, NSA026 and NSA043: our operators' portable bodies (functions of standard nodes), and their copies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from onnx import FunctionProto

from ...analysis import Analysis
from ...graph.walk import node_name, standard_opset, text
from ...operators.bodies import MIN_OPSET
from ...operators.contract import DOMAIN, plural
from ...operators.copies import copies, is_body, is_operator
from ...rulebook.finding import Finding, Severity
from ...rulebook.rule import note
from .registry import general


def _bodies(model: Analysis) -> Iterator[FunctionProto]:
    return (f for f in model.proto.functions if is_operator(f))


def _place(function: FunctionProto) -> str:
    return f"function {function.domain}.{function.name}"


@general(
    "NSA020",
    "a portable body has the model's opset",
    hint="nsa-onnx expand writes the bodies anew, for the model's opset",
)
def _opset(model: Analysis) -> Iterator[Finding]:
    """The portable body of an operator imports the same version of the standard operators as the model.

    Runtimes put the body in the node's place, where the model's version decides what its operators mean.
    """
    wanted = standard_opset(model.proto.opset_import)
    for function in _bodies(model):
        got = standard_opset(function.opset_import)
        if got != wanted:
            message = f"the portable body of {function.name} imports opset {got}, the model imports {wanted}"
            yield note(message, place=_place(function))


@general(
    "NSA026",
    "a portable body is ours",
    severity=Severity.WARNING,
    hint="nsa-onnx expand puts in the body of this version",
)
def _ours(model: Analysis) -> Iterator[Finding]:
    """The portable body of an operator is what `nsa-onnx expand` writes. Tools may reorder its nodes, rename its values
    and spell its constants in another way; what it computes is compared, node by node.

    Another body may be of another version of nsa_onnx, or anybody's: a runtime without our library computes what it
    says, and one with our library does not. This is not proven wrong, but nothing here has checked that it is right.
    """
    for function in _bodies(model):
        opset = standard_opset(function.opset_import)
        if opset is None or opset < MIN_OPSET:
            message = f"the portable body of {function.name} imports opset {opset}, ours need at least {MIN_OPSET}"
            yield note(message, place=_place(function))
        elif not is_body(function.name, function):
            yield note(f"the portable body of {function.name} differs from ours", place=_place(function))


@general(
    "NSA043",
    "our operators have their own names",
    severity=Severity.WARNING,
    hint="a function of your own belongs in a domain of your own; if a tool has renamed ours, export again",
)
def _renamed(seen: Analysis) -> Iterator[Finding]:
    """No function is a copy of the portable body of an operator under another name, or is in our domain for another
    reason.

    Tools that merge models put prefixes to functions and to the nodes that call them (`onnx.compose.add_prefix`,
    `merge_models`). Such a model still computes the same, but by the body: no kernel of ours runs, which is many times
    slower. `nsa-onnx expand` gives the nodes of a copy their operator back.
    """
    renamed = copies(seen.proto)
    calls = defaultdict(list)
    for scope in seen.scopes:
        for index, step in enumerate(scope.steps if seen.proto.functions else ()):
            calls[step.op].append((scope, index, step.node))
    for function in seen.proto.functions:
        key = (function.domain, function.name)
        op_type = renamed.get(key)
        if op_type is None and (function.domain != DOMAIN or is_operator(function)):
            continue
        first = calls[key][0] if calls[key] else None
        called = f"{text(function.domain)}.{text(function.name)}"
        message = f"function {called!r} is neither an operator of ours nor a copy of one's portable body"
        if op_type is not None:
            message = f"function {called!r} is the portable body of {op_type} under another name: no kernel runs for it"
        yield note(
            f"{message} ({plural(len(calls[key]), 'node')})",
            node="" if first is None else node_name(first[2], first[1]),
            op_type="" if first is None else text(first[2].op_type),
            place=_place(function) if first is None else first[0].place,
            hint="" if op_type is None else "nsa-onnx expand gives the nodes their operator back",
        )
