"""NSA024 and NSA025: what becomes of a cache that a decode step has updated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from ... import spec
from ...schema import INPUT_NAMES
from ..model import Model, NsaNode, Scope, node_name, text
from ..report import Finding, Severity
from .examples import infer, infer_node
from .registry import INFER, connected, finding, of_type, rule

# Operators that hand a cache on, possibly in another form. What others compute from it is no cache.
_HAND_ON = frozenset(
    {"Identity", "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"}
    | {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split", "Slice", "Gather", "Where"}
    | {"Scatter", "ScatterElements", "ScatterND", "TensorScatter", "If", "Loop", "Scan", "Optional"}
    | {"SequenceConstruct", "SequenceInsert", "ConcatFromSequence"}
)
_CACHE = INPUT_NAMES[INFER].index("cache")

Value = tuple[int, str]


@dataclass(frozen=True)
class _Reader:
    """A node that reads a value, as its input ``argument``; position -1 in a graph stands for its outputs."""

    scope: Scope
    position: int
    node: NodeProto
    argument: int


Readers = dict[Value, list[_Reader]]


def _readers(model: Model) -> Readers:
    found: Readers = defaultdict(list)
    for scope in model.scopes:
        for position, node in enumerate(scope.nodes):
            for argument, name in enumerate(node.input):
                home = scope.home(name) if name else None
                if home is not None:
                    found[(id(home), name)].append(_Reader(scope, position, node, argument))
    return found


def _updates(model: Model) -> Iterator[tuple[NsaNode, str, str]]:
    """Every decode node with the names of its cache, before and after."""
    for node in of_type(model, INFER):
        if connected(node, "cache") and len(node.proto.output) == 1 and node.proto.output[0]:
            yield node, node.proto.input[_CACHE], node.proto.output[0]


@rule(
    "NSA024",
    "an updated cache leaves the graph",
    severity=Severity.WARNING,
    example=infer(carried=False, after=["y = ReduceSum <keepdims = 0> (cache_out)"], outputs=["float16 y"]),
    accepted=infer(after=["y = ReduceSum <keepdims = 0> (cache_out)"], outputs=["float16 y"]),
    hint="make the updated cache an output of the graph, as nsa_onnx.exporters.export does, and feed it to the next "
    "run; or bind one OrtValue as the cache and as that output",
)
def _lost(model: Model) -> Iterator[Finding]:
    """The cache that NsaCompressInfer returns is an output of the graph, if need be by way of nodes that hand it on.

    Otherwise the update is lost with the end of the run, and the next step attends to a row that was never written.
    In a subgraph or function, it must be an output of that.
    """
    readers = _readers(model) if any(True for _ in of_type(model, INFER)) else {}
    for node, _, updated in _updates(model):
        if not _leaves(node.scope, updated, readers):
            use = "is read by nodes of the graph only" if readers.get((id(node.scope), updated)) else "is read by none"
            yield finding(node, f"{updated!r}, the updated cache, is no output and {use}: the update is lost", "cache")


def _leaves(scope: Scope, name: str, readers: Readers) -> bool:
    pending, seen = [(scope, name)], set()
    while pending:
        home, value = pending.pop()
        if value in home.outputs:
            return True
        if (id(home), value) in seen:
            continue
        seen.add((id(home), value))
        for reader in readers.get((id(home), value), ()):
            if _hands_on(reader):
                pending.extend((reader.scope, output) for output in reader.node.output if output)
    return False


def _hands_on(reader: _Reader) -> bool:
    node = reader.node
    if node.domain == spec.DOMAIN:
        return node.op_type != INFER or reader.argument == _CACHE
    # Of a function's or somebody's operator nothing is known, which is taken well.
    return node.domain not in ("", "ai.onnx") or node.op_type in _HAND_ON


# --------------------------------------------------------------------------------------------------


def _two(cache: str) -> str:
    second = infer_node(f"x, w, later, {cache}, seq, table", "cache_2", name="second")
    made = infer(after=[second], outputs=["float16[9, 4, 16] cache_2"])
    return made.replace("int32[3] slots", "int32[3] slots, int32[3] later")


@rule(
    "NSA025",
    "nobody reads the cache of before the update",
    severity=Severity.WARNING,
    example=_two("cache"),
    accepted=_two("cache_out"),
    hint="let what comes after the update read the node's output",
)
def _stale(model: Model) -> Iterator[Finding]:
    """After NsaCompressInfer, its input `cache` is read no more (but for its shape): there the new row is missing.

    Two steps that update one cache must be chained. A reader in front of the node is taken to mean the old contents.
    """
    readers = _readers(model) if any(True for _ in of_type(model, INFER)) else {}
    for node, before, _ in _updates(model):
        home = node.scope.home(before)
        mine = _path(node.scope, _position(node))
        for reader in readers.get((id(home), before), ()):
            harmless = reader.node is node.proto or reader.node.op_type in ("Shape", "Size")
            if not harmless and _after(_path(reader.scope, reader.position), mine):
                who = f"{text(reader.node.op_type)} {node_name(reader.node, reader.position)!r}"
                message = f"{before!r}, the cache before the update, is read by {who} after this node"
                yield finding(node, message, "cache")
                break


def _position(node: NsaNode) -> int:
    return next(index for index, other in enumerate(node.scope.nodes) if other is node.proto)


Path = list[tuple[int, int]]


def _path(scope: Scope, position: int) -> Path:
    """Where a node is: (graph, position) from the outermost graph inwards."""
    path = [(id(scope), position)]
    while scope.parent is not None:
        path.append((id(scope.parent), scope.position))
        scope = scope.parent
    return path[::-1]


def _after(path: Path, other: Path) -> bool:
    """Whether a node comes later; nodes of two branches come in no order."""
    for (graph, position), (other_graph, other_position) in zip(path, other, strict=False):
        if graph != other_graph:
            return False
        if position != other_position:
            return position > other_position
    return False
