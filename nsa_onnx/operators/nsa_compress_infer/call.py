"""The eager call of NsaCompressInfer, on NumPy arrays and torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

from ...runtime import native
from ..arrays import Ints, buffer, dense, described, fits_int64, to_int64, torch_op, views
from ..contract import raise_first
from ..windows import triggers
from . import contract, numpy_kernel

_MOST_WORK = 10_000  # candidates that NumPy looks at; contiguous arrays need one


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
        cache: ``[slots, N, D]``, the dtype of input; any strides, memory of its own. Only written slots are touched.

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
    types = {name: described(value) for name, value in arrays.items()}
    sizes = compress_block_size, compress_stride, page_block_size
    raise_first(
        contract.type_violations(
            **types,
            compress_block_size=compress_block_size,
            compress_stride=compress_stride,
            page_block_size=page_block_size,
            actual_seq_len=actual_seq_len,
        )
    )
    op = torch_op(contract.OP_TYPE, *arrays.values())
    if op is not None:
        operands = input, weight, slot_mapping
        return op(*operands, *sizes, block_table=block_table, actual_seq_len=actual_seq_len, cache=cache)
    if isinstance(cache, np.ndarray) and not cache.flags.writeable:
        raise RuntimeError("cache must be writable: it is updated in place; got a read-only array")
    lengths = to_int64(actual_seq_len)
    if lengths is None or not fits_int64(*sizes):
        _refuse(types, sizes, actual_seq_len)
    in_memory = views(**{name: value for name, value in arrays.items() if value is not None})
    refuse_overlap(in_memory["cache"].shape, in_memory["cache"].strides)
    refuse_shared(**{name: in_memory[name] for name in ("cache", "input", "weight")})
    read = {name: dense(view) for name, view in in_memory.items()}
    table = read.get("block_table")
    kernel(
        types["input"].dtype,  # type: ignore[attr-defined]
        buffer(read["input"]),
        buffer(read["weight"]),
        buffer(read["slot_mapping"]),
        int(compress_block_size),
        int(compress_stride),
        int(page_block_size),
        None if table is None else buffer(table),
        lengths,
        buffer(read["cache"]),
        native.default_threads(),
    )
    if not np.may_share_memory(read["cache"], in_memory["cache"]):
        slots = written_slots(read["slot_mapping"], lengths, int(compress_block_size), int(compress_stride))
        in_memory["cache"][slots] = read["cache"][slots]
    return cache


def refuse_overlap(shape: Sequence[int], strides: Sequence[int]) -> None:
    """RuntimeError for a cache of which several rows or channels are one place in memory (torch's ``expand``)."""
    if 0 not in shape and any(size > 1 and stride == 0 for size, stride in zip(shape, strides, strict=True)):
        raise RuntimeError(f"cache must not overlap itself: it is updated in place; got strides {tuple(strides)}")


def refuse_shared(cache: npt.NDArray[Any], **others: npt.NDArray[Any]) -> None:
    """RuntimeError for a cache that shares memory with what is read: a window could then see another's result."""
    for name, other in others.items():
        try:
            shared = np.shares_memory(cache, other, max_work=_MOST_WORK)  # type: ignore[arg-type]
        except RuntimeError:  # too hard to tell: parts of one array that lie in one another, but may never meet
            continue
        if shared:
            raise RuntimeError(f"cache must not overlap {name}: it is updated in place; got views of the same memory")


def written_slots(slot_mapping: npt.NDArray[np.int32], lengths: Any, block: int, stride: int) -> npt.NDArray[np.int32]:
    """The slots that a step writes."""
    lengths = np.asarray(lengths)
    return cast("npt.NDArray[np.int32]", slot_mapping[triggers(lengths, block, stride)])


def _refuse(types: dict[str, Any], sizes: tuple[int, int, int], actual_seq_len: Ints) -> NoReturn:
    """Raise the error of a call whose ints do not even fit the kernel's types."""
    table = types["block_table"]
    raise_first(
        contract.shape_violations(
            types["input"].shape,
            types["weight"].shape,
            types["slot_mapping"].shape,
            *sizes,
            None if table is None else table.shape,
            len(actual_seq_len),
            types["cache"].shape,
        )
    )
    (batch,) = types["slot_mapping"].shape
    max_pages = types["input"].shape[0] // batch if table is None else table.shape[1]
    raise_first(contract.length_violations(actual_seq_len, max_pages * sizes[2]))
    raise AssertionError("a value beyond int64 passed the contract")


def kernel(
    dtype: str,
    input: native.Buffer,
    weight: native.Buffer,
    slot_mapping: native.Buffer,
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    block_table: native.Buffer | None,
    actual_seq_len: npt.NDArray[np.int64],
    cache: native.Buffer,
    threads: int,
) -> None:
    """The native kernel, or what stands in for it, on ``cache`` in place. RuntimeError as `nsa_compress_infer`."""
    sizes = compress_block_size, compress_stride, page_block_size
    operands = input, weight, slot_mapping
    if not native.is_here():
        numpy_kernel.compress_infer(dtype, *operands, *sizes, block_table, actual_seq_len, cache)
        return
    native.call(
        "nsa_compress_infer", native.dtype(dtype), *operands, *sizes, block_table, actual_seq_len, cache, threads
    )
