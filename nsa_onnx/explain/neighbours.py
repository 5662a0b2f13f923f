"""The neighbourhood of NSA nodes: who makes what they read, and who reads what they make."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import NodeProto, TypeProto

from ..graph.outline import Step, below
from ..graph.scopes import Scope
from ..graph.tensors import TensorFacts, tensor_facts
from ..graph.walk import node_name, text
from ..operators.contract import DOMAIN
from .markup import brief

# Ends of one edge that are shown.
MAX_ENDS = 6
# How far a producer is followed back through its first inputs: far enough to see past casts and reshapes.
_CHAIN = 4


@dataclass(frozen=True)
class Neighbour:
    """What is at the other end of an edge.

    Attributes:
        kind: "node", "input", "initializer", "constant", "outer" (a graph around this one), "output" or "missing".
        op_type, name: of a node; empty for the other kinds, but for "outer", whose name is the graph's place.
        chain: operators further back along the first inputs, nearest first.
        nsa: the index among the model's NSA nodes if it is one.
    """

    kind: str
    op_type: str = ""
    name: str = ""
    chain: tuple[str, ...] = ()
    nsa: int | None = None


@dataclass(frozen=True)
class Edge:
    """One input or output of a node: its formal name, the value's name and type, and who is at the other ends.

    Attributes:
        facts: of the type, without the names of its dims.
    """

    argument: str
    value: str
    type: str
    facts: TensorFacts
    ends: tuple[Neighbour, ...]
    more: int = 0


@dataclass
class Neighbourhood:
    """Producers and consumers in one scope.

    Attributes:
        numbers: the index among the model's NSA nodes, by the scope's identity and an output's name.
        producers: by the scope's identity, each value's node and position; shared by scopes of one model.
        consumers: of the outputs of NSA nodes, the first few.
        counts: how many consumers there are.
    """

    scope: Scope
    numbers: Mapping[tuple[int, str], int]
    producers: dict[int, dict[str, tuple[int, NodeProto]]]
    consumers: dict[str, list[Neighbour]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        steps = self.scope.steps
        wanted = {name for step in steps if step.op[0] == DOMAIN for name in step.outputs if name}
        for position, step in enumerate(steps):
            self._consume(step, position, wanted)
        for name in self.scope.outputs:
            if name in wanted:
                self.counts[name] += 1
                self.consumers[name].append(Neighbour("output"))

    def _consume(self, step: Step, position: int, wanted: set[str]) -> None:
        """Edges from our nodes to this one, and to the nodes of its subgraphs."""
        for inner in below((step,)) if step.graphs else (step,):
            for name in wanted.intersection(inner.inputs):
                self.counts[name] += 1
                if len(self.consumers[name]) < MAX_ENDS:
                    label = node_name(step.node, position)
                    if inner is not step:
                        label = f"{text(inner.node.name)} in {label}"
                    op_type = text(inner.op[1])
                    self.consumers[name].append(Neighbour("node", op_type, label, (), self._nsa(inner.node)))

    def _nsa(self, node: NodeProto) -> int | None:
        if node.domain != DOMAIN or not node.output:
            return None
        return self.numbers.get((id(self.scope), node.output[0]))

    def producer(self, name: str) -> Neighbour:
        """Where a value comes from."""
        for scope in self.scope.chain():
            made = self._made(scope).get(name)
            outer = scope is not self.scope
            if made is not None:
                position, node = made
                if name in scope.constants:
                    return Neighbour("constant", name=scope.place if outer else "")
                label = node_name(node, position) + (f" of {scope.place}" if outer else "")
                nsa = self.numbers.get((id(scope), name)) if node.domain == DOMAIN else None
                return Neighbour("node", text(node.op_type), label, self._chain(scope, node), nsa)
            if name in scope.names:
                kind = "initializer" if name in scope.constants else "input"
                return Neighbour("outer" if outer else kind, name=scope.place if outer else "")
        return Neighbour("missing")

    def _made(self, scope: Scope) -> dict[str, tuple[int, NodeProto]]:
        if id(scope) not in self.producers:
            made = {name: (i, step.node) for i, step in enumerate(scope.steps) for name in step.outputs if name}
            self.producers[id(scope)] = made
        return self.producers[id(scope)]

    def _chain(self, scope: Scope, node: NodeProto) -> tuple[str, ...]:
        found: list[str] = []
        while len(found) < _CHAIN and node.input:
            made = self._made(scope).get(node.input[0])
            if made is None:
                break
            node = made[1]
            found.append(text(node.op_type))
        return tuple(found)


def type_text(type_proto: TypeProto | None, names: Sequence[str] = ()) -> str:
    """``float16 [T, 4, 128]``, with these names for dims that have none in the model; ``?`` for what is not known."""
    facts = tensor_facts(type_proto)
    dtype = facts.dtype or "?"
    if type_proto is None or facts.shape is None:
        return f"{dtype} [?]"
    dims = type_proto.tensor_type.shape.dim
    if len(names) != len(dims):
        names = ("?",) * len(dims)
    shown = [
        str(dim.dim_value) if dim.HasField("dim_value") else _dim_name(dim.dim_param) or name
        for dim, name in zip(dims[:8], names, strict=False)
    ]
    return f"{dtype} [{', '.join(shown)}{', …' if len(dims) > 8 else ''}]"


def _dim_name(name: str | bytes) -> str:
    """A dim's name; none for those that onnx makes up while it infers."""
    return "" if not name or brief(name).startswith("unk__") else brief(name, 40)


def type_in(scope: Scope, value: str) -> TypeProto | None:
    """The type of a value; what is declared where inference has stopped."""
    known = scope.type_of(value)
    return known if known is not None and known.HasField("tensor_type") else scope.declared.get(value, known)
