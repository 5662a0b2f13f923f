"""Portable models: `expand` adds bodies in standard operators to a model's NSA nodes, as model-local functions.

The model then runs in any ONNX runtime, without our library. Where the library is loaded, onnxruntime prefers its
kernels to a function of the same name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from ..graph.walk import standard_opset, subgraphs
from . import OPERATORS
from .contract import DOMAIN, OPSET_VERSION
from .copies import copies

# For a model of nothing but our nodes, which imports no standard operators.
DEFAULT_OPSET = 18
# Functions came with IR version 8.
MIN_IR = 8


def expand(model: ModelProto) -> ModelProto:
    """A copy of the model that also runs without our library: the bodies of its NSA operators are added.

    The nodes stay what they are. A node that leaves out ``block_table`` gets the table that this stands for,
    computed by standard nodes before it, because a function cannot ask whether an input is there. Nodes that call a
    renamed copy of a body get their operator back. Expanding again changes nothing.

    Raises:
        ValueError: opset too old, the domain's version missing or unknown, an operator of the domain that is not
            ours, a node without an attribute or input that it needs. The message names the node.
    """
    result = ModelProto()
    result.CopyFrom(model)
    opset = standard_opset(result.opset_import)
    _call_by_name(result)
    scopes = list(_scopes(result))
    used = {node.op_type for scope in scopes for node in scope.nodes if node.domain == DOMAIN}
    if not used:
        return result
    for scope in scopes:
        _require_sound(scope)
    if opset is None:
        opset = DEFAULT_OPSET
        result.opset_import.add(domain="", version=opset)
    bodies = [OPERATORS[op_type].body(opset) for op_type in sorted(used)]
    _complete(scopes, opset)
    result.ir_version = max(result.ir_version, MIN_IR)
    ours = {(DOMAIN, op_type) for op_type in used}
    others = [function for function in result.functions if (function.domain, function.name) not in ours]
    del result.functions[:]
    # First, since some runtimes read functions in order and a function of the model may call them.
    result.functions.extend([*bodies, *others])
    return result


def _call_by_name(model: ModelProto) -> None:
    """Give nodes that call a copy of a body the operator that it is, and drop the copies."""
    renamed = copies(model)
    if not renamed:
        return
    kept = [one for one in model.functions if (one.domain, one.name) not in renamed]
    del model.functions[:]
    model.functions.extend(kept)
    for scope in _scopes(model):
        for node in scope.nodes:
            op_type = renamed.get((node.domain, node.op_type))
            if op_type is None:
                continue
            node.domain, node.op_type = DOMAIN, op_type
            if not any(entry.domain == DOMAIN for entry in scope.owner.opset_import):
                scope.owner.opset_import.add(domain=DOMAIN, version=OPSET_VERSION)


@dataclass(frozen=True)
class _Scope:
    """The nodes of a graph, a subgraph or a function, and the imports that hold for them."""

    nodes: Any  # protobuf's repeated container of NodeProto, changed in place
    values: tuple[str, ...]
    owner: ModelProto | FunctionProto


def _scopes(model: ModelProto) -> Iterator[_Scope]:
    for function in model.functions:
        # A body of ours is replaced, whatever it is.
        if function.domain == DOMAIN and function.name in OPERATORS:
            continue
        yield from _with_subgraphs(_Scope(function.node, (*function.input, *function.output), function))
    yield from _with_subgraphs(_Scope(model.graph.node, _value_names(model.graph), model))


def _with_subgraphs(top: _Scope) -> Iterator[_Scope]:
    pending = [top]
    while pending:
        scope = pending.pop()
        yield scope
        for node in scope.nodes:
            pending.extend(_Scope(graph.node, _value_names(graph), scope.owner) for graph in subgraphs(node))


def _value_names(graph: GraphProto) -> tuple[str, ...]:
    return tuple(value.name for value in (*graph.input, *graph.initializer))


def _require_sound(scope: _Scope) -> None:
    """ValueError for what a function body would not notice: runtimes give an empty result, or none."""
    versions = [entry.version for entry in scope.owner.opset_import if entry.domain == DOMAIN]
    for node in scope.nodes:
        if node.domain != DOMAIN:
            continue
        where = f"node {node.name!r} ({node.op_type})"
        if node.op_type not in OPERATORS:
            raise ValueError(f"{where}: domain {DOMAIN} has no such operator, only {', '.join(OPERATORS)}")
        if set(versions) != {OPSET_VERSION}:
            raise ValueError(f"{where}: version {OPSET_VERSION} of domain {DOMAIN} must be imported")
        operator = OPERATORS[node.op_type]
        given = {attribute.name for attribute in node.attribute}
        missing = [name for name in sorted(operator.attribute_names) if name not in given]
        connected = [name != "" for name in node.input] + [False] * len(operator.inputs)
        required = zip(operator.inputs, connected, strict=False)
        missing += [one.name for one, there in required if not there and not one.optional]
        if missing:
            raise ValueError(f"{where}: {missing[0]} is required and missing")


def _complete(scopes: list[_Scope], opset: int) -> None:
    """Give every node the optional inputs that a body cannot be without (`Operator.completion`)."""
    taken = {name for scope in scopes for name in scope.values}
    taken.update(name for scope in scopes for node in scope.nodes for name in (*node.output, node.name))
    taken = {name for name in taken if isinstance(name, str)}  # protobuf gives text that is not UTF-8 as bytes
    number = 0
    for scope in scopes:
        for node in [node for node in scope.nodes if node.domain == DOMAIN]:
            prefix = f"nsa_onnx_{number}_"
            while any(name.startswith(prefix) for name in taken):
                number += 1
                prefix = f"nsa_onnx_{number}_"
            made = OPERATORS[node.op_type].completion(node, prefix, opset)
            if not made:
                continue
            number += 1
            if standard_opset(scope.owner.opset_import) is None:  # a function of nothing but our nodes
                scope.owner.opset_import.add(domain="", version=opset)
            at = next(index for index, other in enumerate(scope.nodes) if other is node)
            for offset, one in enumerate(made):
                scope.nodes.insert(at + offset, one)
            connect(node, prefix, {name for one in made for name in one.output})


def connect(node: NodeProto, prefix: str, made: set[str]) -> None:
    """Give a node the inputs of its schema that it lacks and that have been made, as ``prefix`` and their name."""
    names = [*node.input]
    for index, formal in enumerate(OPERATORS[node.op_type].input_names):
        names += [""] * (index + 1 - len(names))
        if not names[index] and prefix + formal in made:
            names[index] = prefix + formal
    while names and not names[-1]:
        names.pop()
    node.input[:] = names
