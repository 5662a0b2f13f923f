"""One node with the values of its inputs, as the functions for ONNX operators get it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from onnx import AttributeProto, NodeProto

from .positions import Dim, Dynamic, Integers, RefusalError
from .terms import Terms


@dataclass(frozen=True)
class Numbers:
    """A few integers, some of which may depend on the number of tokens T; ``Dynamic(b)`` stands for T - b."""

    values: tuple[Dim, ...]
    scalar: bool = False


@dataclass(frozen=True)
class Scalar:
    """A constant of one element that is no integer: what is scaled by it keeps its shape.

    Attributes:
        value: the number; None if it is not finite.
        dtype: its element type.
        rank: how many axes of length 1 it has.
    """

    value: Fraction | None
    dtype: int
    rank: int


Value = Terms | Integers | Numbers | Scalar


class Call:
    """One node and the values of its inputs; a missing optional input is None."""

    def __init__(self, node: NodeProto, inputs: Sequence[Value | None]):
        self.node = node
        self.inputs = inputs
        self._attributes = {attribute.name: attribute for attribute in node.attribute}

    def attribute(self, name: str, kind: int) -> AttributeProto | None:
        """An attribute of the kind that the operator has; a wrong one means whatever a runtime makes of it."""
        found = self._attributes.get(name)
        if found is not None and (found.ref_attr_name or found.type != kind):
            raise RefusalError(f"attribute {name} of {self.node.op_type} is not of the operator's kind")
        return found

    def integer(self, name: str, default: int) -> int:
        found = self.attribute(name, AttributeProto.INT)
        return default if found is None else int(found.i)

    def flag(self, name: str, default: int = 0) -> bool:
        value = self.integer(name, default)
        if value not in (0, 1):
            raise RefusalError(f"attribute {name} of {self.node.op_type} is neither 0 nor 1")
        return value == 1

    def integers(self, name: str) -> list[int] | None:
        found = self.attribute(name, AttributeProto.INTS)
        return None if found is None else list(found.ints)

    def input(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def terms(self, index: int = 0) -> Terms:
        value = self.input(index)
        if isinstance(value, Terms):
            return value
        raise RefusalError(f"{self.node.op_type}: input {index} is no tensor that is followed")

    def dims(self, index: int) -> list[Dim] | None:
        """A small integer input; None if it is absent."""
        value = self.input(index)
        if value is None:
            return None
        if isinstance(value, Numbers):
            return list(value.values)
        if isinstance(value, np.ndarray) and value.size <= 64:
            return [int(number) for number in value.reshape(-1)]
        raise RefusalError(f"{self.node.op_type}: input {index} is not constant")

    def constants(self, index: int, name: str) -> list[int] | None:
        """Integers that are an input in newer opsets and an attribute in older ones."""
        dims = self.dims(index)
        if dims is None:
            return self.integers(name)
        if any(isinstance(dim, Dynamic) for dim in dims):
            raise RefusalError(f"{self.node.op_type}: input {index} is not constant")
        return [dim for dim in dims if not isinstance(dim, Dynamic)]
