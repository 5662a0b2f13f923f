"""NSA022, NSA023, NSA027, NSA029: what each node allows, and what the model cannot mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from onnx import NodeProto

from ...analysis import Analysis, NsaNode
from ...operators import OPERATORS
from ...operators.base import Input, Lengths
from ...operators.contract import DOMAIN, listed
from ...operators.facts import NodeFacts
from ...operators.model_text import model
from ...rulebook.finding import Finding, Severity
from ...rulebook.rule import connected, finding, made_by, note, op_types, ours, sound, taking
from .registry import general

# Operators whose result may be empty, for all that is known of a node of which nothing is known.
_MAY_BE_EMPTY = op_types(lambda operator: operator.may_be_empty(NodeFacts(operator.op_type, {}, {})))


@general(
    "NSA022",
    "some window is complete",
    severity=Severity.WARNING,
    documentation=f"""T' of {listed(_MAY_BE_EMPTY)} is not 0: some segment is at least as long as a window.

    An empty result is legal, and [0, N, D] is what it then is, but as a constant it is rarely meant.
    """,
    hint="pad the segments, or leave the node out for such short ones; check the block's size",
)
def _no_rows(model: Analysis) -> Iterator[Finding]:
    for node, operator, facts in ours(sound(model.nodes)):
        if (told := operator.empty_because(facts)) is not None:
            argument, reason = told
            yield finding(node, f"T' = 0: {reason}", argument)


# --------------------------------------------------------------------------------------------------
# Lengths and prefix sums

_PREFIX_SUMS, _LENGTHS = taking(Lengths.PREFIX_SUMS), taking(Lengths.LENGTHS)


@dataclass(frozen=True)
class _Taken:
    """Lengths of a node, in whichever form."""

    node: NsaNode
    facts: NodeFacts
    input: Input

    @property
    def value(self) -> str:
        """The name of what is connected; empty if nothing is."""
        index = OPERATORS[self.node.op_type].inputs.index(self.input)
        return str(self.node.proto.input[index]) if connected(self.node, self.input.name) else ""

    def finding(self, message: str) -> Finding:
        return finding(self.node, f"{self.input.name} {message}", self.input.name)


def _taken(model: Analysis, form: Lengths) -> list[_Taken]:
    return [
        _Taken(node, facts, one)
        for node, operator, facts in ours(model.nodes)
        for one in operator.inputs
        if one.lengths is form
    ]


@general(
    "NSA023",
    "lengths and prefix sums are not mixed up",
    severity=Severity.WARNING,
    documentation=f"{listed(_PREFIX_SUMS, 'get')} prefix sums and {listed(_LENGTHS, 'get')} lengths, as far as the "
    "model shows it.\n\n"
    "It shows otherwise where one value (or equal constants) of several sequences feeds both operators, where CumSum\n"
    f"makes the lengths of {listed(_LENGTHS)} or takes what {listed(_PREFIX_SUMS, 'get')}, and where constant lengths "
    "would need more\npages than there are while their differences would not.",
    hint=f"{listed(_PREFIX_SUMS, 'take')} prefix sums of the lengths, {listed(_LENGTHS)} the lengths themselves",
)
def _mixed(model: Analysis) -> Iterator[Finding]:
    sums = _taken(model, Lengths.PREFIX_SUMS)
    prefix_sums = {key: one.node for one in sums for key in _identities(one)}
    for one in _taken(model, Lengths.LENGTHS):
        other = next((prefix_sums[key] for key in _identities(one) if key in prefix_sums), None)
        if other is not None and _several(one):
            yield one.finding(f"is also that of {other.op_type} {other.name!r}, which takes it for prefix sums")
        elif (maker := _maker(one)) is not None and maker.op_type == "CumSum":
            yield one.finding("comes from CumSum, so it holds prefix sums and not lengths")
        else:
            yield from _too_many_pages(one)
    summed = _summed(model) if sums else set()
    for one in sums:
        if _several(one) and any(key in summed for key in _identities(one)):
            yield one.finding("is also summed up by CumSum, so it holds lengths and not prefix sums")


def _identities(taken: _Taken) -> Iterator[object]:
    """By what the lengths of two nodes are recognized as the same: the value, and the numbers."""
    if name := taken.value:
        yield id(taken.node.scope.home(name)), name
        if (constant := taken.facts.constants.get(taken.input.name)) is not None:
            yield constant.tobytes()


def _several(taken: _Taken) -> bool:
    """Whether there may be more than one sequence: the lengths of a single one are its prefix sums."""
    return taken.facts.tensor(taken.input.name).dim(0) not in (0, 1)


def _maker(taken: _Taken) -> NodeProto | None:
    """The node that computes the lengths, seen through those that only change type or shape."""
    found = made_by(taken.node.scope, taken.value, ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"))
    return None if found is None else found[0].producer(found[1])


def _summed(model: Analysis) -> set[object]:
    nodes = ((scope, node) for scope in model.scopes for node in scope.nodes if node.op_type == "CumSum")
    return {(id(scope.home(name)), name) for scope, node in nodes for name in node.input[:1]}


def _too_many_pages(taken: _Taken) -> Iterator[Finding]:
    values = None if taken.node.violations else taken.facts.vector(taken.input.name)
    tables = OPERATORS[taken.node.op_type].inputs
    for page_size, (pages, axis) in ((one.page_size, one.below) for one in tables if one.page_size and one.below):
        page, there = taken.facts.integer(page_size), taken.facts.tensor(pages).dim(axis)
        if values is None or page is None or there is None:
            return
        differences = [end - start for start, end in pairwise([0, *values])]
        needed, if_differences = _pages(values, page), _pages(differences, page)
        if all(one >= 0 for one in differences) and needed > there >= if_differences:
            yield taken.finding(
                f"needs {needed} pages of {page} tokens and {pages} has {there}; as prefix sums, it would stand for "
                f"lengths that need {if_differences}"
            )


def _pages(lengths: Sequence[int], page: int) -> int:
    return sum(-(-length // page) for length in lengths)


# --------------------------------------------------------------------------------------------------
# The rest


@general(
    "NSA027",
    "who imports the domain uses it",
    severity=Severity.WARNING,
    example=model(["float16[2] x"], ["float16[2] y"], ["y = Neg (x)"]),
    accepted=model(["float16[2] x"], ["float16[2] y"], ["y = Neg (x)"], imports=""),
    hint="export with nsa_onnx.exporters.export, which keeps the updates of caches that the model does not return; if "
    "a tool has put the portable bodies in the nodes' places, nsa-onnx fuse takes that back",
)
def _unused(model: Analysis) -> Iterator[Finding]:
    """A model that imports domain nsa_onnx has a node of it.

    Exporters drop what no output depends on: a decode step whose cache the model updates and does not return is gone
    from the file, without a word.
    """
    imported = any(entry.domain == DOMAIN for entry in model.proto.opset_import)
    if imported and not model.nodes and model.proto.graph.node:
        yield note(f"domain {DOMAIN} is imported, and no node is of it")


@general(
    "NSA029",
    "constant slots and pages can be used",
    severity=Severity.WARNING,
    hint="mark what is not used with -1",
)
def _indices(model: Analysis) -> Iterator[Finding]:
    """Constant slots are in range and differ, constant pages are in range, where lengths are not known before a run.

    Such an index is an error in the step in which its sequence writes, and legal in all others. Negative numbers are
    taken for padding. With constant lengths, NSA016 says what is wrong for certain.
    """
    for node, operator, facts in ours(sound(model.nodes)):
        if any(one.lengths and one.name in facts.constants for one in operator.inputs):
            continue
        for one in operator.inputs:
            constant = facts.constants.get(one.name)
            if constant is None or one.below is None:
                continue
            name, axis = one.below
            bound, values = facts.tensor(name).dim(axis), constant.ravel().tolist()
            wrong = next((i for i, value in enumerate(values) if bound is not None and value >= bound), None)
            if wrong is not None:
                index = ", ".join(map(str, np.unravel_index(wrong, constant.shape)))
                yield finding(node, f"{one.name}[{index}] should be < {bound}, got {values[wrong]}", one.name)
            if one.distinct:
                yield from _duplicate(node, one.name, values)


def _duplicate(node: NsaNode, name: str, indices: Sequence[int]) -> Iterator[Finding]:
    first: dict[int, int] = {}
    for b, index in enumerate(indices):
        if index >= 0 and index in first:
            yield finding(node, f"{name}[{b}] should differ from {name}[{first[index]}], got {index}", name)
            return
        first.setdefault(index, b)
