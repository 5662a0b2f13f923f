"""The torch ops of namespace nsa_onnx: schema, CPU, fake, autograd and Functionalize kernels side by side.

    nsa_compress, nsa_compress_infer, nsa_compress_infer_                     lengths are ``SymInt[]``
    nsa_compress.tensor, nsa_compress_infer.tensor, nsa_compress_infer_.tensor   an int64 tensor

``nsa_compress_infer_`` updates its cache in place; under functionalization (torch.export's
decompositions, torch.compile, torch.onnx.export) it becomes the functional ``nsa_compress_infer``, which
returns a new cache. The kernels are plain functions, so that ``torch_npu.py`` can put the same ones
under the ``npu::`` ops.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from nsa_onnx import spec
from nsa_onnx.operators import arrays
from nsa_onnx.operators.nsa_compress import call as prefill_call
from nsa_onnx.operators.nsa_compress_infer import call as decode_call
from nsa_onnx.operators.windows import seq_tensor_violations, window_count
from nsa_onnx.runtime import native

from .mistakes import says_where

Lengths = Sequence[int] | Tensor

_LENGTHS_TYPE = {"": "SymInt[]", "tensor": "Tensor"}
_WINDOW = "int compress_block_size, int compress_stride"
_INFER = (
    f"Tensor input, Tensor weight, Tensor slot_mapping, {_WINDOW}, int page_block_size, *, "
    "Tensor? block_table=None, {lengths} actual_seq_len"
)
_SCHEMAS = {
    "nsa_compress": f"(Tensor input, Tensor weight, {_WINDOW}, *, {{lengths}} actual_seq_len) -> Tensor",
    "nsa_compress_grad_input": (
        f"(Tensor grad, Tensor weight, {_WINDOW}, SymInt tokens, *, {{lengths}} actual_seq_len) -> Tensor"
    ),
    "nsa_compress_grad_weight": f"(Tensor grad, Tensor input, {_WINDOW}, *, {{lengths}} actual_seq_len) -> Tensor",
    "nsa_compress_infer": f"({_INFER}, Tensor cache) -> Tensor",
    "nsa_compress_infer_": f"({_INFER}, Tensor(a!) cache) -> Tensor(a!)",
}


# --------------------------------------------------------------------------------------------------
# Checks shared by the kernels


def _array(tensor: Tensor) -> spec.Array:
    """What the contract sees of a tensor; a symbolic dim is an unknown one."""
    shape = tuple(dim if isinstance(dim, int) else None for dim in tensor.shape)
    return spec.Array(str(tensor.dtype).removeprefix("torch."), shape)


def _check_lengths_kind(rows: dict[str, spec.Row], actual_seq_len: object) -> None:
    """A lengths tensor is int64 of rank 1; a missing one gets the contract's words."""
    if actual_seq_len is None:
        spec.Violation(rows["seq_kind"], ("None: it is required here",)).throw()
    if isinstance(actual_seq_len, Tensor):
        spec.raise_first(seq_tensor_violations(_array(actual_seq_len).dtype, actual_seq_len.dim()))


def _check_devices(input: Tensor, computed: dict[str, Tensor], indices: dict[str, Any]) -> None:
    """One device for all that is computed with; indices may be on the host. Asked of a meta tensor, too: torch gives
    a call with one among others to the fake kernel, whose result would be memory that nobody has written."""
    for name, value in (computed | indices).items():
        if not isinstance(value, Tensor) or value.device == input.device:
            continue
        if name in computed or value.device.type != "cpu":
            raise RuntimeError(f"{name} must be on the device of input, {input.device}, got {value.device}")


def _check_compress(input: Tensor, weight: Tensor, block: int, stride: int, actual_seq_len: Lengths) -> None:
    """Every row of the error table that needs no data."""
    x, w = _array(input), _array(weight)
    spec.raise_first(spec.compress_type_violations(x, w, block, stride, ()))
    _check_lengths_kind(spec.COMPRESS_ROWS, actual_seq_len)
    spec.raise_first(spec.compress_shape_violations(x.shape, w.shape, block, stride))
    _check_devices(input, {"weight": weight}, {"actual_seq_len": actual_seq_len})


def _check_infer(
    input: Tensor,
    weight: Tensor,
    slot_mapping: Tensor,
    block: int,
    stride: int,
    page: int,
    block_table: Tensor | None,
    actual_seq_len: Lengths,
    cache: Tensor,
) -> None:
    """Every row of the error table that needs no data."""
    tensors = (input, weight, slot_mapping, block_table, cache)
    x, w, slots, table, out = (None if t is None else _array(t) for t in tensors)
    spec.raise_first(spec.infer_type_violations(x, w, slots, block, stride, page, table, (), out))
    assert x is not None and w is not None and slots is not None and out is not None
    _check_lengths_kind(spec.INFER_ROWS, actual_seq_len)
    count = actual_seq_len.shape[0] if isinstance(actual_seq_len, Tensor) else len(actual_seq_len)
    shapes = (x.shape, w.shape, slots.shape, block, stride, page, None if table is None else table.shape)
    spec.raise_first(spec.infer_shape_violations(*shapes, count if isinstance(count, int) else None, out.shape))
    indices = {"slot_mapping": slot_mapping, "block_table": block_table, "actual_seq_len": actual_seq_len}
    _check_devices(input, {"weight": weight, "cache": cache}, indices)


def _host_lengths(actual_seq_len: Lengths) -> npt.NDArray[np.int64]:
    values = actual_seq_len.cpu().numpy() if isinstance(actual_seq_len, Tensor) else actual_seq_len
    return np.asarray(values, dtype=np.int64)


# --------------------------------------------------------------------------------------------------
# CPU kernels. Where torch.compile cannot capture an op, it runs it, and must not compile the kernel's own
# Python: `_disable_dynamo`, as torch.library.custom_op does.


def _buffer(tensor: Tensor) -> native.Buffer:
    return native.Buffer(tensor.data_ptr(), tuple(tensor.shape))


def _dense(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy where its elements do not lie as the kernel reads them (torch.frombuffer)."""
    dense = tensor.contiguous()
    return dense.clone() if dense.data_ptr() % dense.element_size() else dense


def _dtype(tensor: Tensor) -> str:
    return _array(tensor).dtype


@_disable_dynamo
@says_where
def compress_cpu(
    input: Tensor, weight: Tensor, compress_block_size: int, compress_stride: int, *, actual_seq_len: Lengths
) -> Tensor:
    """NsaCompress on CPU tensors of any strides; errors as `nsa_onnx.nsa_compress`."""
    _check_compress(input, weight, compress_block_size, compress_stride, actual_seq_len)
    lengths = _host_lengths(actual_seq_len)
    ends = lengths.tolist()
    spec.raise_first(spec.prefix_sum_violations(ends, input.shape[0]))
    rows = sum(run.rows for run in spec.compress_plan(ends, compress_block_size, compress_stride))
    output = input.new_empty((rows, *input.shape[1:]))
    x, w = _dense(input), _dense(weight)
    prefill_call.kernel(
        _dtype(input),
        _buffer(x),
        _buffer(w),
        compress_block_size,
        compress_stride,
        lengths,
        _buffer(output),
        torch.get_num_threads(),
    )
    return output


@_disable_dynamo
@says_where
def infer_cpu_(
    input: Tensor,
    weight: Tensor,
    slot_mapping: Tensor,
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    *,
    block_table: Tensor | None = None,
    actual_seq_len: Lengths,
    cache: Tensor,
) -> Tensor:
    """NsaCompressInfer on CPU tensors, in place: only the written slots of cache are touched."""
    sizes = compress_block_size, compress_stride, page_block_size
    _check_infer(input, weight, slot_mapping, *sizes, block_table, actual_seq_len, cache)
    decode_call.refuse_overlap(cache.shape, cache.stride())
    lengths = _host_lengths(actual_seq_len)
    x, w, slots, dense = map(_dense, (input, weight, slot_mapping, cache))
    table = None if block_table is None else _dense(block_table)
    if dense is not cache:  # slots and lengths are looked at twice, so they must not change in between
        slots, lengths = slots.clone(), lengths.copy()
    decode_call.kernel(
        _dtype(input),
        _buffer(x),
        _buffer(w),
        _buffer(slots),
        *sizes,
        None if table is None else _buffer(table),
        lengths,
        _buffer(dense),
        torch.get_num_threads(),
    )
    if dense is not cache:
        written = decode_call.written_slots(slots.numpy(), lengths, compress_block_size, compress_stride).tolist()
        cache[written] = dense[written]
    return cache


@_disable_dynamo
@says_where
def infer_cpu(
    input: Tensor,
    weight: Tensor,
    slot_mapping: Tensor,
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    *,
    block_table: Tensor | None = None,
    actual_seq_len: Lengths,
    cache: Tensor,
) -> Tensor:
    """NsaCompressInfer on CPU tensors as a function: a new, dense cache is returned."""
    sizes = compress_block_size, compress_stride, page_block_size
    _check_infer(input, weight, slot_mapping, *sizes, block_table, actual_seq_len, cache)
    copy = cache.clone(memory_format=torch.contiguous_format)
    return infer_cpu_(
        input, weight, slot_mapping, *sizes, block_table=block_table, actual_seq_len=actual_seq_len, cache=copy
    )


# --------------------------------------------------------------------------------------------------
# Fake kernels


def compressed_length(actual_seq_len: Sequence[int], compress_block_size: int, compress_stride: int) -> int:
    """T' for ints and SymInts alike."""
    rows: int = 0
    start: int = 0
    for end in actual_seq_len:
        rows = rows + window_count(end - start, compress_block_size, compress_stride, torch.sym_max)
        start = end
    return rows


@says_where
def compress_fake(
    input: Tensor, weight: Tensor, compress_block_size: int, compress_stride: int, *, actual_seq_len: Lengths
) -> Tensor:
    """Shape and dtype of NsaCompress. T' is an int, an expression of SymInts, or unbacked (lengths tensor)."""
    _check_compress(input, weight, compress_block_size, compress_stride, actual_seq_len)
    rows = _fake_rows(input.shape[0], compress_block_size, compress_stride, actual_seq_len)
    return input.new_empty((rows, *input.shape[1:]))


def _fake_rows(tokens: int, block: int, stride: int, actual_seq_len: Lengths) -> int:
    if isinstance(actual_seq_len, Tensor):
        return cast(int, torch.library.get_ctx().new_dynamic_size(min=0))
    if all(isinstance(end, int) for end in actual_seq_len):
        known = tokens if isinstance(tokens, int) else None
        spec.raise_first(spec.prefix_sum_violations(actual_seq_len, known))
        _require_equal(tokens, actual_seq_len[-1], "T = input.shape[0]", "the last element of actual_seq_len")
    elif len(actual_seq_len):
        torch._check(tokens == actual_seq_len[-1], lambda: "the last element of actual_seq_len must equal T")
    return compressed_length(actual_seq_len, block, stride)


@says_where
def infer_fake(
    input: Tensor,
    weight: Tensor,
    slot_mapping: Tensor,
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    *,
    block_table: Tensor | None = None,
    actual_seq_len: Lengths,
    cache: Tensor,
) -> Tensor:
    """Shape and dtype of the functional NsaCompressInfer: a new, dense cache."""
    sizes = compress_block_size, compress_stride, page_block_size
    _check_infer(input, weight, slot_mapping, *sizes, block_table, actual_seq_len, cache)
    if not isinstance(actual_seq_len, Tensor):
        batch = slot_mapping.shape[0]
        _require_equal(batch, len(actual_seq_len), "B = slot_mapping.shape[0]", "the length of actual_seq_len")
        pages = block_table.shape[1] if block_table is not None else input.shape[0] // max(len(actual_seq_len), 1)
        if isinstance(pages, int) and all(isinstance(length, int) for length in actual_seq_len):
            spec.raise_first(spec.infer_length_violations(actual_seq_len, pages * page_block_size))
    return cache.new_empty(cache.shape)


def infer_fake_(*args: Any, cache: Tensor, **kwargs: Any) -> Tensor:
    """Fake kernel of the in-place NsaCompressInfer: the checks, then the cache itself."""
    infer_fake(*args, cache=cache, **kwargs)
    return cache


def _require_equal(dim: int, constant: int, dim_name: str, constant_name: str) -> None:
    """Tie a dim to a constant of the call; an error if the user has asked for that dim to be dynamic.

    torch.export would report such a dim as "specialized" without a word on the lengths.
    """
    if isinstance(dim, int):
        return  # the contract has been asked
    if _declared_dynamic(dim):
        raise RuntimeError(
            f"{dim_name} is dynamic, but {constant_name} is the constant {constant}: the exported program would "
            "hold for that size only. Compute actual_seq_len from the shapes (actual_seq_len=[x.shape[0]]), pass it "
            "as an int64 tensor (nsa_onnx.exporters.nsa_compress, nsa_compress_infer), or make the dim static"
        )
    torch._check(dim == constant, lambda: f"{dim_name} must equal {constant_name}, {constant}")


def _declared_dynamic(dim: Any) -> bool:
    """Whether a SymInt hangs on a dim that the user has declared dynamic (not: may be dynamic)."""
    if not torch.compiler.is_exporting():  # torch.compile compiles again for another size
        return False
    node = getattr(dim, "node", None)
    symbols: set[Any] = getattr(_expression(dim), "free_symbols", set())
    for tracked in getattr(getattr(node, "shape_env", None), "tracked_fakes", None) or ():
        constraints = getattr(tracked.symbolic_context, "constraint_sizes", None) or ()
        for size, constraint in zip(getattr(tracked.fake, "shape", ()), constraints, strict=False):
            if constraint is not None and _expression(size) in symbols:
                return True
    return False


def _expression(size: Any) -> Any:
    """The symbols of a size as it was declared: what has since been found to be a constant is still a symbol."""
    return getattr(getattr(size, "node", None), "_expr", None)


# --------------------------------------------------------------------------------------------------
# Gradients. <grad, NsaCompress(input, weight)> is linear in each of the three, so the two gradient ops
# and NsaCompress are one another's derivatives, to every order.


def _window_starts(actual_seq_len: Lengths, block: int, stride: int, device: torch.device) -> Tensor:
    plan = spec.compress_plan(_host_lengths(actual_seq_len).tolist(), block, stride)
    starts = [np.arange(run.rows, dtype=np.int64) * stride + run.first_token for run in plan]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *starts])).to(device)


@_disable_dynamo
def _grad_input(
    grad: Tensor,
    weight: Tensor,
    compress_block_size: int,
    compress_stride: int,
    tokens: int,
    *,
    actual_seq_len: Lengths,
) -> Tensor:
    """``[T, N, D]``: every window's gradient, weighted, added to its tokens in float32."""
    starts = _window_starts(actual_seq_len, compress_block_size, compress_stride, grad.device)
    total = grad.new_zeros((tokens, *grad.shape[1:]), dtype=torch.float32)
    rows, w = grad.float(), weight.float()
    for j in range(compress_block_size):
        total.index_add_(0, starts + j, rows * w[j, :, None])
    return total.to(grad.dtype)


@_disable_dynamo
def _grad_weight(
    grad: Tensor, input: Tensor, compress_block_size: int, compress_stride: int, *, actual_seq_len: Lengths
) -> Tensor:
    """``[compress_block_size, N]``: over windows and D, the sum of gradient times token, in float32."""
    starts = _window_starts(actual_seq_len, compress_block_size, compress_stride, grad.device)
    rows = grad.float()
    sums = [(rows * input[starts + j].float()).sum((0, 2)) for j in range(compress_block_size)]
    return torch.stack(sums).to(grad.dtype)


def _grad_input_fake(
    grad: Tensor, weight: Tensor, block: int, stride: int, tokens: int, *, actual_seq_len: Lengths
) -> Tensor:
    return grad.new_empty((tokens, *grad.shape[1:]))


def _grad_weight_fake(grad: Tensor, input: Tensor, block: int, stride: int, *, actual_seq_len: Lengths) -> Tensor:
    return grad.new_empty((block, grad.shape[1]))


def install_autograd(
    library: torch.library.Library,
    name: str,
    setup_context: Callable[..., None],
    backward: Callable[..., tuple[Any, ...]],
    key: str = "Autograd",
    check: Callable[..., None] = lambda **_: None,
) -> None:
    """Give op ``name`` ("op" or "op.overload") a gradient formula.

    As `torch.library.register_autograd`, which refuses tensors among the keyword arguments (lengths,
    cache) and in-place ops.

    Args:
        library: an IMPL or DEF library of the op's namespace; it must stay alive.
        setup_context, backward: as for `torch.library.register_autograd`.
        key: "Autograd" (every backend without a kernel of its own) or one backend's, "AutogradCPU".
        check: called with the keyword arguments before the op runs, where a gradient is wanted.
    """

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:
            *inputs, run, kwargs = args
            output = cast(Tensor, run())
            inputs = inputs[: len(inputs) - len(_tensors(kwargs))]
            setup_context(ctx=ctx, inputs=tuple(inputs), keyword_only_inputs=kwargs, output=output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            gradients = backward(ctx, *grads)
            return *gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients))  # run, kwargs, their tensors

    @_disable_dynamo
    def autograd(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                op = _overload(library.ns, name)
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

        tensors = _tensors(kwargs)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args, *tensors):
            check(**kwargs)
            return Formula.apply(*args, *tensors, run, kwargs)  # type: ignore[no-untyped-call]
        return run()

    library.impl(name, autograd, key, with_keyset=True)


def _tensors(kwargs: dict[str, Any]) -> list[Tensor]:
    return [value for value in kwargs.values() if isinstance(value, Tensor)]


def _overload(namespace: str, name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")


def _keep(ctx: Any, kwargs: dict[str, Any], *tensors: Tensor | None) -> None:
    """Save what the backward needs; lengths are a tensor or a list."""
    lengths = kwargs["actual_seq_len"]
    is_tensor = isinstance(lengths, Tensor)
    ctx.save_for_backward(*tensors, lengths if is_tensor else None)
    ctx.lengths = None if is_tensor else list(lengths)


def _kept(ctx: Any) -> tuple[Any, ...]:
    """The saved tensors, the lengths, and the overload of our ops that takes such lengths."""
    *tensors, lengths = ctx.saved_tensors
    if lengths is None:
        return *tensors, ctx.lengths, "default"
    return *tensors, lengths, "tensor"


def _op(name: str, overload: str) -> Any:
    return getattr(getattr(torch.ops.nsa_onnx, name), overload)


def compress_setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    """For `install_autograd` of NsaCompress, with `compress_backward`."""
    input, weight, *ctx.window = inputs
    ctx.tokens = input.shape[0]
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    _keep(ctx, keyword_only_inputs, input if needs_weight else None, weight if needs_input else None)


def compress_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of NsaCompress with respect to input and weight, in their dtype, float32 inside."""
    input, weight, lengths, overload = _kept(ctx)
    grad_input = grad_weight = None
    if weight is not None:
        op = _op("nsa_compress_grad_input", overload)
        grad_input = op(grad, weight, *ctx.window, ctx.tokens, actual_seq_len=lengths)
    if input is not None:
        grad_weight = _op("nsa_compress_grad_weight", overload)(grad, input, *ctx.window, actual_seq_len=lengths)
    return grad_input, grad_weight, None, None


def _grad_input_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    grad, weight, block, stride, _ = inputs
    ctx.window = block, stride
    _keep(ctx, keyword_only_inputs, grad, weight)


def _grad_input_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight, lengths, overload = _kept(ctx)
    to_grad = _op("nsa_compress", overload)(grad_grad, weight, *ctx.window, actual_seq_len=lengths)
    to_weight = _op("nsa_compress_grad_weight", overload)(grad, grad_grad, *ctx.window, actual_seq_len=lengths)
    return to_grad, to_weight, None, None, None


def _grad_weight_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    grad, input, *ctx.window = inputs
    _keep(ctx, keyword_only_inputs, grad, input)


def _grad_weight_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad, input, lengths, overload = _kept(ctx)
    to_grad = _op("nsa_compress", overload)(input, grad_grad, *ctx.window, actual_seq_len=lengths)
    op = _op("nsa_compress_grad_input", overload)
    to_input = op(grad, grad_grad, *ctx.window, input.shape[0], actual_seq_len=lengths)
    return to_grad, to_input, None, None


def _infer_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    operands = (*inputs, *_tensors(keyword_only_inputs))
    ctx.shapes = [value.shape if needs else None for value, needs in zip(operands, ctx.needs_input_grad, strict=False)]


def _infer_setup_(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    _infer_setup(ctx, inputs, keyword_only_inputs, output)
    ctx.mark_dirty(keyword_only_inputs["cache"])


def infer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """A decode step has no gradient: an op that raises when it runs, instead of zeros.

    An op, because torch.compile traces backward passes that are never run.
    """
    raises = torch.ops.nsa_onnx.nsa_compress_infer_has_no_gradient
    return tuple(None if shape is None else raises(grad, shape) for shape in ctx.shapes)


@_disable_dynamo
def _no_gradient(grad: Tensor, size: Sequence[int]) -> Tensor:
    raise NotImplementedError(
        "nsa_compress_infer has no gradient: it is a decode step. Call it under torch.no_grad(), or train through "
        "nsa_compress"
    )


def _no_gradient_fake(grad: Tensor, size: Sequence[int]) -> Tensor:
    return grad.new_empty(size)


def install_inplace_autograd(library: torch.library.Library, name: str, key: str = "Autograd") -> None:
    """Let a backward pass through the in-place infer op ``name`` raise; parameters as `install_autograd`."""
    install_autograd(library, name, _infer_setup_, infer_backward, key, _refuse_leaf)


def _refuse_leaf(cache: Tensor, **_: Any) -> None:
    """What autograd would say of it, but before the cache has changed."""
    leaf = cache._base if cache._is_view() else cache
    if leaf is not None and leaf.is_leaf and leaf.requires_grad:
        raise RuntimeError(
            "cache must not be a leaf tensor that requires a gradient, or a view of one: it is updated in place. Pass "
            "a detached tensor, or call under torch.no_grad()"
        )


def install_version_counter(library: torch.library.Library, name: str) -> None:
    """Let autograd notice that the in-place infer op ``name`` has changed its cache."""

    @_disable_dynamo
    def count(keyset: Any, *args: Any, cache: Tensor, **kwargs: Any) -> Any:
        torch.autograd.graph.increment_version(cache)
        below = keyset & torch._C._after_ADInplaceOrView_keyset
        return _overload(library.ns, name).redispatch(below, *args, cache=cache, **kwargs)

    library.impl(name, count, "ADInplaceOrView", with_keyset=True)


# --------------------------------------------------------------------------------------------------
# Functionalization


def install_functionalize(library: torch.library.Library, name: str) -> None:
    """Under functionalization, turn an in-place infer op into ``nsa_onnx::nsa_compress_infer``.

    Works for ``npu::npu_nsa_compress_infer.cache``, too, whose tag ``out`` would otherwise make
    functionalization forget the cache's old contents.

    Args:
        library: an IMPL or DEF library of the op's namespace; it must stay alive.
        name: "op" or "op.overload"; its schema ends in ``actual_seq_len, Tensor(a!) cache -> Tensor(a!)``.
    """

    @_disable_dynamo
    def functionalize(*args: Any, cache: Tensor, **kwargs: Any) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            from . import dynamo  # imports this module

            dynamo.warn_of_lost_caches()
        _check_lengths_kind(spec.INFER_ROWS, kwargs.get("actual_seq_len"))
        overload = "tensor" if isinstance(kwargs["actual_seq_len"], Tensor) else "default"
        plain_args = [_unwrap(arg) for arg in args]
        plain_kwargs = {key: _unwrap(value) for key, value in kwargs.items()}
        plain_cache = _unwrap(cache)
        functionalize_key = torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)
        with torch._C._ExcludeDispatchKeyGuard(functionalize_key):
            new = _op("nsa_compress_infer", overload)(*plain_args, cache=plain_cache, **plain_kwargs)
        torch._functionalize_replace(cache, new)
        torch._functionalize_commit_update(cache)
        torch._functionalize_sync(cache)
        return cache

    library.impl(name, functionalize, "Functionalize")


def _unwrap(value: Any) -> Any:
    if isinstance(value, Tensor) and torch._is_functional_tensor(value):
        torch._sync(value)  # type: ignore[attr-defined,no-untyped-call]
        return torch._from_functional_tensor(value)
    return value


# --------------------------------------------------------------------------------------------------
# Registration

LIBRARY = torch.library.Library("nsa_onnx", "DEF")


def _register() -> None:
    for overload, lengths in _LENGTHS_TYPE.items():
        names = {base: f"{base}.{overload}".rstrip(".") for base in _SCHEMAS}
        for base, schema in _SCHEMAS.items():
            LIBRARY.define(names[base] + schema.format(lengths=lengths), tags=[torch.Tag.pt2_compliant_tag])
        for base, kernel, key, fake in (
            ("nsa_compress", compress_cpu, "CPU", compress_fake),
            ("nsa_compress_grad_input", _grad_input, "CompositeExplicitAutograd", _grad_input_fake),
            ("nsa_compress_grad_weight", _grad_weight, "CompositeExplicitAutograd", _grad_weight_fake),
            ("nsa_compress_infer", infer_cpu, "CPU", infer_fake),
            ("nsa_compress_infer_", infer_cpu_, "CPU", infer_fake_),
        ):
            LIBRARY.impl(names[base], kernel, key)
            torch.library.register_fake(f"nsa_onnx::{names[base]}", fake, lib=LIBRARY)
        for base, setup, backward in (
            ("nsa_compress", compress_setup_context, compress_backward),
            ("nsa_compress_grad_input", _grad_input_setup, _grad_input_backward),
            ("nsa_compress_grad_weight", _grad_weight_setup, _grad_weight_backward),
            ("nsa_compress_infer", _infer_setup, infer_backward),
        ):
            install_autograd(LIBRARY, names[base], setup, backward)
        install_inplace_autograd(LIBRARY, names["nsa_compress_infer_"])
        install_version_counter(LIBRARY, names["nsa_compress_infer_"])
        install_functionalize(LIBRARY, names["nsa_compress_infer_"])
    name = "nsa_compress_infer_has_no_gradient"
    LIBRARY.define(f"{name}(Tensor grad, SymInt[] size) -> Tensor", tags=[torch.Tag.pt2_compliant_tag])
    LIBRARY.impl(name, _no_gradient, "CompositeExplicitAutograd")
    torch.library.register_fake(f"nsa_onnx::{name}", _no_gradient_fake, lib=LIBRARY)


_register()


# --------------------------------------------------------------------------------------------------
# The functions a model calls


def _int(value: Any) -> Any:
    """A Python int for NumPy's; a SymInt, which Dynamo takes for an int, stays what it is."""
    return value if isinstance(value, (int, torch.SymInt)) else operator.index(value)


def _traced_lengths(actual_seq_len: Any) -> Any:
    """As given; in a trace (legacy exporter), where sizes are 0-dim tensors, one tensor that stays computed."""
    if torch._C._get_tracing_state() is None or not isinstance(actual_seq_len, (tuple, list)):
        return actual_seq_len
    if not any(isinstance(end, Tensor) for end in actual_seq_len):
        return actual_seq_len
    scalars = (end if isinstance(end, Tensor) else torch.full((), end) for end in actual_seq_len)
    return torch.stack([scalar.to(torch.int64) for scalar in scalars])


def _lengths(actual_seq_len: Any) -> tuple[Any, str]:
    if isinstance(actual_seq_len, Tensor):
        return actual_seq_len, "tensor"
    return [_int(value) for value in actual_seq_len], "default"


def nsa_compress(
    input: Tensor,
    weight: Tensor,
    compress_block_size: int,
    compress_stride: int,
    *,
    actual_seq_len: Lengths,
) -> Tensor:
    """`nsa_onnx.nsa_compress` for torch tensors, with lengths that may be known at run time only.

    Args:
        input: ``[T, N, D]``, float16 or bfloat16; any strides.
        weight: ``[compress_block_size, N]``, the dtype of input.
        compress_block_size: window length, in tokens.
        compress_stride: tokens between two windows' starts.
        actual_seq_len: prefix sums of the segment lengths: a list or tuple of ints or SymInts (exported
            as a constant, or computed from shapes), or an int64 tensor ``[B]`` (exported as an input).

    Returns:
        ``[T', N, D]``, differentiable with respect to input and weight.

    Raises:
        TypeError, RuntimeError: as `nsa_onnx.nsa_compress`.
    """
    actual_seq_len = _traced_lengths(actual_seq_len)
    kinds = () if isinstance(actual_seq_len, Tensor) else actual_seq_len
    spec.raise_first(
        spec.compress_type_violations(
            arrays.described(input), arrays.described(weight), compress_block_size, compress_stride, kinds
        )
    )
    lengths, overload = _lengths(actual_seq_len)
    op = _op("nsa_compress", overload)
    return cast(Tensor, op(input, weight, _int(compress_block_size), _int(compress_stride), actual_seq_len=lengths))


def nsa_compress_infer(
    input: Tensor,
    weight: Tensor,
    slot_mapping: Tensor,
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    *,
    block_table: Tensor | None = None,
    actual_seq_len: Lengths,
    cache: Tensor,
) -> Tensor:
    """`nsa_onnx.nsa_compress_infer` for torch tensors, with lengths that may be known at run time only.

    Args:
        input, weight, slot_mapping, block_table, cache: as `nsa_onnx.nsa_compress_infer`, torch tensors.
        compress_block_size, compress_stride, page_block_size: in tokens.
        actual_seq_len: B lengths in tokens: a list or tuple of ints or SymInts, or an int64 tensor
            ``[B]`` (the way to export a decode step: lengths change from step to step).

    Returns:
        cache itself, updated in place.

    Raises:
        TypeError, RuntimeError: as `nsa_onnx.nsa_compress_infer`. NotImplementedError in a backward pass.
    """
    actual_seq_len = _traced_lengths(actual_seq_len)
    kinds = () if isinstance(actual_seq_len, Tensor) else actual_seq_len
    sizes = compress_block_size, compress_stride, page_block_size
    x, w, slots, table, out = map(arrays.described, (input, weight, slot_mapping, block_table, cache))
    spec.raise_first(spec.infer_type_violations(x, w, slots, *sizes, table, kinds, out))
    lengths, overload = _lengths(actual_seq_len)
    op = _op("nsa_compress_infer_", overload)
    block, stride, page = map(_int, sizes)
    return cast(
        Tensor,
        op(
            input,
            weight,
            slot_mapping,
            block,
            stride,
            page,
            block_table=block_table,
            actual_seq_len=lengths,
            cache=cache,
        ),
    )


arrays.set_torch_op(spec.COMPRESS_OP, nsa_compress)
arrays.set_torch_op(spec.INFER_OP, nsa_compress_infer)
