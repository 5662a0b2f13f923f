"""Walks the nodes of a model: subgraphs, standard operators, constants, and names that may be invalid text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto

STANDARD_DOMAINS = ("", "ai.onnx")
"""Both names of the standard operators' domain."""


def standard_opset(imports: Iterable[OperatorSetIdProto]) -> int | None:
    """The imported version of the standard operators."""
    return next((entry.version for entry in imports if entry.domain in STANDARD_DOMAINS), None)


def is_standard(node: NodeProto) -> bool:
    """Whether the node's operator is of the standard domain."""
    return node.domain in STANDARD_DOMAINS


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs that a node holds as attributes, one level deep."""
    return [graph for attribute in node.attribute for graph in subgraphs_of(attribute)]


def subgraphs_of(attribute: AttributeProto) -> list[GraphProto]:
    """The graphs that an attribute holds, one level deep."""
    found = [attribute.g] if attribute.HasField("g") else []
    if attribute.graphs:
        found.extend(attribute.graphs)
    return found


def with_subgraphs(graph: GraphProto) -> list[GraphProto]:
    """The graph, then all graphs in its nodes, however deep."""
    found, pending = [], [graph]
    while pending:
        current = pending.pop()
        found.append(current)
        for node in current.node:
            pending.extend(subgraphs(node))
    return found


def nodes_below(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and those of their subgraphs, however deep. A node comes before what is in it."""
    pending = [iter(nodes)]
    while pending:
        node = next(pending[-1], None)
        if node is None:
            pending.pop()
            continue
        yield node
        pending.extend(iter(graph.node) for graph in subgraphs(node))


def captured(node: NodeProto) -> Iterator[str]:
    """Names that the graphs in a node use, however deep, their own included: one too many does no harm."""
    pending = subgraphs(node)
    while pending:
        graph = pending.pop()
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from inner.input
            pending.extend(subgraphs(inner))


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """The value of a Constant, if it is a tensor or integers; None for any other node."""
    if node.op_type != "Constant" or not is_standard(node) or len(node.output) != 1:
        return None
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            return None
        if attribute.name == "value" and attribute.HasField("t"):
            tensor: TensorProto = attribute.t
            return tensor
        if attribute.name in ("value_ints", "value_int"):
            scalar = attribute.name == "value_int"
            values = [attribute.i] if scalar else attribute.ints
            return TensorProto(data_type=TensorProto.INT64, dims=[] if scalar else [len(values)], int64_data=values)
    return None


def text(value: str | bytes) -> str:
    """A name from a model. Protobuf gives one that is not UTF-8 as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def node_name(node: NodeProto, index: int) -> str:
    return text(node.name) or f"#{index}"
