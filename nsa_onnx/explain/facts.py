"""Collects what the page shows of each NSA node: neighbours, picture, findings. Makes no HTML."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from onnx import NodeProto

from ..analysis import Analysis, NsaNode
from ..checker import Finding, Report
from ..graph.outline import below
from ..graph.tensors import Unknown, tensor_facts
from ..graph.walk import text
from ..operators import OPERATORS
from ..operators.base import dim_names
from ..operators.pictures import NotDrawnError, Picture, Values
from .neighbours import MAX_ENDS, Edge, Neighbour, Neighbourhood, type_in, type_text

# Nodes that are told about; of more, the page gives the number.
MAX_SUBJECTS = 1000
_MAX_INPUTS = 16


@dataclass(frozen=True)
class Subject:
    """One NSA node with all that the page tells about it.

    Attributes:
        position, total: its place among the nodes of its graph.
        attributes: as text, in the schema's order; "set by the caller" in a function.
        input_type: of the first input; "?" if it is not connected.
        picture: None if the reason is in ``undrawn``; ``values`` are then shown in its place, if there are any.
    """

    index: int
    name: str
    op_type: str
    place: str
    position: int
    total: int
    doc: str
    attributes: tuple[tuple[str, str], ...]
    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]
    input_type: str
    findings: tuple[Finding, ...]
    picture: Picture | None = None
    undrawn: str = ""
    values: Values | None = None


@dataclass(frozen=True)
class Place:
    """A graph or function that holds NSA nodes: how many nodes it has, which are ours, how often it is called."""

    name: str
    total: int
    nodes: tuple[tuple[int, int], ...]
    calls: int | None


def subjects(model: Analysis, report: Report, lengths: Sequence[int] | None) -> tuple[list[Subject], list[Finding]]:
    """The NSA nodes with their findings, and the findings that are about no single node."""
    mine, others = _distribute(model, report)
    shared, graphs = _Shared(), dict[int, Neighbourhood]()
    numbers = {(id(node.scope), output): i for i, node in enumerate(model.nodes) for output in node.proto.output}
    result = []
    for index, node in enumerate(model.nodes[:MAX_SUBJECTS]):
        graph = graphs.get(id(node.scope))
        if graph is None:
            graph = graphs[id(node.scope)] = Neighbourhood(node.scope, numbers, shared.producers)
        drawn = _drawn(node, lengths, shared)
        result.append(_subject(index, node, graph, tuple(mine[index]), drawn))
    for index in range(MAX_SUBJECTS, len(model.nodes)):
        others.extend(mine[index])
    return result, others


def places(model: Analysis, found: Sequence[Subject]) -> list[Place]:
    """The graphs and functions that hold NSA nodes, in the order of the nodes."""
    calls = Counter(step.op for step in below(model.outline.main))
    for _, steps in model.outline.functions:
        calls.update(step.op for step in below(steps))
    functions = {f"function {f.domain}.{f.name}": calls[(f.domain, f.name)] for f in model.proto.functions}
    grouped: dict[int, list[Subject]] = defaultdict(list)
    for subject, node in zip(found, model.nodes, strict=False):
        grouped[id(node.scope)].append(subject)
    return [
        Place(
            group[0].place,
            group[0].total,
            tuple((subject.index, subject.position) for subject in group),
            functions.get(group[0].place),
        )
        for group in grouped.values()
    ]


def _distribute(model: Analysis, report: Report) -> tuple[dict[int, list[Finding]], list[Finding]]:
    """Findings by the index of the node that they name. A name without a place is enough if it is the only one."""
    exact: dict[tuple[str, str], list[int]] = defaultdict(list)
    loose: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(model.nodes):
        exact[(node.name, node.scope.place)].append(index)
        loose[node.name].append(index)
    mine: dict[int, list[Finding]] = defaultdict(list)
    others: list[Finding] = []
    for finding in report.findings:
        found = exact.get((finding.node, finding.place))
        if found is None:
            found = loose.get(finding.node, [])
            found = found if len(found) == 1 else []
        if finding.node and found:
            mine[found[0]].append(finding)
        else:
            others.append(finding)
    return mine, others


@dataclass
class _Shared:
    """What several graphs and nodes have in common, made once: the values of a graph around them, pictures."""

    producers: dict[int, dict[str, tuple[int, NodeProto]]] = field(default_factory=dict)
    pictures: dict[tuple[object, ...], Picture] = field(default_factory=dict)

    def picture(self, made: Picture) -> Picture:
        """The picture, or one of before that is the same: most layers of a model share their lengths."""
        key = (type(made), *(comparable(getattr(made, one.name)) for one in fields(made)))
        return self.pictures.setdefault(key, made)


def comparable(value: object) -> object:
    """The value, or what stands for an array: equal for equal ones, and small."""
    return (value.shape, hashlib.sha256(value.tobytes()).digest()) if isinstance(value, np.ndarray) else value


# --------------------------------------------------------------------------------------------------
# One node


@dataclass(frozen=True)
class _Drawn:
    """As the attributes of `Subject`."""

    picture: Picture | None = None
    undrawn: str = ""
    values: Values | None = None


def _drawn(node: NsaNode, lengths: Sequence[int] | None, shared: _Shared) -> _Drawn:
    if node.facts is None:
        return _Drawn(undrawn="Not an operator of this domain, so there is nothing to draw.")
    try:
        return _Drawn(shared.picture(OPERATORS[node.op_type].picture(node.facts, lengths)))
    except NotDrawnError as error:
        return _Drawn(undrawn=str(error), values=error.values)


def _subject(index: int, node: NsaNode, graph: Neighbourhood, findings: tuple[Finding, ...], drawn: _Drawn) -> Subject:
    scope, proto, operator = node.scope, node.proto, OPERATORS.get(node.op_type)
    formal = [(one.name, dim_names(one)) for one in operator.inputs] if operator else []
    formal += [(f"input {i}", ()) for i in range(len(formal), _MAX_INPUTS)]
    inputs = tuple(
        _edge(name, value, graph, names, (graph.producer(value),))
        for (name, names), value in zip(formal, proto.input[:_MAX_INPUTS], strict=False)
        if value
    )
    made: list[tuple[str, tuple[str, ...]]] = [("output", ())]
    if operator is not None:
        made = [(one.name, dim_names(one)) for one in operator.outputs]
    if drawn.picture is not None and drawn.picture.exact:  # onnx's inference may not know: too many lengths
        made[0] = (made[0][0], (str(drawn.picture.after), *made[0][1][1:]))
    outputs = tuple(
        _edge(name, value, graph, names, tuple(graph.consumers[value][:MAX_ENDS]), graph.counts[value] - MAX_ENDS)
        for (name, names), value in zip(made, proto.output, strict=False)
        if value
    )
    return Subject(
        index,
        node.name,
        node.op_type,
        scope.place,
        node.position,
        len(scope.steps),
        text(proto.doc_string),
        _attributes(node),
        inputs,
        outputs,
        next((edge.type for edge in inputs if edge.argument == formal[0][0]), "?"),
        findings,
        drawn.picture,
        drawn.undrawn,
        drawn.values,
    )


def _edge(
    argument: str,
    value: str,
    graph: Neighbourhood,
    names: Sequence[str],
    ends: tuple[Neighbour, ...],
    more: int = 0,
) -> Edge:
    known = type_in(graph.scope, value)
    return Edge(argument, text(value), type_text(known, names), tensor_facts(known), ends, more)


def _attributes(node: NsaNode) -> tuple[tuple[str, str], ...]:
    if node.facts is None:
        return ()
    result = []
    for one in OPERATORS[node.op_type].attributes:
        value = node.facts.attributes.get(one.name)
        if isinstance(value, Unknown):
            shown = "set by the caller"
        elif isinstance(value, float if one.is_float else int):
            shown = str(value)
        else:
            shown = "missing" if value is None else f"not {'a float' if one.is_float else 'an int'}"
        result.append((one.name, shown))
    return tuple(sorted(result))
