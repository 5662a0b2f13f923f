"""What is known of a node in a graph, and the errors that only a node can have.

What is unknown counts as right: a graph whose values cannot be computed has no violation for that alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..graph.tensors import Integers, Mask, TensorFacts, Unknown
from .contract import DTYPES, Array, Violation, table
from .windows import SEQ, TENSOR_ROWS

# What only a graph can get wrong: the eager calls have no such rows. Some are about the argument that they name.
NODE_ROWS = {
    **table(
        ("input_missing", TypeError, "{}", "{} is a required input and is not connected", "NSA004"),
        ("attribute_missing", TypeError, "{}", "{} is a required attribute and is missing", "NSA005"),
        ("attribute_float", TypeError, "{}", "{} must be a float attribute, got an int one: {}", "NSA005"),
        ("seq_negative", RuntimeError, SEQ, f"{SEQ}[{{}}] must be >= 0, got {{}}", "NSA015"),
    ),
    **TENSOR_ROWS,
}


@dataclass(frozen=True)
class NodeFacts:
    """A node of one of our operators, as far as it is known.

    Attributes:
        op_type: a name in `OPERATORS`.
        attributes: value by name; `Unknown` for a reference to an attribute of the enclosing function.
        inputs: the connected inputs by the schema's name. An input that is left out is not in it.
        constants: values of the integer inputs that are constant, by name.
        masks: values of the bool inputs that are constant, by name.
    """

    op_type: str
    attributes: Mapping[str, object]
    inputs: Mapping[str, TensorFacts]
    constants: Mapping[str, Integers] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)

    def tensor(self, name: str) -> TensorFacts:
        """An input. A constant has its own shape, whatever is declared: so onnxruntime takes it."""
        known = self.inputs.get(name, TensorFacts())
        constant = self.constants.get(name, self.masks.get(name))
        return known if constant is None else TensorFacts(known.dtype, constant.shape)

    def integer(self, name: str) -> int | None:
        """The attribute if it is an int; None if it is missing, unknown or of another kind."""
        value = self.attributes.get(name)
        return int(value) if isinstance(value, (int, np.integer)) else None

    def number(self, name: str) -> int | float | None:
        """The attribute if it is an int or a float; None if it is missing, unknown or of another kind."""
        value = self.attributes.get(name)
        return float(value) if isinstance(value, (float, np.floating)) else self.integer(name)

    def argument(self, name: str, right: object = 0) -> object:
        """The attribute for a check of its kind: what is unknown or missing passes as one of the ``right`` kind."""
        value = self.attributes.get(name, right)
        return right if isinstance(value, Unknown) else value

    def vector(self, name: str) -> list[int] | None:
        """The values of a constant of rank 1."""
        values = self.constants.get(name)
        return values.tolist() if values is not None and values.ndim == 1 else None

    def floats(self, names: Sequence[str]) -> dict[str, Array]:
        """Inputs of type T as contracts see them. A type that is unknown is taken to be that of the others."""
        known = [dtype for name in names if (dtype := self.tensor(name).dtype) is not None]
        default = known[0] if known else DTYPES[0]
        return {name: Array(self.tensor(name).dtype or default, ()) for name in names}

    def indices(self, name: str, dtype: str = "int32") -> Array:
        """An index input as contracts see it."""
        return Array(self.tensor(name).dtype or dtype, ())


def node_violation(row: str, *values: object) -> Violation:
    """A row of `NODE_ROWS` that is broken."""
    found = NODE_ROWS[row]
    return Violation(replace(found, argument=found.argument.format(*values)), values)
