"""Where a graph may hold the compression: products, what leads to them, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onnx import NodeProto

from ..functions import is_standard
from .graph import Graph, weight_values
from .operators import FLOAT, MOVEMENTS, OPERATORS, PRODUCTS, SHORT, SUMS, Call, Numbers, Value, split
from .proof import Compression, Root, UnprovenError, prove
from .terms import LEAST_WINDOW, Budget, Dynamic, RefusalError, Terms, W, X, root

# Results and roots that are tried for one product.
_MAX_FINALS = 12
_MAX_ROOTS = 6

_FORMS = {
    "Conv": "grouped convolution",
    "Einsum": "einsum over windows",
    "MatMul": "windows times weight in a matrix product",
    "Mul": "windows times weight, summed",
}


def _data_inputs(node: NodeProto) -> Sequence[str]:
    return list(node.input) if node.op_type == "Concat" else list(node.input[:1])


def _multiplies(node: NodeProto) -> bool:
    return is_standard(node) and node.op_type in PRODUCTS and len(node.input) >= 2 and len(node.output) == 1


def _moves(node: NodeProto) -> bool:
    return is_standard(node) and (node.op_type in MOVEMENTS or node.op_type == "Split")


# --------------------------------------------------------------------------------------------------
# Candidates


@dataclass(frozen=True)
class Found:
    """A place where windows are weighted and summed.

    Attributes:
        graph: in which graph.
        value: the last value that belongs to it.
        form: how it is written, for people.
        reason: why it is not to be replaced; empty if it is.
        compression: what it is, if it is one.
    """

    graph: Graph
    value: str
    form: str
    reason: str
    compression: Compression | None = None

    @property
    def name(self) -> str:
        """Of the node that makes the value; the value's own if that has none."""
        node = self.graph.producer(self.value)
        return (node.name if node is not None else "") or self.value


@dataclass(frozen=True)
class Options:
    """How far a search goes."""

    allow_rounding: bool = False
    folder: Path | None = None


def search(graph: Graph, budget: Budget, options: Options) -> Iterator[Found]:
    """The compressions of one graph, and what looks like one.

    Raises:
        ExhaustedError: between two candidates, when the budget is used up.
    """
    if not graph.is_sound:  # a value that is made twice
        return
    done: set[int] = set()
    for index, node in enumerate(graph.nodes):
        if index in done or not _multiplies(node):
            continue
        budget.visit()
        chain = _forward(graph, index, budget)
        if node.op_type == "Mul" and not any(_is_sum(graph, value) for value in chain):
            continue
        with budget.counting():
            found, products = _attempt(graph, index, chain, budget, options)
        if found is not None:
            done |= products
            yield found


def _is_sum(graph: Graph, value: str) -> bool:
    node = graph.producer(value)
    return node is not None and node.op_type in SUMS


def _forward(graph: Graph, index: int, budget: Budget) -> list[str]:
    """Values made from a product by moving and summing alone, the product's own first."""
    chain = [graph.nodes[index].output[0]]
    while chain[-1] not in graph.outputs and len(chain) < _MAX_FINALS:
        budget.visit()
        following = None
        for consumer in graph.consumers.get(chain[-1], [])[:_MAX_FINALS]:
            node = graph.nodes[consumer]
            follows = is_standard(node) and (node.op_type in MOVEMENTS or node.op_type in SUMS)
            if follows and len(node.output) == 1 and chain[-1] in _data_inputs(node):
                following = node.output[0]
                break
        if following is None:
            break
        chain.append(following)
    return chain


def _attempt(
    graph: Graph, index: int, chain: Sequence[str], budget: Budget, options: Options
) -> tuple[Found | None, set[int]]:
    """The outermost value of the chain that is a compression, or the best reason why none is."""
    best: Found | None = None
    best_stage = -1
    for last in reversed(range(len(chain))):
        products = _products(graph, chain[last], budget)
        if products is None:
            continue
        found, stage = _prove_one_of(graph, chain[: last + 1], products, budget, options)
        if found is not None and found.compression is not None:
            shared = _shared(graph, found.value, budget)
            if shared is None:
                return found, products
            reason = f"{shared!r}, which it is computed from, is also used elsewhere and would have to stay"
            found, stage = Found(graph, found.value, found.form, reason), 6
        if found is not None and stage > best_stage:
            best, best_stage = found, stage
        if len(products) == 1:
            break  # the values before have been tried along with this one
    return best, {index}


def _products(graph: Graph, value: str, budget: Budget) -> set[int] | None:
    """The products that a value is made of by moving and summing alone; None if there is anything else."""
    products: set[int] = set()
    seen = {value}
    pending = [value]
    while pending:
        budget.visit()
        index = graph.producers.get(pending.pop())
        if index is None:
            return None
        node = graph.nodes[index]
        if not is_standard(node):
            return None
        if _multiplies(node):
            products.add(index)
            continue
        if node.op_type not in SUMS and not _moves(node):
            return None
        for name in _data_inputs(node):
            if name not in seen:
                seen.add(name)
                pending.append(name)
    return products


def _shared(graph: Graph, final: str, budget: Budget) -> str | None:
    """A value between the products and the result that something else needs, too."""
    pending, seen = [final], {final}
    while pending:
        budget.visit()
        name = pending.pop()
        if name != final and graph.is_final(name):
            return name
        node = graph.producer(name)
        if node is not None and node.op_type not in PRODUCTS:
            new = [source for source in _data_inputs(node) if source not in seen]
            seen.update(new)
            pending.extend(new)
    return None


def _prove_one_of(
    graph: Graph, chain: Sequence[str], products: set[int], budget: Budget, options: Options
) -> tuple[Found | None, int]:
    """Try the roots of the products, and with each the values of the chain, outermost first."""
    sides = _sides(graph, products, budget)
    if sides is None:
        return None, -1
    xs, ws = (_roots(graph, names) for names in sides)
    form = _FORMS[graph.nodes[min(products)].op_type] + (", per segment" if len(products) > 1 else "")
    best: UnprovenError | None = None
    best_value, near, i, j = chain[-1], False, 0, 0
    while i < len(xs) and j < len(ws):
        x, w = xs[i], ws[j]
        values = evaluate(graph, chain[-1], x, w, budget)
        near = near or _looks_like_windows(graph, products, values)
        outcome = _prove_any(graph, chain, values, x, w, options)
        if isinstance(outcome, tuple):
            value, compression = outcome
            return Found(graph, value, form, "", compression), 6
        value, error = outcome.value, outcome.error
        if best is None or error.stage > best.stage:
            best, best_value = error, value
        weak = max((v.windows for v in values.values() if isinstance(v, Terms)), default=0)
        near = near or (weak > 0 and error.stage >= 2)
        i, j = (i, j + 1) if error.side == W else (i + 1, j)
        if not error.side and error.stage >= 4:
            break
    if best is None or not near:
        return None, -1
    return Found(graph, best_value, form, str(best)), best.stage


@dataclass(frozen=True)
class _Failure:
    value: str
    error: UnprovenError


def _prove_any(
    graph: Graph, chain: Sequence[str], values: Mapping[str, Value | RefusalError], x: Root, w: Root, options: Options
) -> tuple[str, Compression] | _Failure:
    """Outermost first; a value of rank 3 first, because it needs no Reshape."""
    numbers = partial(weight_values, graph.constant(w.name), options.folder)
    failure: _Failure | None = None
    for rank_3 in (True, False):
        for value in reversed(chain):
            terms = values.get(value)
            if isinstance(terms, RefusalError):
                error = UnprovenError(str(terms))
            elif not isinstance(terms, Terms) or (len(terms.shape) == 3) != rank_3:
                continue
            else:
                try:
                    return value, prove(terms, x, w, numbers, allow_rounding=options.allow_rounding)
                except UnprovenError as unproven:
                    error = unproven
            if failure is None or error.stage > failure.error.stage:
                failure = _Failure(value, error)
    return failure or _Failure(chain[-1], UnprovenError("it cannot be followed"))


def _looks_like_windows(graph: Graph, products: set[int], values: Mapping[str, Value | RefusalError]) -> bool:
    """Whether a person would take this for the compression, proven or not."""
    for index in products:
        node = graph.nodes[index]
        if node.op_type == "Conv":
            numbers = {a.name: list(a.ints) for a in node.attribute if a.name in ("kernel_shape", "strides")}
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            wide = max(numbers.get("kernel_shape", [0]), default=0) >= LEAST_WINDOW
            if group > 1 and wide and max(numbers.get("strides", [1]), default=1) > 1:
                return True
            continue
        for name in node.input:
            terms = values.get(name)
            if (isinstance(terms, Terms) and terms.windows > 1) or (isinstance(terms, RefusalError) and terms.windows):
                return True
    return False


# --------------------------------------------------------------------------------------------------
# Roots


def _sides(graph: Graph, products: set[int], budget: Budget) -> tuple[list[str], list[str]] | None:
    """Values that all of x, and all of the weight, comes from, farthest from the products first."""
    operands: tuple[list[str], list[str]] = ([], [])
    for index in sorted(products):
        node = graph.nodes[index]
        first, second = node.input[0], node.input[1]
        if node.op_type != "Conv" and _size(graph, first, budget) < _size(graph, second, budget):
            first, second = second, first
        operands[0].append(first)
        operands[1].append(second)
    xs, ws = (_dominators(graph, names, budget) for names in operands)
    return (xs, ws) if xs and ws else None


def _ancestors(graph: Graph, names: Iterable[str], budget: Budget) -> tuple[dict[str, Sequence[str]], list[str]]:
    """What values are moved from: inputs of each moved value, and the values that are not moved from others."""
    edges: dict[str, Sequence[str]] = {}
    leaves: list[str] = []
    pending = list(dict.fromkeys(names))
    seen = set(pending)
    while pending:
        budget.visit()
        name = pending.pop()
        node = graph.producer(name)
        if node is None or graph.constant(name) is not None or not _moves(node):
            leaves.append(name)
            continue
        edges[name] = [source for source in _data_inputs(node) if source]
        for source in edges[name]:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return edges, leaves


def _size(graph: Graph, name: str, budget: Budget) -> float:
    """Elements that an operand is moved from; infinite where unknown."""
    total = 0.0
    for leaf in _ancestors(graph, [name], budget)[1]:
        known = graph.root(leaf)
        if known is None or any(isinstance(dim, Dynamic) for dim in known.shape):
            return math.inf
        total += math.prod(dim for dim in known.shape if not isinstance(dim, Dynamic))
    return total


def _dominators(graph: Graph, names: Sequence[str], budget: Budget) -> list[str]:
    """The values through which every way from the leaves to the operands leads, farthest first."""
    edges, leaves = _ancestors(graph, names, budget)
    ordered = [*leaves, *sorted(edges, key=lambda name: graph.producers[name])]
    at = {name: position for position, name in enumerate(ordered)}
    reach = [0] * len(ordered)
    for name, sources in edges.items():
        for source in sources:
            reach[at[source]] = max(reach[at[source]], at[name])
    for name in names:
        reach[at[name]] = len(ordered)
    result: list[str] = []
    farthest = len(leaves) - 1  # all ways start at the leaves
    for position, name in enumerate(ordered):
        if farthest <= position:
            result.append(name)
        farthest = max(farthest, reach[position])
    return result


def _roots(graph: Graph, names: Sequence[str]) -> list[Root]:
    """Those whose type is known; of 16 bits if there are such."""
    known = [found for name in names if (found := graph.root(name)) is not None]
    short = [found for found in known if found.dtype in SHORT]
    # A float32 constant may be a 16-bit weight that an exporter has folded: its numbers tell.
    constant = [found for found in known if found.dtype == FLOAT and graph.constant(found.name) is not None]
    return (short or constant or known)[:_MAX_ROOTS]


# --------------------------------------------------------------------------------------------------
# Evaluation


def evaluate(graph: Graph, final: str, x: Root, w: Root, budget: Budget) -> dict[str, Value | RefusalError]:
    """Follow all values between the roots and a result."""
    values: dict[str, Value | RefusalError] = {}
    for role, known in ((X, x), (W, w)):
        try:
            if x.name == w.name:
                raise RefusalError("the input and the weight are one tensor")
            values[known.name] = root(role, known.shape, known.dtype)
        except RefusalError as refusal:
            values[known.name] = refusal
    for index in sorted(_needed(graph, final, values, budget)):
        node = graph.nodes[index]
        inputs = [_input(graph, name, values) for name in node.input]
        try:
            for value in inputs[:2] if node.op_type == "Conv" else inputs:  # of a bias, that it is there
                if isinstance(value, RefusalError):
                    raise value
            call = Call(node, [Numbers(()) if isinstance(value, RefusalError) else value for value in inputs])
            results = split(call) if node.op_type == "Split" else [OPERATORS[node.op_type](call)]
        except RefusalError as refusal:
            refusal.windows |= any(isinstance(value, Terms) and value.windows > 1 for value in inputs)
            values.update((name, refusal) for name in node.output)
            continue
        except (ArithmeticError, LookupError, TypeError, ValueError):  # what no valid model holds
            values.update((name, RefusalError(f"{node.op_type} that makes no sense")) for name in node.output)
            continue
        values.update(zip(node.output, results, strict=False))
    return values


def _input(graph: Graph, name: str, values: Mapping[str, Value | RefusalError]) -> Value | RefusalError | None:
    if not name:
        return None
    if name in values:
        return values[name]
    numbers = graph.integers(name)
    return numbers if numbers is not None else RefusalError(f"{name!r} is neither constant nor followed")


def _needed(graph: Graph, final: str, known: Mapping[str, object], budget: Budget) -> set[int]:
    """Nodes between the known values and the result."""
    nodes: set[int] = set()
    pending = [final]
    while pending:
        name = pending.pop()
        index = graph.producers.get(name)
        if name in known or graph.constant(name) is not None or index is None or index in nodes:
            continue
        node = graph.nodes[index]
        if not is_standard(node) or (node.op_type not in OPERATORS and node.op_type != "Split"):
            continue
        budget.visit()
        nodes.add(index)
        pending.extend(node.input)
    return nodes
