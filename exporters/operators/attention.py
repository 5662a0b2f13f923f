"""What the attention stages have in common in torch: checks, kernels, fake kernels, and torch_npu's layouts.

Each stage is an op that returns new tensors, in the node's form. torch_npu's op takes other layouts and returns more;
the modules of the stages say how it is made of ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nsa_onnx.operators.arrays import buffer, described, in_huge_pages
from nsa_onnx.operators.attention import COUNT, SCALE, Stage, count_violations, type_violations
from nsa_onnx.operators.attention_checks import call_violations
from nsa_onnx.operators.base import Lengths as Kind
from nsa_onnx.operators.base import Operator
from nsa_onnx.operators.contract import Rows, Shape, Violations, raise_first

from .. import private
from .base import Gradient, Lengths, NpuForm, Op, Tie, TorchOperator, arguments, fake_kernel, kernel
from .tensors import array, dense, dtype, host_lengths, require_one_device

OwnViolations = Callable[[Any, Mapping[str, Shape], Mapping[str, Sequence[int]]], Violations]


def attention_operator(
    node: Operator,
    stage: Stage,
    function: Callable[..., Any],
    call: type[Any],
    native_kernel: Callable[..., None],
    *,
    gradient: Gradient,
    npu_results: int,
    npu_form: NpuForm,
    more: tuple[Op, ...],
    own_violations: OwnViolations | None = None,
) -> TorchOperator:
    """An attention stage.

    Args:
        function: what a model calls, named as the op.
        call: a dataclass of the op's arguments.
        native_kernel: of the operator's room.
        npu_results: how many tensors torch_npu's op returns.
        more: further ops: of the gradient, and those that only torch_npu's op needs.
        own_violations: of the stage alone: for a call, the shapes of its arrays and the lengths that are known.
    """
    name = function.__name__
    results = "Tensor" if len(node.outputs) == 1 else f"({', '.join(['Tensor'] * len(node.outputs))})"
    checks = _Checks(stage, node.contract.rows, own_violations)

    def run(call: Any) -> Any:
        operator.check_lengths(vars(call))
        checks.check(call)
        return _run(call, node, native_kernel)

    def fake(call: Any) -> Any:
        operator.check_lengths(vars(call))
        checks.check(call)
        operator.require_ties(call)
        return _outputs(call, node)

    npu_results_text = "Tensor" if npu_results == 1 else f"({', '.join(['Tensor'] * npu_results)})"
    operator = TorchOperator(
        node=node,
        function=function,
        call=call,
        check_kinds=checks.check_kinds,
        op=Op(name, f"({arguments(call)}) -> {results}", kernel(call, run), fake_kernel(call, fake), gradient),
        npu_schema=f"npu::npu_{name}({arguments(npu_form.call)}) -> {npu_results_text}",
        npu_form=npu_form,
        ties=_ties(stage),
        more=more,
    )
    return operator


def _ties(stage: Stage) -> tuple[Tie, ...]:
    """The dims that lengths fix: those that a prefix sum ends in, and B."""
    first = {dims[0]: name for name, dims in reversed(list(stage.arrays.items()))}
    sums = [Tie(dim, first[dim], name, Kind.PREFIX_SUMS) for name, dim in stage.prefix_sums.items() if dim]
    return (*sums, *(Tie("B", first["B"], name, Kind.LENGTHS) for name in stage.lengths))


# --------------------------------------------------------------------------------------------------
# Checks


class _Checks:
    """What a call of a stage may break, masks and indices left to the kernel, which looks at their data."""

    def __init__(self, stage: Stage, rows: Rows, own: OwnViolations | None) -> None:
        self._stage, self._rows, self._own = stage, rows, own

    def check_kinds(self, call: Any) -> None:
        """The TypeErrors."""
        stage = self._stage
        arrays = {name: described(getattr(call, name)) for name in stage.arrays}
        numbers = {name: getattr(call, name) for name in (SCALE, *stage.attributes)}
        lengths = {name: getattr(call, name) for name in stage.all_lengths}
        raise_first(type_violations(stage, self._rows, arrays, numbers, lengths))

    def check(self, call: Any) -> None:
        """Lengths have been looked at for their kind alone."""
        stage = self._stage
        self.check_kinds(replace(call, **dict.fromkeys(stage.all_lengths, ())))
        raise_first(self._violations(call))
        tensors = {name: getattr(call, name) for name in (*stage.arrays, *stage.all_lengths)}
        indices = {name: tensors.pop(name) for name in ("block_table", *stage.all_lengths) if name in tensors}
        require_one_device(tensors, indices)

    def _violations(self, call: Any) -> Violations:
        stage, rows = self._stage, self._rows
        given = {name: getattr(call, name) for name in stage.arrays}
        shapes = {name: array(tensor).shape for name, tensor in given.items() if tensor is not None}
        numbers = {name: getattr(call, name) for name in (SCALE, *stage.attributes)}
        lengths = {name: getattr(call, name) for name in stage.all_lengths}
        known = {name: one for name, one in lengths.items() if _is_known(one)}
        yield from call_violations(stage, rows, shapes, numbers, known)
        counts = {name: _count(one) for name, one in lengths.items()}
        yield from count_violations(stage, rows, counts, shapes["query"][0] if stage.lengths else None)
        if self._own is not None:
            yield from self._own(call, shapes, known)


def _is_known(lengths: Any) -> bool:
    """Not of expressions; those in a tensor are for the kernel."""
    return not isinstance(lengths, Tensor) and all(isinstance(one, int) for one in lengths)


def _count(lengths: Any) -> int | None:
    count = lengths.shape[0] if isinstance(lengths, Tensor) else len(lengths)
    return count if isinstance(count, int) else None


# --------------------------------------------------------------------------------------------------
# Kernels


def _outputs(call: Any, node: Operator) -> Any:
    """Where the results go: attention_out ``[.., N1, Dv]``, and topk_indices ``[.., N2, k]``."""
    query, key, value = call.query, call.key, call.value
    out = query.new_empty((*query.shape[:2], value.shape[-1]))
    if len(node.outputs) == 1:
        return out
    sizes = query.shape[0], key.shape[-2], getattr(call, COUNT)
    return out, query.new_empty(sizes, dtype=torch.int32)


def _run(call: Any, node: Operator, native_kernel: Callable[..., None]) -> Any:
    """On CPU tensors of any strides."""
    results = _outputs(call, node)
    held, operands = [], {}  # what is dense must outlive the call
    for name in inspect.signature(type(call)).parameters:
        value = getattr(call, name)
        if name in node.input_names and _is_lengths(node, name):
            value = host_lengths(value)
        elif isinstance(value, Tensor):
            held.append(dense(value))
            value = buffer(held[-1])
        operands[name] = float(value) if name == SCALE else value
    written = [in_huge_pages(one) for one in (results if isinstance(results, tuple) else (results,))]
    operands |= {one.name: buffer(result) for one, result in zip(node.outputs, written, strict=True)}
    native_kernel(dtype=dtype(call.query), **operands, threads=torch.get_num_threads())
    return results


def _is_lengths(node: Operator, name: str) -> bool:
    return any(one.name == name and one.lengths for one in node.inputs)


# --------------------------------------------------------------------------------------------------
# torch_npu's layouts


def boolean(mask: Tensor | None) -> Tensor | None:
    """A mask as torch_npu takes it: its uint8 as well, in which all but 0 is true."""
    return mask.to(torch.bool) if mask is not None and mask.dtype == torch.uint8 else mask


def refuse_given(function: str, **values: object) -> None:
    """Arguments of torch_npu's op that its operator does not support, either."""
    for name, value in values.items():
        if value is not None:
            raise RuntimeError(f"{name} must be None: {function} does not support it, on an NPU neither")


def refuse_empty_on_npu(function: str, tokens: str, lengths: Iterable[int]) -> None:
    """The vendor's kernels compute with a length of 0 as if it were not."""
    for b, length in enumerate(lengths):
        if not length:
            raise RuntimeError(f"{function} takes no sequence without {tokens} on an NPU, and sequence {b} has none")


def refuse_several_tokens(query_lengths: Lengths | None) -> None:
    """The vendor's case of 2 to 4 query tokens a sequence."""
    for b, length in enumerate(() if query_lengths is None else query_lengths):
        if length != 1:
            raise RuntimeError(
                f"actual_seq_qlen[{b}] must be 1, got {length}: a decode step takes one query token of each sequence"
            )


def decode_query(query: Tensor, layout: str, layouts: Mapping[str, int], heads: int) -> Tensor:
    """``[B, N1, D]`` of a query in a layout; ``layouts`` has the rank of each that the op takes."""
    rank = layouts.get(layout)
    if rank is None:
        raise RuntimeError(f"layout must be {' or '.join(layouts)}, got {layout}")
    if query.dim() != rank:
        raise RuntimeError(f"query must have rank {rank} in layout {layout}, got rank {query.dim()}")
    if layout == "TND":
        return query
    if layout == "BSH":
        query = query.reshape(*query.shape[:2], heads, _head_dim(query, "query", heads))
    return one_token(query, "query")


def one_token(tensor: Tensor, name: str) -> Tensor:
    """``[B, N, ..]`` of a tensor ``[B, 1, N, ..]``; others as they are."""
    if tensor.dim() != 4:
        return tensor
    batch, _, *rest = tensor.shape
    tokens = private.plain_size(tensor.shape[1])
    private.require(
        tokens == 1, lambda: f"{name}.shape[1] must be 1, got {tokens}: a decode step takes one query token a sequence"
    )
    return tensor.reshape(batch, *rest)


def split_pages(pages: Tensor, name: str, kv_heads: int) -> Tensor:
    """``[block_num, page, N2, D]`` of pages ``[block_num, page, N2 * D]``; others as they are."""
    if pages.dim() != 3:
        return pages
    return pages.reshape(*pages.shape[:2], kv_heads, _head_dim(pages, name, kv_heads))


def _head_dim(tensor: Tensor, name: str, heads: int) -> Any:
    size = private.plain_size(tensor.shape[2])  # no graph has another head dim
    if heads < 1 or (isinstance(size, int) and size % heads):
        raise RuntimeError(f"{name}.shape[2] must be a multiple of the number of its heads, {heads}, got {size}")
    return size // heads


def in_layout(result: Tensor, layout: str) -> Tensor:
    """A decode step's result ``[B, N, ..]`` in torch_npu's layout."""
    if layout == "TND":
        return result
    batch, heads, size = result.shape
    return result.reshape(batch, 1, heads * size) if layout == "BSH" else result.reshape(batch, 1, heads, size)
