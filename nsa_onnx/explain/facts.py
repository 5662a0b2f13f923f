"""What there is to tell about a model's NSA nodes: neighbours, lengths, windows, bytes. No HTML here."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from onnx import NodeProto, TypeProto

from .. import spec
from ..analysis import Analysis, NsaNode
from ..checker import Finding, Report
from ..graph.outline import Step, below
from ..graph.scopes import Scope
from ..graph.tensors import Integers, Unknown, tensor_facts
from ..graph.walk import node_name, text
from ..operators.schema import INPUT_NAMES, SCHEMAS
from .markup import brief

# Beyond this, attributes and lengths are too absurd to draw. Sums of as many as fit a file stay within 64 bits.
MAX_DRAWN_LENGTH = 2**34
# Nodes that are told about; of more, the page gives the number.
MAX_SUBJECTS = 1000
# How far a producer is followed back through its first inputs: far enough to see past casts and reshapes.
_CHAIN = 4
_GIVEN = "Lengths as given: the model leaves them to each run."
_EXAMPLE = "Example lengths: the model leaves them to each run."
_ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


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
    """One input or output of a node: its formal name, the value's name and type, and who is at the other ends."""

    argument: str
    value: str
    type: str
    ends: tuple[Neighbour, ...]
    more: int = 0


@dataclass(frozen=True)
class Prefill:
    """Segments of an NsaCompress, as arrays of one element per segment.

    Attributes:
        lengths, windows, dropped: tokens, windows, and tokens after the last window of each segment.
        tokens: T of input if it is known, which an invalid model may have different from the sum of the lengths.
    """

    block: int
    stride: int
    lengths: Integers
    windows: Integers
    dropped: Integers
    tokens: int

    @cached_property
    def total(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def rows(self) -> int:
        return int(self.windows.sum())

    @cached_property
    def starts(self) -> Integers:
        return np.asarray(np.concatenate(([0], np.cumsum(self.lengths)))[:-1], np.int64)

    @cached_property
    def first_rows(self) -> Integers:
        return np.asarray(np.concatenate(([0], np.cumsum(self.windows)))[:-1], np.int64)


@dataclass(frozen=True)
class Decode:
    """One decode step of an NsaCompressInfer. ``slots`` and ``table`` are None where the model does not fix them.

    Without an input block_table, ``owned`` is the number of pages of each sequence, if that is known.
    """

    block: int
    stride: int
    page: int
    lengths: Integers
    slots: Integers | None
    table: Integers | None
    owned: int | None

    @cached_property
    def writes(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        return np.asarray((self.lengths >= self.block) & ((self.lengths - self.block) % self.stride == 0))

    @cached_property
    def windows(self) -> Integers:
        return _windows(self.lengths, self.block, self.stride)

    def physical_page(self, sequence: int, logical: int) -> int | None:
        """The page of the cache that holds a sequence's page; None if the model does not say."""
        if self.table is not None:
            inside = sequence < self.table.shape[0] and logical < self.table.shape[1]
            return int(self.table[sequence, logical]) if inside else None
        return None if self.owned is None or logical >= self.owned else sequence * self.owned + logical


@dataclass(frozen=True)
class Subject:
    """One NSA node with all that the page tells about it.

    Attributes:
        position, total: its place among the nodes of its graph.
        attributes: as text, in the schema's order; "set by the caller" in a function.
        plan: what to draw; None if the reason is in ``undrawn``.
        example: why the lengths are made up; empty if they are the model's.
        wrong_lengths: indices of constant lengths that break a rule, and the constant lengths themselves.
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
    output: Edge | None
    heads: int | None
    dim: int | None
    item_size: int | None
    plan: Prefill | Decode | None
    example: str = ""
    undrawn: str = ""
    lengths: Integers | None = None
    wrong_lengths: frozenset[int] = frozenset()
    findings: tuple[Finding, ...] = ()

    @property
    def row_bytes(self) -> int | None:
        """Bytes of one token or one compressed row, all heads."""
        if self.heads is None or self.dim is None or self.item_size is None:
            return None
        return self.heads * self.dim * self.item_size


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
    shared, graphs = _Shared(), dict[int, _Graph]()
    numbers = {(id(node.scope), output): i for i, node in enumerate(model.nodes) for output in node.proto.output}
    result = []
    for index, node in enumerate(model.nodes[:MAX_SUBJECTS]):
        graph = graphs.get(id(node.scope))
        if graph is None:
            graph = graphs[id(node.scope)] = _Graph(node.scope, model, numbers, shared)
        result.append(_subject(index, node, graph, tuple(mine[index]), lengths))
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


# --------------------------------------------------------------------------------------------------
# The neighbourhood


# Ends of one edge that are shown.
_MAX_ENDS = 6


@dataclass
class _Shared:
    """What several graphs and nodes have in common, made once: a graph around them, lengths."""

    producers: dict[int, dict[str, tuple[int, NodeProto]]] = field(default_factory=dict)
    plans: dict[tuple[object, ...], Prefill] = field(default_factory=dict)


@dataclass
class _Graph:
    """Producers, consumers and positions in one scope."""

    scope: Scope
    model: Analysis
    numbers: Mapping[tuple[int, str], int]
    shared: _Shared
    consumers: dict[str, list[Neighbour]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)
    positions: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        wanted: set[str] = set()
        for position, step in enumerate(self.scope.steps):
            if step.op[0] == spec.DOMAIN:
                self.positions.append(position)
                wanted.update(step.outputs)
        for position, step in enumerate(self.scope.steps):
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
                if len(self.consumers[name]) < _MAX_ENDS:
                    label = node_name(step.node, position)
                    if inner is not step:
                        label = f"{text(inner.node.name)} in {label}"
                    op_type = text(inner.op[1])
                    self.consumers[name].append(Neighbour("node", op_type, label, (), self._nsa(inner.node)))

    def _nsa(self, node: NodeProto) -> int | None:
        if node.domain != spec.DOMAIN or not node.output:
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
                nsa = self.numbers.get((id(scope), name)) if node.domain == spec.DOMAIN else None
                return Neighbour("node", text(node.op_type), label, self._chain(scope, node), nsa)
            if name in scope.names:
                kind = "initializer" if name in scope.constants else "input"
                return Neighbour("outer" if outer else kind, name=scope.place if outer else "")
        return Neighbour("missing")

    def _made(self, scope: Scope) -> dict[str, tuple[int, NodeProto]]:
        if id(scope) not in self.shared.producers:
            made = {name: (i, step.node) for i, step in enumerate(scope.steps) for name in step.outputs if name}
            self.shared.producers[id(scope)] = made
        return self.shared.producers[id(scope)]

    def _chain(self, scope: Scope, node: NodeProto) -> tuple[str, ...]:
        found: list[str] = []
        while len(found) < _CHAIN and node.input:
            made = self._made(scope).get(node.input[0])
            if made is None:
                break
            node = made[1]
            found.append(text(node.op_type))
        return tuple(found)


def type_text(type_proto: TypeProto | None) -> str:
    """``float16 [T, 4, 128]``; ``?`` for what is not known."""
    facts = tensor_facts(type_proto)
    dtype = facts.dtype or "?"
    if type_proto is None or facts.shape is None:
        return f"{dtype} [?]"
    dims = type_proto.tensor_type.shape.dim
    shown = [str(d.dim_value) if d.HasField("dim_value") else _dim_name(d.dim_param) for d in dims[:8]]
    return f"{dtype} [{', '.join(shown)}{', …' if len(dims) > 8 else ''}]"


def _dim_name(name: str | bytes) -> str:
    """A dim's name; those that onnx makes up while it infers say nothing."""
    return "?" if not name or brief(name).startswith("unk__") else brief(name, 40)


def _type_in(scope: Scope, value: str) -> TypeProto | None:
    """The type of a value; what is declared where inference has stopped."""
    known = scope.type_of(value)
    return known if known is not None and known.HasField("tensor_type") else scope.declared.get(value, known)


# --------------------------------------------------------------------------------------------------
# One node


def _subject(
    index: int, node: NsaNode, graph: _Graph, findings: tuple[Finding, ...], lengths: Sequence[int] | None
) -> Subject:
    scope, proto = node.scope, node.proto
    formals = INPUT_NAMES.get(proto.op_type, ())
    inputs = tuple(
        Edge(
            formals[i] if i < len(formals) else f"input {i}",
            text(value),
            type_text(_type_in(scope, value)),
            (graph.producer(value),),
        )
        for i, value in enumerate(proto.input[:16])
        if value
    )
    output = None
    if proto.output and proto.output[0]:
        value = proto.output[0]
        formal = SCHEMAS[proto.op_type].outputs[0].name if proto.op_type in SCHEMAS else "output"
        ends = tuple(graph.consumers[value][:_MAX_ENDS])
        output = Edge(formal, text(value), type_text(_type_in(scope, value)), ends, graph.counts[value] - len(ends))
    facts = node.facts
    tensor = facts.tensor("input") if facts else None
    shape = tensor.shape if tensor is not None and tensor.shape is not None else ()
    known = len(shape) == (3 if proto.op_type == spec.COMPRESS_OP else 4)
    subject = Subject(
        index,
        node.name,
        node.op_type,
        scope.place,
        graph.positions.popleft(),  # read() goes through the nodes in this order
        len(scope.nodes),
        text(proto.doc_string),
        _attributes(node),
        inputs,
        output,
        shape[-2] if known else None,
        shape[-1] if known else None,
        _ITEM_SIZES.get(tensor.dtype or "") if tensor is not None else None,
        None,
        findings=findings,
    )
    return _with_plan(subject, node, lengths, graph.shared)


def _attributes(node: NsaNode) -> tuple[tuple[str, str], ...]:
    if node.facts is None:
        return ()
    result = []
    for name in SCHEMAS[node.op_type].attributes:
        value = node.facts.attributes.get(name)
        if isinstance(value, Unknown):
            shown = "set by the caller"
        elif isinstance(value, int):
            shown = str(value)
        else:
            shown = "missing" if value is None else "not an int"
        result.append((name, shown))
    return tuple(sorted(result))


def _with_plan(subject: Subject, node: NsaNode, lengths: Sequence[int] | None, shared: _Shared) -> Subject:
    facts = node.facts
    if facts is None:
        return replace(subject, undrawn="Not an operator of this domain, so there is nothing to draw.")
    block, stride = facts.integer("compress_block_size"), facts.integer("compress_stride")
    page = facts.integer("page_block_size") if facts.op_type == spec.INFER_OP else 1
    if block is None or stride is None or page is None:
        why = "Attributes are set by the function's caller" if node.scope.in_function() else "Attributes are not known"
        return replace(subject, undrawn=f"{why}, so the windows have no size to draw.")
    if not 1 <= stride <= block <= MAX_DRAWN_LENGTH or not 1 <= page <= MAX_DRAWN_LENGTH:
        return replace(subject, undrawn="Windows of this size cannot be drawn.")
    constant = facts.constants.get("actual_seq_len")
    if constant is not None:
        wrong = _wrong_lengths(node, constant)
        subject = replace(subject, lengths=constant.reshape(-1), wrong_lengths=wrong)
        if constant.ndim != 1 or not constant.size or wrong or int(constant.max()) > MAX_DRAWN_LENGTH:
            return replace(subject, undrawn="The model's lengths are not valid, so there is nothing to draw.")
    if facts.op_type == spec.COMPRESS_OP:
        return _with_prefill(subject, node, block, stride, lengths, shared)
    return _with_decode(subject, node, block, stride, page, lengths)


def _wrong_lengths(node: NsaNode, values: Integers) -> frozenset[int]:
    """Indices of lengths that no segment or sequence can have, the first few of them."""
    flat = values.reshape(-1)
    wrong = flat < 0
    if node.op_type == spec.COMPRESS_OP:
        wrong = (flat < 1) | np.concatenate(([False], flat[1:] < flat[:-1]))
    return frozenset(np.flatnonzero(wrong)[:64].tolist())


def _windows(lengths: Integers, block: int, stride: int) -> Integers:
    return np.asarray(np.where(lengths >= block, 1 + (lengths - block) // stride, 0), np.int64)


def _with_prefill(
    subject: Subject, node: NsaNode, block: int, stride: int, given: Sequence[int] | None, shared: _Shared
) -> Subject:
    assert node.facts is not None
    tokens = node.facts.tensor("input").dim(0) if node.facts.tensor("input").rank() == 3 else None
    if tokens is not None and tokens > MAX_DRAWN_LENGTH:
        return replace(subject, undrawn="So many tokens cannot be drawn.")
    constant, example = node.facts.constants.get("actual_seq_len"), ""
    if constant is not None:
        lengths = np.diff(constant, prepend=0)
    elif given:
        lengths, example = np.array(given, np.int64), _GIVEN
    else:
        lengths = np.array(_example_segments(block, stride, tokens), np.int64)
        example = _EXAMPLE
    total = int(lengths.sum())
    tokens = total if tokens is None or example else tokens
    key = (hashlib.sha256(lengths.tobytes()).digest(), block, stride, tokens)
    plan = shared.plans.get(key)
    if plan is None:
        windows = _windows(lengths, block, stride)
        covered = np.where(windows > 0, block + (windows - 1) * stride, 0)
        plan = shared.plans[key] = Prefill(block, stride, lengths, windows, lengths - covered, tokens)
    output = subject.output
    if output is not None and not example and "[?," in output.type:  # too many lengths for onnx's inference
        output = replace(output, type=output.type.replace("[?,", f"[{plan.rows},", 1))
    return replace(subject, plan=plan, example=example, output=output)


def _example_segments(block: int, stride: int, tokens: int | None) -> list[int]:
    """A batch that shows all there is: no tail, a tail, no window at all. As long as input if that is known."""
    wanted = [block + 3 * stride, block + stride + stride // 2, max(1, block // 2), block + 5 * stride + stride // 4]
    if not tokens:
        return wanted
    if tokens < sum(wanted):
        return [tokens]
    return [*wanted[:-1], tokens - sum(wanted[:-1])]


def _with_decode(
    subject: Subject, node: NsaNode, block: int, stride: int, page: int, given: Sequence[int] | None
) -> Subject:
    facts = node.facts
    assert facts is not None
    constant, example = facts.constants.get("actual_seq_len"), ""
    slots, table = facts.constants.get("slot_mapping"), facts.constants.get("block_table")
    batch, blocks = facts.tensor("slot_mapping").dim(0), facts.tensor("input").dim(0)
    if constant is not None:
        lengths = constant
    elif given:
        lengths, example = np.array(given, np.int64), _GIVEN
    else:
        wanted = _example_sequences(block, stride, page)
        lengths = np.array(wanted[:batch] if batch else wanted, np.int64)
        example = _EXAMPLE
    slots = slots if slots is not None and slots.shape == lengths.shape else None
    table = table if table is not None and table.ndim == 2 else None
    owned = blocks // batch if blocks and batch and "block_table" not in facts.inputs else None
    return replace(subject, plan=Decode(block, stride, page, lengths, slots, table, owned), example=example)


def _example_sequences(block: int, stride: int, page: int) -> list[int]:
    """Too short, a first window, between two windows, and a window across the end of a page where there is one."""
    across = next((n for n in range(1, 64) if (n * stride) // page != (n * stride + block - 1) // page), 3)
    return [max(1, block - 1), block, block + stride + stride // 2, block + across * stride]
