"""Where a graph may hold the compression: products and sums, what leads to them, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .arithmetic import DENSE
from .evaluation import Values, evaluate
from .filters import is_dense, looks_like_windows, worth_trying
from .graph import Graph, weight_values
from .inlined import own_body
from .loops import WINDOW_LOOP
from .positions import Budget, Dynamic, RefusalError
from .proof import prove
from .results import Compression, OwnBody, Root, Roots, UnprovenError
from .roots import (
    Operands,
    biases,
    data_inputs,
    dominators,
    known_roots,
    moves,
    multiplies,
    operands,
    sums,
)
from .terms import LEAST_WINDOW, Terms, W, X

# Results that are tried for one product or sum.
_MAX_FINALS = 12
_PROVEN = 6

OWN_BODY = "our own portable body, inlined"

_FORMS = {
    "AveragePool": "average pooling",
    "Conv": "grouped convolution",
    "Einsum": "einsum over windows",
    "MatMul": "windows times weight in a matrix product",
    "Mul": "windows times weight, summed",
    "ReduceMean": "mean of windows",
    "ReduceSum": "sum of windows",
    WINDOW_LOOP: OWN_BODY,
}


@dataclass(frozen=True)
class Found:
    """A place where windows are weighted and summed.

    Attributes:
        graph: in which graph.
        value: the last value that belongs to it.
        form: how it is written, for people.
        reason: why it is not to be replaced; empty if it is.
        compression: what it is, if it is one.
        own_body: the node, if it is the portable body of one of ours.
    """

    graph: Graph
    value: str
    form: str
    reason: str = ""
    compression: Compression | None = None
    own_body: OwnBody | None = None

    @property
    def name(self) -> str:
        """Of the node that makes the value; the value's own if that has none."""
        node = self.graph.producer(self.value)
        return (node.name if node is not None else "") or self.value


@dataclass(frozen=True)
class _Attempt:
    """The best that is known of a chain: proven, or how far the proof got."""

    found: Found | None
    stage: int
    nodes: frozenset[int]


def search(graph: Graph, budget: Budget, folder: Path | None) -> Iterator[Found]:
    """The compressions of one graph, and what looks like one.

    Raises:
        ExhaustedError: between two candidates, when the budget is used up.
    """
    if not graph.is_sound:  # a value that is made twice
        return
    done: set[int] = set()
    for index, step in enumerate(graph.steps):
        if step.op[1] == WINDOW_LOOP and (own := own_body(graph, index, budget)) is not None:
            done.add(index)
            yield Found(graph, own[0], OWN_BODY, own_body=own[1])
    for pooling in (False, True):
        for index, node in enumerate(graph.nodes):
            if index in done or not (sums(node) if pooling else multiplies(graph, node)):
                continue
            attempt = _look(graph, index, pooling, budget, folder)
            if attempt is not None and attempt.found is not None:
                done |= attempt.nodes
                yield attempt.found


def _look(graph: Graph, index: int, pooling: bool, budget: Budget, folder: Path | None) -> _Attempt | None:
    """What one product or sum is; None where its shapes say that it is nothing."""
    budget.visit()
    node = graph.nodes[index]
    if not pooling and is_dense(graph, node):
        looks = looks_like_windows(graph, node, budget)
        found = Found(graph, str(node.output[0]), _FORMS[node.op_type], DENSE) if looks else None
        return _Attempt(found, 0, frozenset({index}))
    if not worth_trying(graph, node, budget):
        return None
    chain = _forward(graph, index, budget)
    if node.op_type == "Mul" and not any(_is_sum(graph, value) for value in chain):
        return None
    with budget.counting():
        return _attempt(graph, index, chain, budget, folder)


def _is_sum(graph: Graph, value: str) -> bool:
    node = graph.producer(value)
    return node is not None and sums(node)


def _forward(graph: Graph, index: int, budget: Budget) -> list[str]:
    """Values made from a product or sum by moving, scaling and summing alone, its own first."""
    chain = [graph.nodes[index].output[0]]
    summed = sums(graph.nodes[index])
    while chain[-1] not in graph.outputs and len(chain) < _MAX_FINALS:
        budget.visit()
        summed = summed or _is_sum(graph, chain[-1])
        if summed and graph.is_final(chain[-1]):  # beyond, this one would have to stay
            break
        following = None
        for consumer in graph.consumers.get(chain[-1], [])[:_MAX_FINALS]:
            node = graph.nodes[consumer]
            follows = moves(graph, node) or sums(node)
            if follows and len(node.output) == 1 and chain[-1] in data_inputs(graph, node):
                following = node.output[0]
                break
        if following is None:
            break
        chain.append(following)
    return chain


def _attempt(graph: Graph, index: int, chain: Sequence[str], budget: Budget, folder: Path | None) -> _Attempt:
    """The outermost value of the chain that is a compression, or the best reason why none is."""
    pooling = sums(graph.nodes[index])
    best = _Attempt(None, -1, frozenset({index}))
    for last in reversed(range(len(chain))):
        walked = _between(graph, chain[last], pooling, budget)
        if walked is None:
            continue
        bases, nodes = walked
        found, stage = _prove_one_of(graph, chain[: last + 1], bases, budget, folder)
        if found is not None and found.compression is not None:
            shared = _shared(graph, found.value, pooling, budget)
            if shared is None:
                return _Attempt(found, stage, nodes)
            reason = f"{shared!r}, which it is computed from, is also used elsewhere and would have to stay"
            found, stage = Found(graph, found.value, found.form, reason), _PROVEN
        if found is not None and stage > best.stage:
            best = _Attempt(found, stage, nodes)
        if len(bases) == 1:
            break  # the values before have been tried along with this one
    return best


def _between(graph: Graph, value: str, pooling: bool, budget: Budget) -> tuple[set[int], frozenset[int]] | None:
    """The products that a value is made of by moving and summing alone, and all nodes on the way.

    Args:
        pooling: whether the sums next to the value are looked for instead.

    Returns:
        None if the value is made of anything else, too.
    """
    bases: set[int] = set()
    nodes: set[int] = set()
    seen = {value}
    pending = [value]
    while pending:
        budget.visit()
        index = graph.producers.get(pending.pop())
        if index is None:
            return None
        node = graph.nodes[index]
        nodes.add(index)
        if sums(node) if pooling else multiplies(graph, node):
            bases.add(index)
            continue
        if not (moves(graph, node) or sums(node)):
            return None
        for name in data_inputs(graph, node):
            if name not in seen:
                seen.add(name)
                pending.append(name)
    return bases, frozenset(nodes)


def _shared(graph: Graph, final: str, pooling: bool, budget: Budget) -> str | None:
    """A value between the products, or the pooling, and the result that something else needs, too."""
    pending, seen = [final], {final}
    while pending:
        budget.visit()
        name = pending.pop()
        if name != final and graph.is_final(name):
            return name
        node = graph.producer(name)
        if node is None or multiplies(graph, node) or (pooling and sums(node)):
            continue
        new = [source for source in data_inputs(graph, node) if source not in seen]
        seen.update(new)
        pending.extend(new)
    return None


# --------------------------------------------------------------------------------------------------
# Roots, and a proof for one of them


def _prove_one_of(
    graph: Graph, chain: Sequence[str], bases: set[int], budget: Budget, folder: Path | None
) -> tuple[Found | None, int]:
    """Try the roots of the products, and with each the values of the chain."""
    best: tuple[Found | None, int] = (None, -1)
    form = _FORMS[graph.nodes[min(bases)].op_type] + (", per segment" if len(bases) > 1 else "")
    for sides in operands(graph, bases, budget):
        trial = _Trial(graph, chain, bases, sides, budget, folder)
        trial.run()
        if trial.proven is not None:
            value, compression = trial.proven
            return Found(graph, value, form, "", compression), _PROVEN
        if best[0] is None and trial.error is not None and trial.is_near:
            best = Found(graph, trial.failed, form, str(trial.error)), trial.error.stage
    return best


class _Trial:
    """The roots of one side for the tokens and the other for the weight, tried one after the other."""

    def __init__(
        self,
        graph: Graph,
        chain: Sequence[str],
        bases: set[int],
        sides: Operands,
        budget: Budget,
        folder: Path | None,
    ) -> None:
        self._graph, self._chain, self._bases, self._sides = graph, chain, bases, sides
        self._budget, self._folder = budget, folder
        self._materialised: set[str] = set()
        self.proven: tuple[str, Compression] | None = None
        self.error: UnprovenError | None = None
        self.failed = chain[-1]
        self.is_near = False

    def run(self) -> None:
        """Roots without a bias first: they are exact."""
        graph, names = self._graph, self._sides.x
        direct = known_roots(graph, dominators(graph, names, self._budget))
        ws: Sequence[Root | None] = [None]
        if self._sides.w:
            ws = known_roots(graph, dominators(graph, self._sides.w, self._budget))
        added = known_roots(graph, biases(graph, names, self._budget))[:1]
        if added:
            known = {root.name for root in direct}
            through = dominators(graph, names, self._budget, adds=True)
            behind = [root for root in known_roots(graph, through) if root.name not in known]
            for x in behind[:1]:
                self._note_windows(x, evaluate(graph, self._chain[-1], Roots(x, None, added[0]), self._budget))
            self._each(direct, ws, None)
            if self.proven is None:
                self._each(behind, ws, added[0])
        else:
            self._each(direct, ws, None)

    def _each(self, xs: Sequence[Root], ws: Sequence[Root | None], bias: Root | None) -> None:
        """The nearer roots of the side that the proof complains of."""
        i = j = 0
        while i < len(xs) and j < len(ws) and self.proven is None:
            x, w = xs[i], ws[j]
            if x.name in self._materialised:
                i += 1
                continue
            values = evaluate(self._graph, self._chain[-1], Roots(x, w, bias), self._budget)
            self._note_windows(x, values)
            error = self._prove_any(values, Roots(x, w, bias))
            if error is None:
                return
            i, j = (i, j + 1) if error.side == W else (i + 1, j)
            if not error.side and error.stage >= 4:
                return

    def _note_windows(self, x: Root, values: Values) -> None:
        """Windows that are copies of tokens are no root: replacing what follows them saves nothing."""
        size = _elements(values[x.name])
        for name, value in values.items():
            if _is_windows(value) or _elements(value) > size:
                self._materialised.add(name)
        copied = any(name in self._materialised for name in self._sides.x)
        self.is_near = self.is_near or copied or _looks_like_windows(self._graph, self._bases, values)

    def _prove_any(self, values: Values, roots: Roots) -> UnprovenError | None:
        """Prefer what is exact, then what needs no Reshape, then what is made last."""
        numbers = partial(weight_values, self._graph.constant(roots.w.name) if roots.w else None, self._folder)
        best: tuple[str, Compression] | None = None
        failure: UnprovenError | None = None
        for value in reversed(self._chain):
            terms = values.get(value)
            try:
                if isinstance(terms, RefusalError):
                    raise UnprovenError(str(terms))
                if not isinstance(terms, Terms):
                    raise UnprovenError("it cannot be followed")
                proven = prove(terms, roots, numbers)
            except UnprovenError as error:
                if failure is None or error.stage > failure.stage:
                    failure = error
                if self.error is None or error.stage > self.error.stage:
                    self.error, self.failed = error, value
                continue
            if best is None or _rank(proven) < _rank(best[1]):
                best = value, proven
            if _rank(proven) == (False, False):
                break
        self.proven = best
        windows = any(isinstance(value, Terms) and value.windows for value in values.values())
        if failure is not None and failure.stage >= 2 and (windows or roots.w is None):
            self.is_near = True
        return None if best is not None else failure


def _rank(compression: Compression) -> tuple[bool, bool]:
    return bool(compression.inexact), compression.has_own_shape


def _looks_like_windows(graph: Graph, bases: set[int], values: Mapping[str, object]) -> bool:
    """Whether a person would take this for the compression, proven or not."""
    for index in bases:
        node = graph.nodes[index]
        if node.op_type == "Conv":
            numbers = {a.name: list(a.ints) for a in node.attribute if a.name in ("kernel_shape", "strides")}
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            wide = max(numbers.get("kernel_shape", [0]), default=0) >= LEAST_WINDOW
            if group > 1 and wide and max(numbers.get("strides", [1]), default=1) > 1:
                return True
            continue
        for name in (*node.input, *node.output):
            if _is_windows(values.get(name)):
                return True
    return False


def _elements(value: object) -> float:
    """Elements of a tensor that is made of tokens alone; 0 if it is none, or their number is not known."""
    if not isinstance(value, Terms) or X not in value.factors or W in value.factors or value.summed:
        return 0
    known = [dim for dim in value.shape if not isinstance(dim, Dynamic)]
    return math.prod(known) if len(known) == len(value.shape) else 0


def _is_windows(value: object) -> bool:
    """Whether a value is windows read by indices or a strided kernel, or would have been."""
    return (isinstance(value, Terms) and value.windows > 1) or (isinstance(value, RefusalError) and value.windows)
