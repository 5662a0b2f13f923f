"""Eager calls of the attention stages: from arrays or tensors, and attributes, to what a kernel takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import buffer, dense, described, fits_int64, new_result, to_int64, torch_op, views
from .attention import SCALE, Stage, type_violations
from .attention_checks import call_violations
from .contract import Contract, Violations, raise_first

_Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one call, by name, whose kinds and types are right.

    Attributes:
        arrays: None where an optional one is left out.
        numbers: scale_value and the attributes.
        lengths: tuples or lists of ints.
    """

    contract: Contract
    stage: Stage
    arrays: Mapping[str, Any]
    numbers: Mapping[str, Any]
    lengths: Mapping[str, Any]

    def __post_init__(self) -> None:
        types = {name: described(value) for name, value in self.arrays.items()}
        raise_first(type_violations(self.stage, self.contract.rows, types, self.numbers, self.lengths))

    def torch_op(self) -> Callable[..., Any] | None:
        """What serves the call, if its arrays are tensors and ``nsa_onnx.exporters`` is imported."""
        return torch_op(self.contract.op_type, *self.arrays.values())

    def operands(self, values: Callable[[Mapping[str, Any], Mapping[str, Any]], Violations] | None = None) -> Operands:
        """What the kernel takes; RuntimeError for numbers that no kernel can be given.

        Args:
            values: rows of the stage's own on shapes and lengths, which such a number may break.
        """
        in_memory = views(**{name: value for name, value in self.arrays.items() if value is not None})
        read = {name: dense(view) for name, view in in_memory.items()}
        lengths = {name: to_int64(value) for name, value in self.lengths.items()}
        integers = [value for name, value in self.numbers.items() if name != SCALE]
        scale = _to_double(self.numbers[SCALE])
        if scale is None or not fits_int64(*integers) or any(one is None for one in lengths.values()):
            shapes = {name: view.shape for name, view in read.items()}
            raise_first(call_violations(self.stage, self.contract.rows, shapes, self.numbers, self.lengths))
            if values is not None:
                raise_first(values(shapes, self.lengths))
            raise AssertionError("a number that no kernel can be given passed the contract")
        numbers = {name: scale if name == SCALE else int(value) for name, value in self.numbers.items()}
        return Operands(
            tuple(self.arrays),
            str(described(self.arrays["query"]).dtype),  # type: ignore[attr-defined]
            self.arrays["query"],
            read,
            numbers,
            {name: one for name, one in lengths.items() if one is not None},
        )


@dataclass(frozen=True)
class Operands:
    """What a kernel takes: arrays in memory as they lie, numbers, lengths; and memory for its results."""

    names: tuple[str, ...]
    dtype: str
    query: Any
    arrays: Mapping[str, npt.NDArray[Any]]
    numbers: Mapping[str, Any]
    lengths: Mapping[str, _Lengths]

    def arguments(self) -> dict[str, Any]:
        """What a kernel reads, by the names of its arguments."""
        arrays = {name: buffer(self.arrays[name]) if name in self.arrays else None for name in self.names}
        return {"dtype": self.dtype, **arrays, **self.numbers, **self.lengths}

    def attention_out(self) -> Any:
        """Memory for ``[rows, N1, Dv]``; little where the shapes are wrong, which the kernel refuses."""
        query, value = self.arrays["query"].shape, self.arrays["value"].shape
        right = len(query) == 3 and bool(value) and value[-1] <= query[-1]
        return new_result((*query[:2], value[-1]) if right else (0, 0, 0), self.query)

    def topk_indices(self, count: int) -> Any:
        """Memory for ``[rows, N2, count]``; little where the shapes are wrong."""
        query, key = self.arrays["query"].shape, self.arrays["key"].shape
        right = len(query) == 3 and len(key) > 1 and key[-2] <= query[1] and 0 <= count <= 2**16
        return new_result((query[0], key[-2], count) if right else (0, 0, 0), self.query, "int32")


def _to_double(scale: Any) -> float | None:
    try:
        return float(scale)
    except OverflowError:  # an int that is larger than any float
        return None
