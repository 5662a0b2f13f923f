"""nsa_compress and nsa_compress_infer on NumPy arrays and torch tensors, through the native kernels.

NumPy arrays are handled here. Torch tensors go to the ops of ``nsa_onnx.exporters`` once that package
is imported (it registers them with `set_torch_ops`), so that autograd, torch.export and torch.compile
see an op; before that, a CPU tensor is computed through its NumPy view.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

from . import spec
from .runtime import native

Ints = Sequence[int]

_torch_compress: Callable[..., Any] | None = None
_torch_infer: Callable[..., Any] | None = None


def set_torch_ops(compress: Callable[..., Any], infer: Callable[..., Any]) -> None:
    """Register what serves torch tensors; called by ``nsa_onnx.exporters`` with the signatures below."""
    global _torch_compress, _torch_infer
    _torch_compress, _torch_infer = compress, infer


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")  # nobody holds a tensor who has not imported torch
    return torch is not None and isinstance(value, torch.Tensor)


def _described(value: object) -> object:
    """What the contract sees: a `spec.Array` for arrays and tensors, the object itself otherwise."""
    if isinstance(value, np.ndarray):
        # A foreign byte order has the native type's name, but not its bytes.
        return spec.Array(value.dtype.name if value.dtype.isnative else value.dtype.str, value.shape)
    if _is_tensor(value):
        return spec.Array(str(value.dtype).removeprefix("torch."), tuple(value.shape))  # type: ignore[attr-defined]
    return value


def _to_numpy(name: str, tensor: Any) -> npt.NDArray[Any]:
    """A NumPy view on a CPU tensor's memory."""
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu":
        raise RuntimeError(f"{name} must be a CPU tensor, got device {tensor.device}")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} requires a gradient: import nsa_onnx.exporters, which brings the differentiable op, "
            "or pass a detached tensor"
        )
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type; the type's name travels apart
        return tensor.view(torch.uint16).numpy()  # type: ignore[no-any-return]
    return tensor.numpy()  # type: ignore[no-any-return]


def _views(**arrays: Any) -> dict[str, npt.NDArray[Any]]:
    return {name: _to_numpy(name, value) if _is_tensor(value) else value for name, value in arrays.items()}


def _buffer(array: npt.NDArray[Any]) -> native.Buffer:
    return native.Buffer(array.ctypes.data, array.shape)


def _dense(view: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, or a copy where its elements do not lie as the kernel reads them."""
    return np.require(view, requirements=("C", "ALIGNED"))


def _int64(values: Ints) -> npt.NDArray[np.int64] | None:
    """None if an element does not fit: no such length can be legal."""
    try:
        return np.asarray(values, dtype=np.int64)
    except OverflowError:
        return None


def nsa_compress(
    input: Any,
    weight: Any,
    compress_block_size: int,
    compress_stride: int,
    *,
    actual_seq_len: Ints,
) -> Any:
    """Compress a KV sequence: each window of tokens becomes one token, a weighted sum per head.

    ``output[i, n, :] = sum_j input[start(i) + j, n, :] * weight[j, n]``, accumulated in float32 in the
    order of j and rounded once, to nearest even. Windows never cross a segment.

    Args:
        input: ``[T, N, D]``, float16 or bfloat16 (``ml_dtypes.bfloat16`` in NumPy); any strides.
        weight: ``[compress_block_size, N]``, the dtype of input.
        compress_block_size: window length in tokens, a multiple of 16 in [16, 128].
        compress_stride: tokens between two windows' starts, a multiple of 16 in
            [16, compress_block_size].
        actual_seq_len: tuple or list of ints, the prefix sums of the segment lengths; the last is T.

    Returns:
        ``[T', N, D]``, the kind and dtype of input; ``T' = compressed_length(...)``, which may be 0.

    Raises:
        TypeError: a wrong kind of argument or dtype.
        RuntimeError: a rank, dim, size or length outside its bound. The message names the argument,
            the value and the bound; of several errors the first of the documented table is raised.

    Source: the documentation of ``mindspore.ops.nsa_compress``.
    """
    described = _described(input), _described(weight)
    spec.raise_first(spec.compress_type_violations(*described, compress_block_size, compress_stride, actual_seq_len))
    if _torch_compress is not None and _is_tensor(input) and _is_tensor(weight):
        return _torch_compress(input, weight, compress_block_size, compress_stride, actual_seq_len=actual_seq_len)
    lengths = _int64(actual_seq_len)
    if lengths is None or not _fits_int64(compress_block_size, compress_stride):
        spec.check_compress(*described, compress_block_size, compress_stride, actual_seq_len)
        raise AssertionError("a length beyond int64 passed the contract")
    views = _views(input=input, weight=weight)
    x, w = map(_dense, views.values())
    rows = _rows(x.shape, lengths, int(compress_block_size), int(compress_stride))
    output = _aligned_empty((rows, *x.shape[1:]), x.dtype)
    native.compress(
        described[0].dtype,  # type: ignore[attr-defined]
        _buffer(x),
        _buffer(w),
        int(compress_block_size),
        int(compress_stride),
        lengths,
        _buffer(output),
        native.default_threads(),
    )
    return _like(output, input) if _is_tensor(input) else output


def _fits_int64(*values: int) -> bool:
    return all(-(1 << 63) <= value < 1 << 63 for value in values)


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Memory that begins with a cache line, which the kernel writes large results past the caches for."""
    line, size = 64, math.prod(shape) * dtype.itemsize
    memory = np.empty(size + line, np.uint8)
    start = -memory.ctypes.data % line
    return memory[start : start + size].view(dtype).reshape(shape)


def _rows(shape: tuple[int, ...], lengths: npt.NDArray[np.int64], block: int, stride: int) -> int:
    """T' by the formula, or 0 where the arguments are so wrong that the kernel will refuse them."""
    if stride < 1 or block < 1 or not lengths.size or lengths[0] < 0 or np.any(lengths[1:] < lengths[:-1]):
        return 0
    if shape[:1] != (lengths[-1],):  # before memory is asked for that no input of this size can need
        return 0
    windows = (np.diff(lengths, prepend=0) - block) // stride + 1
    return int(np.maximum(windows, 0).sum())


def _like(output: npt.NDArray[Any], tensor: Any) -> Any:
    return sys.modules["torch"].from_numpy(output).view(tensor.dtype)


def nsa_compress_infer(
    input: Any,
    weight: Any,
    slot_mapping: Any,
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    *,
    block_table: Any = None,
    actual_seq_len: Ints,
    cache: Any,
) -> Any:
    """One decode step over a paged KV cache, in place.

    Sequence b of length L = actual_seq_len[b] writes ``cache[slot_mapping[b]]`` if ``L >= block`` and
    ``(L - block) % stride == 0``: the weighted sum of its last ``block`` tokens. Token t of b is
    ``input[block_table[b, t // page], t % page]``. Rows that do not write may hold anything.

    Args:
        input: ``[block_num, page_block_size, N, D]``, float16 or bfloat16; any strides.
        weight: ``[compress_block_size, N]``, the dtype of input.
        slot_mapping: ``[B]`` int32, the row of cache that each sequence writes.
        compress_block_size: window length in tokens, a multiple of 16 in [16, 112].
        compress_stride: tokens between two windows' starts, a multiple of 16 in
            [16, compress_block_size].
        page_block_size: tokens per page, 64 or 128.
        block_table: ``[B, max_pages]`` int32, physical page of each logical page; without it sequence
            b owns pages ``b*P .. (b+1)*P - 1`` with ``P = block_num / B``.
        actual_seq_len: tuple or list of B ints, lengths in tokens (not prefix sums).
        cache: ``[slots, N, D]``, the dtype of input; any strides. Only written slots are touched.

    Returns:
        cache itself.

    Raises:
        TypeError: a wrong kind of argument or dtype.
        RuntimeError: anything else outside its bound. The cache is then as it was, to the byte.

    Source: the documentation of ``torch_npu.npu_nsa_compress_infer``.
    """
    arrays = {
        "input": input,
        "weight": weight,
        "slot_mapping": slot_mapping,
        "block_table": block_table,
        "cache": cache,
    }
    described = {name: _described(value) for name, value in arrays.items()}
    spec.raise_first(
        spec.infer_type_violations(
            **described,
            compress_block_size=compress_block_size,
            compress_stride=compress_stride,
            page_block_size=page_block_size,
            actual_seq_len=actual_seq_len,
        )
    )
    tensors = [_is_tensor(value) for value in arrays.values() if value is not None]
    if _torch_infer is not None and all(tensors):
        return _torch_infer(
            input,
            weight,
            slot_mapping,
            compress_block_size,
            compress_stride,
            page_block_size,
            block_table=block_table,
            actual_seq_len=actual_seq_len,
            cache=cache,
        )
    if isinstance(cache, np.ndarray) and not cache.flags.writeable:
        raise RuntimeError("cache must be writable: it is updated in place; got a read-only array")
    sizes = compress_block_size, compress_stride, page_block_size
    lengths = _int64(actual_seq_len)
    if lengths is None or not _fits_int64(*sizes):
        _refuse_infer(described, sizes, actual_seq_len)
    given = {name: value for name, value in arrays.items() if value is not None}
    views = _views(**given)
    dense = {name: _dense(view) for name, view in views.items()}
    table = dense.get("block_table")
    apart = not np.may_share_memory(dense["cache"], views["cache"])
    if apart:  # the slots are looked at twice, so they must not change in between
        dense["slot_mapping"] = dense["slot_mapping"].copy()
    refuse_overlap(views["cache"].shape, views["cache"].strides)
    native.compress_infer(
        described["input"].dtype,  # type: ignore[attr-defined]
        _buffer(dense["input"]),
        _buffer(dense["weight"]),
        _buffer(dense["slot_mapping"]),
        int(compress_block_size),
        int(compress_stride),
        int(page_block_size),
        None if table is None else _buffer(table),
        lengths,
        _buffer(dense["cache"]),
        native.default_threads(),
    )
    if apart:
        slots = written_slots(dense["slot_mapping"], lengths, int(compress_block_size), int(compress_stride))
        views["cache"][slots] = dense["cache"][slots]
    return cache


def refuse_overlap(shape: Sequence[int], strides: Sequence[int]) -> None:
    """RuntimeError for a cache of which several rows or channels are one place in memory (torch's ``expand``)."""
    if 0 not in shape and any(size > 1 and stride == 0 for size, stride in zip(shape, strides, strict=True)):
        raise RuntimeError(f"cache must not overlap itself: it is updated in place; got strides {tuple(strides)}")


def written_slots(slot_mapping: npt.NDArray[np.int32], lengths: Any, block: int, stride: int) -> npt.NDArray[np.int32]:
    """The slots that a step writes."""
    lengths = np.asarray(lengths)
    writes = (lengths >= block) & ((lengths - block) % stride == 0)
    return cast("npt.NDArray[np.int32]", slot_mapping[writes])


def _refuse_infer(described: dict[str, Any], sizes: tuple[int, int, int], actual_seq_len: Ints) -> NoReturn:
    """Raise the error of a call whose ints do not even fit the kernel's types."""
    table = described["block_table"]
    batch = described["slot_mapping"].shape
    spec.raise_first(
        spec.infer_shape_violations(
            described["input"].shape,
            described["weight"].shape,
            batch,
            *sizes,
            None if table is None else table.shape,
            len(actual_seq_len),
            described["cache"].shape,
        )
    )
    block_num = described["input"].shape[0]
    max_pages = table.shape[1] if table is not None else block_num // max(batch[0], 1)
    spec.raise_first(spec.infer_length_violations(actual_seq_len, max_pages * sizes[2]))
    raise AssertionError("a value beyond int64 passed the contract")
