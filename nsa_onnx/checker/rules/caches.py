"""NSA024 and NSA025: what becomes of a cache that a node has updated."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from ...analysis import Analysis, NsaNode
from ...graph.scopes import Scope
from ...graph.walk import is_standard, node_name, text
from ...operators import OPERATORS
from ...operators.contract import DOMAIN, listed
from ...rulebook.finding import Finding, Severity
from ...rulebook.rule import connected, finding, ours
from .registry import general

# Operators that hand a cache on, possibly in another form. What others compute from it is no cache.
_HAND_ON = frozenset(
    (
        *("Identity", "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"),
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split", "Slice", "Gather", "Where"),
        *("Scatter", "ScatterElements", "ScatterND", "TensorScatter", "If", "Loop", "Scan", "Optional"),
        *("SequenceConstruct", "SequenceInsert", "ConcatFromSequence"),
    )
)
# By operator, the inputs that it updates.
_UPDATED = {
    op_type: [operator.input_names.index(one.updates) for one in operator.outputs if one.updates]
    for op_type, operator in OPERATORS.items()
}
_UPDATING = [op_type for op_type, inputs in _UPDATED.items() if inputs]

Value = tuple[int, str]


@dataclass(frozen=True)
class _Reader:
    """A node that reads a value, as its input ``argument``; position -1 in a graph stands for its outputs."""

    scope: Scope
    position: int
    node: NodeProto
    argument: int


Readers = dict[Value, list[_Reader]]


def _readers(model: Analysis) -> Readers:
    """Who reads each value; nothing in a model that updates no cache."""
    found: Readers = defaultdict(list)
    for scope in model.scopes if any(node.op_type in _UPDATING for node in model.nodes) else ():
        for position, node in enumerate(scope.nodes):
            for argument, name in enumerate(node.input):
                home = scope.home(name) if name else None
                if home is not None:
                    found[(id(home), name)].append(_Reader(scope, position, node, argument))
    return found


@dataclass(frozen=True)
class _Update:
    """A node, the input that is its cache, and the names of the cache before and after."""

    node: NsaNode
    argument: str
    before: str
    after: str


def _updates(model: Analysis) -> Iterator[_Update]:
    for node, operator, _ in ours(model.nodes):
        for output, name in zip(operator.outputs, node.proto.output, strict=False):
            if output.updates and connected(node, output.updates) and name:
                before = node.proto.input[operator.input_names.index(output.updates)]
                yield _Update(node, output.updates, before, name)


@general(
    "NSA024",
    "an updated cache leaves the graph",
    severity=Severity.WARNING,
    documentation=f"The cache that {listed(_UPDATING, 'return')} is an output of the graph, if need be by way of nodes "
    "that hand it on.\n\n"
    "Otherwise the update is lost with the end of the run, and the next step attends to a row that was never written.\n"
    "In a subgraph or function, it must be an output of that.",
    hint="make the updated cache an output of the graph, as nsa_onnx.exporters.export does, and feed it to the next "
    "run; or bind one OrtValue as the cache and as that output",
)
def _lost(model: Analysis) -> Iterator[Finding]:
    readers = _readers(model)
    leaving = _leaving(model, readers)
    for update in _updates(model):
        value = id(update.node.scope), update.after
        if value not in leaving:
            use = "is read by nodes of the graph only" if readers.get(value) else "is read by none"
            message = f"{update.after!r}, the updated cache, is no output and {use}: the update is lost"
            yield finding(update.node, message, update.argument)


def _leaving(model: Analysis, readers: Readers) -> set[Value]:
    """The values that are outputs of a graph, or that nodes hand on to one: found backwards, each looked at once."""
    made_from: dict[Value, list[Value]] = defaultdict(list)
    for value, those in readers.items():
        for reader in those:
            if _hands_on(reader):
                for output in reader.node.output:
                    made_from[(id(reader.scope), output)].append(value)
    pending = [(id(scope), name) for scope in model.scopes for name in scope.outputs]
    found: set[Value] = set()
    while pending:
        value = pending.pop()
        if value not in found:
            found.add(value)
            pending.extend(made_from[value])
    return found


def _hands_on(reader: _Reader) -> bool:
    node = reader.node
    if node.domain == DOMAIN:
        updated = _UPDATED.get(node.op_type)
        return not updated or reader.argument in updated
    # Of a function's or somebody's operator nothing is known, which is taken well.
    return not is_standard(node) or node.op_type in _HAND_ON


# --------------------------------------------------------------------------------------------------


@general(
    "NSA025",
    "nobody reads the cache of before the update",
    severity=Severity.WARNING,
    documentation=f"After {listed(_UPDATING)}, its input `cache` is read no more (but for its shape): there the new "
    "row is missing.\n\n"
    "Two steps that update one cache must be chained. A reader in front of the node is taken to mean the old contents.",
    hint="let what comes after the update read the node's output",
)
def _stale(model: Analysis) -> Iterator[Finding]:
    readers = _readers(model)
    ordered: dict[Value, _Ordered] = {}
    for update in _updates(model):
        scope, before = update.node.scope, update.before
        value = (id(scope.home(before)), before)
        if value not in ordered:
            ordered[value] = _order(readers.get(value, ()))
        reader = _first_after(ordered[value], _path(scope, update.node.position))
        if reader is not None:
            who = f"{text(reader.node.op_type)} {node_name(reader.node, reader.position)!r}"
            message = f"{before!r}, the cache before the update, is read by {who} after this node"
            yield finding(update.node, message, update.argument)


# By graph: positions of nodes that read a value themselves or in a subgraph, ascending, and who reads it there.
_Ordered = dict[int, tuple[list[int], list[_Reader]]]


def _order(readers: Sequence[_Reader]) -> _Ordered:
    placed: dict[int, list[tuple[int, _Reader]]] = defaultdict(list)
    for reader in readers:
        if reader.node.op_type not in ("Shape", "Size"):
            for graph, position in _path(reader.scope, reader.position):
                placed[graph].append((position, reader))
    ordered: _Ordered = {}
    for graph, those in placed.items():
        those.sort(key=lambda one: one[0])
        ordered[graph] = [position for position, _ in those], [reader for _, reader in those]
    return ordered


def _first_after(ordered: _Ordered, path: Path) -> _Reader | None:
    """A reader that comes later than a node, the nearest one in the innermost graph; branches come in no order."""
    for graph, position in reversed(path):
        positions, readers = ordered.get(graph, ([], []))
        index = bisect_right(positions, position)
        if index < len(readers):
            return readers[index]
    return None


Path = list[tuple[int, int]]


def _path(scope: Scope, position: int) -> Path:
    """Where a node is: (graph, position) from the outermost graph inwards."""
    path = [(id(scope), position)]
    while scope.parent is not None:
        path.append((id(scope.parent), scope.position))
        scope = scope.parent
    return path[::-1]
