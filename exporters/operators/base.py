"""Describes an operator on the PyTorch side. The modules above loop over `OPERATORS` (in ``__init__.py``).

One operator is several ops of torch: the op that becomes an ONNX node, for some operators an op that does the same in
place, and the ops of its gradient. Their kernels are plain functions, so that torch_npu's op can get the same ones.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from nsa_onnx.operators.base import Lengths as Kind
from nsa_onnx.operators.base import Operator
from nsa_onnx.operators.contract import Violation, is_float, raise_first

from .. import private
from ..mistakes import says_where
from .tensors import array

NAMESPACE = "nsa_onnx"

Lengths = Sequence[int] | Tensor
"""Lengths of sequences or their prefix sums: in a list, whose elements may be SymInts, or in an int64 tensor."""

Kernel = Callable[..., Any]
Call = TypeVar("Call")

# A list is a constant of the exported program, or computed from shapes; a tensor is an input or computed from data.
_LENGTHS_TYPES = {"": "SymInt[]", ".tensor": "Tensor"}
_TORCH_TYPES = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor?",
    "int": "int",
    "float": "float",
    "bool": "bool",
    "str": "str",
    "Lengths": "{lengths}",
    "Lengths | None": "int[]?",  # torch_npu's ops alone let them out, and take lists only
}


class Gradient(NamedTuple):
    """The formula of an op's gradient, as for `torch.library.register_autograd`; there may be none, and it says so."""

    setup_context: Callable[..., None]
    backward: Callable[..., tuple[Any, ...]]
    refuses: bool = False


@dataclass(frozen=True)
class Op:
    """An op in our namespace, with an overload for each kind of lengths.

    Attributes:
        schema: arguments and result, with ``{lengths}`` for the lengths' type.
        kernel, fake: with the arguments of the schema; ``kernel`` is for the dispatch key ``key``.
        gradient: None for an op that no tensor which wants a gradient reaches.
        in_place: it updates its last argument, the keyword ``cache``, and returns it.
        not_in_graphs: for an op that no ONNX graph can have: why, and what to do.
    """

    name: str
    schema: str
    kernel: Kernel
    fake: Kernel
    gradient: Gradient | None = None
    key: str = "CPU"
    in_place: bool = False
    not_in_graphs: str = ""

    @property
    def schemas(self) -> dict[str, str]:
        """Arguments and result of each overload, by "name" or "name.overload"."""
        if "{lengths}" not in self.schema:
            return {self.name: self.schema}
        return {f"{self.name}{suffix}": self.schema.format(lengths=kind) for suffix, kind in _LENGTHS_TYPES.items()}


@dataclass(frozen=True)
class Tie:
    """The first dim of an input, which constant lengths fix: by their number, or prefix sums by their last element.

    Attributes:
        symbol: how the contract calls the dim.
    """

    symbol: str
    input: str
    lengths: str
    kind: Kind

    @property
    def dim(self) -> str:
        """How messages call the dim."""
        return f"{self.symbol} = {self.input}.shape[0]"

    @property
    def constant(self) -> str:
        """How messages call what it is tied to."""
        return f"the {'last element' if self.kind is Kind.PREFIX_SUMS else 'length'} of {self.lengths}"

    def require(self, call: Any, function: str) -> None:
        """In a fake kernel: bind the exported program to it; an error if the user wants the dim to be dynamic."""
        lengths, size = getattr(call, self.lengths), getattr(call, self.input).shape[0]
        if isinstance(lengths, Tensor):
            return
        value = lengths[-1] if self.kind is Kind.PREFIX_SUMS else len(lengths)
        if isinstance(value, int) and isinstance(size, int):
            return  # the contract has been asked
        if isinstance(value, int) and private.declared_dynamic(size):
            # torch.export would report such a dim as "specialized" without a word on the lengths.
            raise RuntimeError(
                f"{self.dim} is dynamic, but {self.constant} is the constant {value}: the exported program would hold "
                f"for that size only. Compute {self.lengths} from the shapes ({self.lengths}=[x.shape[0]]), pass it as "
                f"an int64 tensor (nsa_onnx.exporters.{function}), or make the dim static"
            )
        private.require(size == value, lambda: f"{self.dim} must equal {self.constant}, {value}")


@dataclass(frozen=True)
class NpuForm:
    """torch_npu's op of an operator, where its arguments, layouts or results are not ours.

    Attributes:
        call: a dataclass of its arguments.
        run: torch_npu's op out of our ops. It is a kernel, what traces record, and what the op becomes in a graph.
        on_npu: our op on NPU tensors, out of torch_npu's; lengths are lists of ints. It is given the call of our op.
    """

    call: type[Any]
    run: Callable[[Any], Any]
    on_npu: Callable[[Any], Any]


@dataclass(frozen=True)
class TorchOperator:
    """One operator.

    Attributes:
        node: the operator, as the rest of the package knows it.
        function: what a model calls; its name is that of the op.
        call: a frozen dataclass of the op's arguments, in the order of torch_npu's.
        check_kinds: raises the TypeErrors of the contract for a call.
        op: what a node stands for.
        in_place: the same op in place; `function` calls it then.
        more: further ops: of the gradient.
        ties: dims that constant lengths fix.
        npu_schema: torch_npu's op, as its kernels here are written for; empty if torch_npu has none.
        npu_form: what torch_npu's op is made of; None if it has our op's arguments and results.
    """

    node: Operator
    function: Callable[..., Any]
    call: type[Any]
    check_kinds: Callable[[Any], None]
    op: Op
    ties: tuple[Tie, ...]
    npu_schema: str = ""
    npu_form: NpuForm | None = None
    in_place: Op | None = None
    more: tuple[Op, ...] = ()

    @property
    def name(self) -> str:
        return self.op.name

    @property
    def ops(self) -> tuple[Op, ...]:
        return (self.op, *([self.in_place] if self.in_place else ()), *self.more)

    @property
    def npu_op(self) -> str:
        """torch_npu's op, ``npu::name`` or ``npu::name.overload``; empty if it has none."""
        return self.npu_schema.partition("(")[0]

    @property
    def npu_function(self) -> str:
        """What a model calls of torch_npu."""
        return self.npu_op.removeprefix("npu::").partition(".")[0]

    @cached_property
    def lengths(self) -> tuple[str, ...]:
        """The arguments that hold lengths."""
        return tuple(one.name for one in self.node.inputs if one.lengths)

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the op, in torch's order."""
        return inspect.signature(self.call).parameters

    @cached_property
    def npu_parameters(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of torch_npu's op."""
        return inspect.signature(self.npu_form.call).parameters if self.npu_form else self.parameters

    def check_lengths(self, arguments: Mapping[str, Any]) -> None:
        """Lengths are there, and a tensor of them is int64 of rank 1."""
        for name in self.lengths:
            lengths = arguments.get(name)
            if lengths is None:
                row = next(row for row in self.node.contract.rows.values() if row.argument == name)
                Violation(row, ("None: it is required here",)).throw()
            if isinstance(lengths, Tensor):
                raise_first(self.node.length_violations(name, array(lengths).dtype, lengths.dim()))

    def overload(self, op: Op, arguments: Mapping[str, Any]) -> Any:
        """The overload of an op of ours for lengths like these."""
        return overload(op.name, *(arguments[name] for name in self.lengths))

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What `function` does: the kinds of its arguments are checked, then the op runs."""
        kwargs |= {name: _traced(kwargs[name]) for name in self.lengths}
        in_tensors = {name: () for name in self.lengths if isinstance(kwargs[name], Tensor)}
        self.check_kinds(self.call(*args, **(kwargs | in_tensors)))
        for name, value in (dict(zip(self.parameters, args, strict=False)) | kwargs).items():
            if isinstance(value, np.ndarray):
                raise TypeError(f"{name} must be a torch tensor, got ndarray (torch.from_numpy makes one)")
        if in_tensors:  # an overload takes lengths of one kind
            kwargs |= {name: _in_tensor(kwargs[name]) for name in self.lengths}
        op = self.overload(self.in_place or self.op, kwargs)
        return op(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})

    def apply(self, op: Op, **arguments: Any) -> Any:
        """An op with the arguments of a call; others among them are left out. Lengths are all of one kind.

        TypeError where the kind of an argument is wrong.
        """
        given = {name: arguments[name] for name in self.parameters}
        self.check_lengths(given)
        self.check_kinds(self.call(**(given | dict.fromkeys(self.lengths, ()))))
        return self.overload(op, given)(**given)

    def require_ties(self, call: Any) -> None:
        """In a fake kernel: tie the dims to the lengths, as far as these are known."""
        for tie in self.ties:
            tie.require(call, self.name)


def overload(name: str, *lengths: object) -> Any:
    """The overload of an op of ours for such lengths."""
    in_tensors = any(isinstance(value, Tensor) for value in lengths)
    return find_op(f"{NAMESPACE}::{name}.tensor" if in_tensors else f"{NAMESPACE}::{name}")


def find_op(name: str) -> Any:
    """``namespace::op`` or ``namespace::op.overload`` among torch's ops; None if there is no such op."""
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet, None), overload or "default", None)


def arguments(call: type[Any]) -> str:
    """The arguments of a call in torch's schema language, with ``{lengths}`` for the type of the lengths."""
    texts: list[str] = []
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in texts:
            texts.append("*")
        given = parameter.default
        quoted = f'"{given}"' if isinstance(given, str) else given
        default = "" if given is parameter.empty else f"={quoted}"
        texts.append(f"{_TORCH_TYPES[parameter.annotation]} {parameter.name}{default}")
    return ", ".join(texts)


def kernel(call: type[Call], run: Callable[[Call], Any]) -> Kernel:
    """A kernel out of a function of a call. While a model is exported, its errors name the line of the model."""

    @private.not_compiled
    @says_where
    def kernel(*args: Any, **kwargs: Any) -> Any:
        return run(call(*args, **kwargs))

    return kernel


def fake_kernel(call: type[Call], run: Callable[[Call], Any]) -> Kernel:
    """The same for a fake kernel, which torch.compile may look into."""

    @says_where
    def kernel(*args: Any, **kwargs: Any) -> Any:
        return run(call(*args, **kwargs))

    return kernel


def _traced(lengths: Any) -> Any:
    """As given; in a trace (legacy exporter), where sizes are 0-dim tensors, one tensor that stays computed."""
    if not private.is_tracing() or not isinstance(lengths, (tuple, list)):
        return lengths
    return _in_tensor(lengths) if any(isinstance(one, Tensor) for one in lengths) else lengths


def _in_tensor(lengths: Lengths) -> Tensor:
    """Lengths of either kind, whose elements may be SymInts or 0-dim tensors, as a tensor on the host."""
    if isinstance(lengths, Tensor):
        return lengths
    if all(isinstance(one, int) for one in lengths):
        return torch.tensor(lengths, dtype=torch.int64)
    scalars = (one if isinstance(one, Tensor) else torch.full((), one) for one in lengths)
    return torch.stack([scalar.to(torch.int64) for scalar in scalars])


def _plain(value: Any) -> Any:
    """Python's ints for NumPy's, in lists as well; a SymInt, which Dynamo takes for an int, stays what it is."""
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    if isinstance(value, bool):
        return int(value)
    if value is None or isinstance(value, (int, float, Tensor, torch.SymInt)):
        return value
    return float(value) if is_float(value) else operator.index(value)
