"""Target ``cpu``: the standard operators at which onnxruntime's CPU provider stops on an axis of length 0.

Such an axis is legal in ONNX. A compression gives one where no segment fills a window (T' = 0).
``tools/empty_dims.py`` tried all standard operators that take floats, each in a process that may die; a test repeats
that and compares.

The target adds no limits to our own operators: the library takes and refuses exactly what their contract says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import NodeProto

from ..graph.emptiness import Constant, Extent, Extents, attribute, integers
from .base import Target

ONNXRUNTIME = "1.32.0"
"""The version that the table was made with. Older ones stop at more: 1.21.1 at nearly every Einsum."""

Where = Callable[[NodeProto, Extents, Constant], bool]


@dataclass(frozen=True)
class Stop:
    """An operator at which a run ends.

    Attributes:
        dies: the whole process does, without an error that Python sees; otherwise the run fails.
        where: whether a node does that, with the empty axes that its inputs have.
        reason: the outcome, for people.
        hint: the way out, where it is another one than a null row.
    """

    dies: bool
    where: Where
    reason: str
    hint: str = ""


def _input(index: int, axes: Callable[[int], range | tuple[int, ...]] = range) -> Where:
    """An input is empty along one of these axes; by default, along any."""

    def where(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
        given = inputs[index] if index < len(inputs) else None
        return given is not None and any(axis in given.empty for axis in axes(given.rank))

    return where


def _along(default: int) -> Where:
    """The first input is empty along the node's axis."""

    def where(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
        return (x := inputs[0]) is not None and _axis(node, default, x) in x.empty

    return where


def _axis(node: NodeProto, default: int, x: Extent) -> int:
    return int(attribute(node, "axis", default)) % max(1, x.rank)


def _arg(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
    """Nothing to choose from, and something to choose."""
    return (x := inputs[0]) is not None and x.empty == {_axis(node, 0, x)}


def _mean(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
    return (x := inputs[0]) is not None and max(x.empty, default=-1) >= _axis(node, -1, x)


def _pool(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
    return (x := inputs[0]) is not None and bool(x.empty) and 0 not in x.empty


def _stft(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
    return _input(2)(node, inputs, constant) and not _input(0)(node, inputs, constant)


def _any(*wheres: Where) -> Where:
    return lambda node, inputs, constant: any(where(node, inputs, constant) for where in wheres)


def _several(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
    return len(node.input) > 1 and any(one is not None and one.empty for one in inputs)


def _unique(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
    """Along an axis, and what it compares there is empty."""
    x = inputs[0]
    return attribute(node, "axis") is not None and x is not None and min(x.empty, default=-1) > _axis(node, 0, x)


def _reshape(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
    shape, x = integers(node, constant, "shape", 1), inputs[0]
    if x is None or shape is None or attribute(node, "allowzero", 0):
        return False
    return -1 in shape and any(dim == 0 and axis in x.empty for axis, dim in enumerate(shape))


def _top_k(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
    k = integers(node, constant, "k", 1)
    return k is not None and k[0] > 0 and _along(-1)(node, inputs, constant)


def _gather(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
    indices = constant(1)
    return indices is not None and indices.size > 0 and _along(0)(node, inputs, constant)


def _scan(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
    count = attribute(node, "num_scan_inputs", 0)
    scanned = inputs[len(inputs) - count :]
    axes = attribute(node, "scan_input_axes") or [0] * len(scanned)
    return any(one is not None and axis in one.empty for axis, one in zip(axes, scanned, strict=False))


def _pad(node: NodeProto, inputs: Extents, constant: Constant) -> bool:
    pads, x = integers(node, constant, "pads", 1), inputs[0]
    if x is None or pads is None or attribute(node, "mode", b"constant") not in (b"edge", b"reflect"):
        return False
    axes = integers(node, constant, "axes", 3) or list(range(len(pads) // 2))
    return any(pad and axis % max(1, x.rank) in x.empty for axis, pad in zip(axes * 2, pads, strict=False))


def _spatial(rank: int) -> range:
    return range(2, rank)


_POOLS = ("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_MAT_MUL = "write it as MatMul, which takes an empty operand (with Transpose before and after)"
_NOTHING = "there is nothing to choose from"

STOPS: dict[str, Stop] = {
    "ConvTranspose": Stop(
        True, _input(0, lambda rank: (2, 3) if rank == 5 else ()), "3-D, it reads outside of its memory"
    ),
    "Einsum": Stop(True, _several, "it divides by zero for many equations", _MAT_MUL),
    "GRU": Stop(True, _input(0), "it aborts"),
    "LSTM": Stop(True, _input(0, lambda rank: (1,)), "it aborts"),
    "STFT": Stop(True, _stft, "it divides by zero"),
    "Unique": Stop(True, _unique, "it aborts"),
    "ArgMax": Stop(False, _arg, _NOTHING),
    "ArgMin": Stop(False, _arg, _NOTHING),
    "Attention": Stop(False, _any(*map(_input, range(3))), "its sequences must have tokens"),
    "Conv": Stop(False, _input(0, _spatial), "its sequences must have tokens"),
    "Gather": Stop(False, _gather, _NOTHING),
    "GridSample": Stop(False, _input(0, _spatial), _NOTHING),
    "GroupNormalization": Stop(False, _input(0), "it reshapes with -1"),
    "LayerNormalization": Stop(False, _mean, "it takes the mean of nothing"),
    "Pad": Stop(False, _pad, "there is no edge to repeat"),
    "RMSNormalization": Stop(False, _mean, "it takes the mean of nothing"),
    "Reshape": Stop(
        False, _reshape, "it cannot tell what -1 stands for", "give the other dims as numbers and let -1 stand for T'"
    ),
    "Scan": Stop(False, _scan, "it needs one turn at least", "Loop takes 0 turns"),
    "SoftmaxCrossEntropyLoss": Stop(False, _input(0), "it reshapes with -1"),
    "TopK": Stop(False, _top_k, _NOTHING, "let k be at most T': Min of k and the size of that axis"),
    **{name: Stop(False, _pool, "only the batch may be empty") for name in _POOLS},
}
"""By operator of the standard domain."""


def stop(node: NodeProto, inputs: Extents, constant: Constant) -> Stop | None:
    """What ends the run at a node of the standard domain with such inputs; None if nothing does."""
    found = STOPS.get(node.op_type)
    try:
        return found if found is not None and inputs and found.where(node, inputs, constant) else None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # the node is broken
        return None


TARGET = Target("cpu", "onnxruntime with our library. What holds here holds for all.")
