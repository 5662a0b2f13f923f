"""The eager call of NsaCompress, on NumPy arrays and torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime import native
from ..arrays import (
    Ints,
    buffer,
    dense,
    described,
    fits_int64,
    new_result,
    to_int64,
    torch_op,
    views,
)
from ..contract import raise_first
from ..windows import ALIGNMENT, window_count
from . import contract, numpy_kernel


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
    x, w = described(input), described(weight)
    raise_first(contract.type_violations(x, w, compress_block_size, compress_stride, actual_seq_len))
    op = torch_op(contract.OP_TYPE, input, weight)
    if op is not None:
        return op(input, weight, compress_block_size, compress_stride, actual_seq_len=actual_seq_len)
    lengths = to_int64(actual_seq_len)
    if lengths is None or not fits_int64(compress_block_size, compress_stride):
        contract.check(x, w, compress_block_size, compress_stride, actual_seq_len)
        raise AssertionError("a length beyond int64 passed the contract")
    tokens, weights = map(dense, views(input=input, weight=weight).values())
    rows = _rows(tokens.shape, lengths, int(compress_block_size), int(compress_stride))
    output = new_result((rows, *tokens.shape[1:]), input)
    kernel(
        x.dtype,  # type: ignore[attr-defined]
        buffer(tokens),
        buffer(weights),
        int(compress_block_size),
        int(compress_stride),
        lengths,
        buffer(output),
        native.default_threads(),
    )
    return output


def _rows(shape: tuple[int, ...], lengths: npt.NDArray[np.int64], block: int, stride: int) -> int:
    """T', or 0 where the arguments are so wrong that the kernel will refuse them."""
    starts = np.concatenate(([0], lengths))[:-1]
    # Before memory is asked for that no input of this size can need: lengths that end behind its first dim, T.
    if not ALIGNMENT <= stride <= block or np.any(lengths < starts) or shape < tuple(lengths[-1:]):
        return 0
    return int(window_count(lengths - starts, block, stride, np.maximum).sum())


def kernel(
    dtype: str,
    input: native.Buffer,
    weight: native.Buffer,
    compress_block_size: int,
    compress_stride: int,
    actual_seq_len: npt.NDArray[np.int64],
    output: native.Buffer,
    threads: int,
) -> None:
    """The native kernel, or what stands in for it, into ``output``, which must have T' rows.

    RuntimeError as `nsa_compress`.
    """
    window = compress_block_size, compress_stride
    if not native.is_here():
        numpy_kernel.compress(dtype, input, weight, *window, actual_seq_len, output)
        return
    native.call("nsa_compress", native.dtype(dtype), input, weight, *window, actual_seq_len, output, threads)
