"""NSA042: a compression of nothing (T' = 0) reaches an operator that cannot take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from onnx import FunctionProto, NodeProto

from ...analysis import Analysis, NsaNode
from ...graph.emptiness import Extent, results
from ...graph.folding import Array
from ...graph.scopes import Scope
from ...graph.tensors import tensor_facts
from ...graph.walk import is_standard, node_name, text
from ...operators.base import Operator
from ...operators.facts import NodeFacts
from ...rulebook.finding import Finding, Severity
from ...rulebook.rule import note, ours, sound
from ...targets import cpu
from .registry import general

# How often all scopes are looked at: what a function or a branch returns may reach another one.
_PASSES = 8


def _listed(dies: bool) -> str:
    return ", ".join(name for name, stop in cpu.STOPS.items() if stop.dies is dies)


_DOCUMENTATION = f"""
Where no segment fills a window, T' is 0. That is legal, and most operators take such a tensor. The CPU provider of
onnxruntime {cpu.ONNXRUNTIME} does not take it in some forms of these operators. The whole process dies in:

{_listed(dies=True)}.

The run fails in:

{_listed(dies=False)}.

The rule follows the empty axis through the nodes between. It reports a node that this axis certainly reaches when
T' is 0, where lengths are not known before a run or give T' = 0. A branch of an If may be there because of it: nodes
in it are not reported for a T' from outside.
"""


@general(
    "NSA042",
    "no T' = 0 reaches an operator that cannot take it",
    severity=Severity.WARNING,
    documentation=_DOCUMENTATION,
    hint="put a null row in front of the compressed tokens (Concat), or run this part in an If on T' > 0",
)
def _stops(model: Analysis) -> Iterator[Finding]:
    for reached in _Search(model).reached:
        outcome = "the process dies there" if reached.stop.dies else "the run fails there"
        message = f"T' of {reached.origin.op_type} {reached.origin.name!r} may be 0, and reaches this node: {outcome}"
        yield note(
            f"{message} (onnxruntime {cpu.ONNXRUNTIME}: {reached.stop.reason})",
            node=node_name(reached.node, reached.position),
            op_type=text(reached.node.op_type),
            place=reached.scope.place,
            hint=reached.stop.hint,
        )


@dataclass(frozen=True)
class _Reached:
    """A node that stops at what comes from ``origin``."""

    origin: NsaNode
    stop: cpu.Stop
    scope: Scope
    position: int
    node: NodeProto


@dataclass(frozen=True)
class _Value:
    """A value that is empty along some axes when T' of ``origin`` is 0; ``given`` if because of a function's call."""

    extent: Extent
    origin: NsaNode
    given: bool = False


def _may_be_empty(node: NsaNode, operator: Operator, facts: NodeFacts, number: int, axis: int) -> bool:
    """Whether a dim of an output's own can be 0."""
    if (known := operator.known_dims(facts).get((number, axis))) is not None:
        return not known
    declared = tensor_facts(node.scope.type_of(node.proto.output[number])).dim(axis)
    return not declared and operator.may_be_empty(facts)


@dataclass
class _Search:
    model: Analysis
    reached: list[_Reached] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._values: dict[tuple[int, str], _Value] = {}
        self._seen: set[tuple[int, int]] = set()
        for node, operator, facts in ours(sound(self.model.nodes)):
            for number, (output, name) in enumerate(zip(operator.outputs, node.proto.output, strict=False)):
                own = (axis for axis, sources in enumerate(output.dims) if not sources)
                empty = frozenset(axis for axis in own if _may_be_empty(node, operator, facts, number, axis))
                if empty:
                    self._values[(id(node.scope), name)] = _Value(Extent(len(output.dims), empty), node)
        self._functions = {
            (scope.graph.domain, scope.graph.name): scope
            for scope in self.model.scopes
            if isinstance(scope.graph, FunctionProto)
        }
        self._inner: dict[tuple[int, int], list[Scope]] = {}
        for scope in self.model.scopes:
            if scope.parent is not None:
                self._inner.setdefault((id(scope.parent), scope.position), []).append(scope)
        for _ in range(_PASSES):
            before = dict(self._values)
            for scope in self.model.scopes if self._values else ():
                self._follow(scope)
            if self._values == before:
                return

    def _follow(self, scope: Scope) -> None:
        for position, step in enumerate(scope.steps):
            node, inputs = step.node, [self._value(scope, name) for name in step.inputs]
            empty = next((one for one in inputs if one is not None), None)
            if is_standard(node):  # onnxruntime has a kernel, which goes before a function of that name
                self._leave_branches(scope, position, node)
                if empty is not None:
                    self._pass(scope, position, node, inputs, empty)
            elif (function := self._functions.get(step.op)) is not None:
                self._call(scope, node, function, inputs)

    def _value(self, scope: Scope, name: str) -> _Value | None:
        """The value if it may be empty; not from outside of a branch, which may be there because of it."""
        for one in scope.chain():
            if name in one.names:
                return self._values.get((id(one), name))
            if one.parent is not None and one.parent.steps[one.position].op[1] == "If":
                return None
        return None

    def _pass(self, scope: Scope, position: int, node: NodeProto, inputs: list[_Value | None], empty: _Value) -> None:
        values = self.model.values

        def constant(index: int) -> Array | None:
            return values.value(scope, node.input[index])

        extents = [
            one.extent if one is not None else _extent(scope, node.input[index]) for index, one in enumerate(inputs)
        ]
        stop = cpu.stop(node, extents, constant)
        if stop is not None:
            if (id(scope), position) not in self._seen:
                self._seen.add((id(scope), position))
                self.reached.append(_Reached(empty.origin, stop, scope, position, node))
            return
        given = any(one.given for one in inputs if one is not None)
        for name, extent in zip(node.output, results(node, extents, constant), strict=False):
            if extent is not None and extent.empty:
                self._keep(scope, name, _Value(extent, empty.origin, given))

    def _keep(self, scope: Scope, name: str, value: _Value) -> None:
        self._values.setdefault((id(scope), name), value)

    def _call(self, scope: Scope, node: NodeProto, function: Scope, inputs: list[_Value | None]) -> None:
        for formal, one in zip(function.inputs, inputs, strict=False):
            if one is not None:
                self._keep(function, formal, replace(one, given=True))
        for name, one in self._returned(function, node):
            # What another call has given says nothing of this one, if it gives nothing empty.
            if not one.given or any(inputs):
                given = any(each.given for each in inputs if each is not None)
                self._keep(scope, name, replace(one, given=given))

    def _leave_branches(self, scope: Scope, position: int, node: NodeProto) -> None:
        if node.op_type == "If":
            for inner in self._inner.get((id(scope), position), ()):
                for name, one in self._returned(inner, node):
                    self._keep(scope, name, one)

    def _returned(self, inner: Scope, node: NodeProto) -> Iterator[tuple[str, _Value]]:
        for result, name in zip(inner.outputs, node.output, strict=False):
            if (one := self._values.get((id(inner), result))) is not None:
                yield name, one


def _extent(scope: Scope, name: str) -> Extent | None:
    """The rank of a value that is not empty; None if it is not known."""
    known = scope.type_of(name) if name else None
    rank = tensor_facts(known).rank()
    return None if rank is None else Extent(rank)
