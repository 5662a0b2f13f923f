"""The nodes of a model as plain Python objects, read once.

protobuf makes new Python objects each time a node is looked at. A check walks a graph some ten times; for 60 000
nodes, each walk over protobuf's own objects costs more than onnx's whole inference.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from .walk import subgraphs_of

# A node's domain and operator.
Op = tuple[str, str]


class Step(NamedTuple):
    """One node.

    Attributes:
        graphs: those that it holds as attributes, one level deep.
        ints: length of its longest attribute of integers.
    """

    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    node: NodeProto
    graphs: tuple[Block, ...]
    ints: int


class Block(NamedTuple):
    """A graph and its nodes."""

    graph: GraphProto
    steps: Sequence[Step]


@dataclass(frozen=True)
class Outline:
    """A model's nodes.

    Attributes:
        main: of the main graph.
        functions: in their order, each with its nodes.
    """

    main: Sequence[Step]
    functions: tuple[tuple[FunctionProto, Sequence[Step]], ...] = ()

    @classmethod
    def of(cls, model: ModelProto) -> Outline:
        return cls(steps(model.graph.node), tuple((function, steps(function.node)) for function in model.functions))

    def without(self, values: Container[str]) -> Outline:
        """The same without the nodes of the main graph that make one of the values."""
        return Outline([step for step in self.main if not any(name in values for name in step.outputs)], self.functions)

    def bodies(self) -> dict[Op, Sequence[Step]]:
        """The functions' nodes, by what calls them."""
        return {(function.domain, function.name): body for function, body in self.functions}

    def called(self) -> set[Op]:
        """The functions that the main graph calls, by itself or through others."""
        bodies = self.bodies()
        found: set[Op] = set()
        pending = [self.main]
        while pending:
            for step in below(pending.pop()):
                if step.op in bodies and step.op not in found:
                    found.add(step.op)
                    pending.append(bodies[step.op])
        return found


def steps(nodes: Iterable[NodeProto]) -> Sequence[Step]:
    """The nodes, with all that is in them. As deep as protobuf lets messages lie in one another, and no deeper."""
    result = []
    for node in nodes:
        graphs: list[GraphProto] = []
        ints = 0
        for attribute in node.attribute:
            graphs.extend(subgraphs_of(attribute))
            if len(attribute.ints) > ints:
                ints = len(attribute.ints)
        blocks = tuple([Block(graph, steps(graph.node)) for graph in graphs]) if graphs else ()
        result.append(Step((node.domain, node.op_type), tuple(node.input), tuple(node.output), node, blocks, ints))
    return result


def below(top: Iterable[Step]) -> Iterator[Step]:
    """The nodes and those of their graphs, however deep. A node comes before what is in it."""
    pending = [iter(top)]
    while pending:
        for step in pending[-1]:
            yield step
            if step.graphs:
                pending.extend(iter(block.steps) for block in step.graphs)
                break
        else:
            pending.pop()
