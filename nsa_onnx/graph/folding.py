"""Computes what small integer nodes make of constants: lengths, slots and tables that are not initializers.

The file is not trusted. Only operators that are known here are run, the size of each result is bounded before it is
computed, and a model has a budget of nodes and elements. What exceeds it counts as unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto

from .outline import Op
from .reference import evaluate
from .scopes import Scope
from .tensors import elements
from .walk import STANDARD_DOMAINS

Array = npt.NDArray[Any]

# One value; twice that would be a batch of a million sequences.
MAX_ELEMENTS = 2**20
# All values of a model together, and all nodes that are run for them: a fraction of a second of work each.
MAX_TOTAL_ELEMENTS = 2**24
MAX_NODES = 1000

Bound = Callable[[Sequence[Array]], float]


def _largest(arrays: Sequence[Array]) -> float:
    return max((_room(array.shape) for array in arrays), default=0)


def _room(shape: Sequence[int]) -> float:
    """Elements of an array, a dim of 0 counted for 1: an operation may take such a dim away."""
    return elements(max(1, int(dim)) for dim in shape)


def _broadcast(arrays: Sequence[Array]) -> float:
    return _room(np.broadcast_shapes(*(array.shape for array in arrays)))


def _range(arrays: Sequence[Array]) -> float:
    start, limit, delta = (int(array.item()) for array in arrays)
    return abs(limit - start) / abs(delta)  # a delta of 0 raises


def _expand(arrays: Sequence[Array]) -> float:
    return _room(np.broadcast_shapes(arrays[0].shape, tuple(arrays[1].tolist())))


# Upper bounds of the elements that a result has, for the operators that are run.
_BOUNDS: dict[str, Bound] = {
    **dict.fromkeys(("Identity", "Cast", "CumSum", "Slice", "Reshape", "Flatten", "Squeeze", "Unsqueeze"), _largest),
    **dict.fromkeys(("Transpose", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "Split", "Shape"), _largest),
    **dict.fromkeys(("Neg", "Abs", "Sign", "Not"), _largest),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Where", "And", "Or"), _broadcast),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"), _broadcast),
    "Concat": lambda arrays: sum(_room(array.shape) for array in arrays),
    "Gather": lambda arrays: _room(arrays[0].shape) * _room(arrays[1].shape),
    "Range": _range,
    "ConstantOfShape": lambda arrays: _room(arrays[0].tolist()),
    "Expand": _expand,
    "Tile": lambda arrays: _room(arrays[0].shape) * _room(arrays[1].tolist()),
}

Key = tuple[int, str]


class Folder:
    """Values of one model, computed once each.

    Args:
        read: the values of a constant tensor, int32 or int64; None if they cannot be known.
    """

    def __init__(self, read: Callable[[TensorProto], Array | None]) -> None:
        self._read = read
        self._known: dict[Key, Array | None] = {}
        self._open: set[Key] = set()
        self._nodes = MAX_NODES
        self._elements = float(MAX_TOTAL_ELEMENTS)

    def value(self, scope: Scope, name: str) -> Array | None:
        """What a name stands for in every run; None if that is not known. Shapes with a dim of 0 are right, too."""
        pending = [(scope, name)]
        while pending:
            place, wanted = pending[-1]
            home = place.home(wanted)
            if home is None or (key := (id(home), wanted)) in self._known:
                pending.pop()
                continue
            node = None if wanted in home.constants else home.producer(wanted)
            missing = [] if node is None else self._missing(home, node)
            if missing and key not in self._open:
                self._open.add(key)
                pending.extend((home, other) for other in missing)
                continue
            pending.pop()
            if wanted in home.constants:
                self._keep(key, self._read(home.constants[wanted]))
            elif node is None or missing:  # a graph's input; a cycle
                self._known[key] = None
            else:
                self._run(home, node)
        home = scope.home(name)
        return None if home is None else self._known[(id(home), name)]

    def _missing(self, scope: Scope, node: NodeProto) -> list[str]:
        """Inputs that must be known first. Nodes that are not run need none."""
        if not _runs(node):
            return []
        homes = ((name, scope.home(name)) for name in node.input if name)
        return [name for name, home in homes if home is not None and (id(home), name) not in self._known]

    def _inputs(self, scope: Scope, node: NodeProto) -> list[Array | None] | None:
        """Values of a node's inputs, None for those left out; None if one is not known."""
        inputs: list[Array | None] = []
        for name in node.input:
            home = scope.home(name)
            value = None if home is None else self._known.get((id(home), name))
            if name and value is None and node.op_type == "Shape":
                value = _stand_in(scope, name)
            if name and value is None:
                return None
            inputs.append(value)
        return inputs

    def _run(self, scope: Scope, node: NodeProto) -> None:
        for name in node.output:
            self._known[(id(scope), name)] = None
        inputs = self._inputs(scope, node) if _runs(node) and self._nodes > 0 else None
        if inputs is None:
            return
        try:
            bound = _BOUNDS[node.op_type]([array for array in inputs if array is not None])
            if bound > MAX_ELEMENTS and node.op_type != "Shape":
                return
            self._nodes -= 1
            feeds = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
            results = evaluate(node, feeds, scope.imports.get("", 1))
        except Exception:  # whatever a broken node makes NumPy or onnx raise: its value is not known
            return
        for name, result in zip(node.output, results, strict=False):
            if name and isinstance(result, (np.ndarray, np.generic)):
                self._keep((id(scope), name), np.asarray(result))

    def _keep(self, key: Key, value: Array | None) -> None:
        room = 0.0 if value is None else _room(value.shape)
        self._elements -= room
        fits = room <= MAX_ELEMENTS and self._elements >= 0
        self._known[key] = value if fits and value is not None and value.dtype.kind in "iufb" else None


def may_run(op: Op) -> bool:
    """Whether nodes of an operator are run at all."""
    return op[1] in _BOUNDS and op[0] in STANDARD_DOMAINS


def _runs(node: NodeProto) -> bool:
    """Whether a node may be run, if its inputs are known."""
    return may_run((node.domain, node.op_type)) and not any(attribute.ref_attr_name for attribute in node.attribute)


def _stand_in(scope: Scope, name: str) -> Array | None:
    """An array of a value's static shape that takes no memory: all that Shape looks at."""
    known = scope.type_of(name)
    if known is None or not known.HasField("tensor_type") or not known.tensor_type.HasField("shape"):
        return None
    dims = known.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims):
        return None
    try:
        return np.broadcast_to(np.int8(0), [dim.dim_value for dim in dims])
    except ValueError:  # more dims or elements than NumPy counts
        return None
