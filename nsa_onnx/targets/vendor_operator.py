"""What is said of one of the vendor's operators. Needs the standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .base import Limit

KERNELS_OR_CPU = "serve it with onnxruntime-cann and the ascend_kernels backend, or on the CPU"


@dataclass(frozen=True)
class VendorOperator:
    """What the vendor has for one of our operators.

    Attributes:
        limits: what it does not take, called in whatever way.
        direct: what it does not take from a graph that calls it itself, besides; our backend has a way around each.
        required: inputs that it needs and the contract does not.
        valued: inputs whose values its shape inference needs.
        products: on which products it is documented; empty for all.
        ways_out: what to do about a limit, by its row; `otherwise` for the others.
        no_graph: why a converted graph cannot call it; empty if it can.
    """

    limits: tuple[Limit, ...]
    direct: tuple[Limit, ...] = ()
    required: tuple[str, ...] = ()
    valued: tuple[str, ...] = ()
    products: str = ""
    ways_out: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = KERNELS_OR_CPU
    no_graph: str = ""
