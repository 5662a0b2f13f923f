"""What a proof takes (roots) and gives: the compression, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from ..operators.base import Operator
from .positions import Dim, Integers


class UnprovenError(Exception):
    """Why the products are not the compression.

    Attributes:
        side: X or W if it is about that root: another one may do.
        stage: how much had been proven: 0 nothing, 1 the window, 2 heads and channels, 3 the segments, 4 the weight,
            5 the contract.
    """

    def __init__(self, reason: str, side: str = "", stage: int = 0):
        super().__init__(reason)
        self.side = side
        self.stage = stage


@dataclass(frozen=True)
class Root:
    """A tensor of the graph that the products take their elements from: its name, shape and ONNX element type."""

    name: str
    shape: tuple[Dim, ...]
    dtype: int


@dataclass(frozen=True)
class Roots:
    """The tensors that a value is made of.

    Attributes:
        x: the tokens.
        w: their weight; None where each counts the same.
        bias: what is added to the tokens of each window; None if nothing is.
    """

    x: Root
    w: Root | None = None
    bias: Root | None = None


@dataclass(frozen=True)
class Compression:
    """What a node has to be given to compute the value, and what has to be made of its result.

    Attributes:
        block, stride, heads, dim: of the node.
        lengths: prefix sums; None for one segment of unknown length.
        weight_places: ``[block, N]``: where in the weight root, row-major, each element is; None without such a root.
        scale: what the weight is multiplied by; the weight itself if there is no root.
        bias_places: ``[block, N, D]``: the same in the bias root; None without one.
        shape: of the value, with the axes of windows first, then those of heads and channels.
        order: where each axis of the value is in ``shape``; None where they are in that order.
        dtype: of the value.
        inexact: how the value's arithmetic differs from the node's; empty if it does not.
        operator: of the node.
    """

    roots: Roots
    block: int
    stride: int
    heads: int
    dim: int
    lengths: tuple[int, ...] | None
    weight_places: Integers | None
    scale: Fraction
    bias_places: Integers | None
    shape: tuple[Dim, ...]
    order: tuple[int, ...] | None
    dtype: int
    inexact: str
    operator: Operator

    @property
    def has_own_shape(self) -> bool:
        """Whether the node's result has to be reshaped."""
        return self.order is not None or self.shape[1:] != (self.heads, self.dim)


@dataclass(frozen=True)
class OwnBody:
    """A node of ours whose portable body is in the graph: its inputs, in the schema's order, and its attributes."""

    operator: Operator
    inputs: tuple[str, ...]
    attributes: Mapping[str, int]
