"""NsaCompressInfer in NumPy, for where the native library is missing: the same bits, the same errors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...runtime.native import Buffer
from ..bits import in_memory
from ..contract import raise_first
from ..weighted_sums import Indices, weighted_sums
from ..windows import triggers
from . import contract


def compress_infer(
    dtype: str,
    input: Buffer,
    weight: Buffer,
    slot_mapping: Buffer,
    block: int,
    stride: int,
    page: int,
    block_table: Buffer | None,
    actual_seq_len: npt.NDArray[np.int64],
    cache: Buffer,
) -> None:
    """What the native function of that name does, with the arguments of `call.kernel`."""
    table_shape = None if block_table is None else block_table.shape
    lengths = actual_seq_len.copy()  # what is checked is what is used: of lengths, slots and pages, copies
    shapes = input.shape, weight.shape, slot_mapping.shape
    sizes = block, stride, page
    raise_first(contract.shape_violations(*shapes, *sizes, table_shape, len(lengths), cache.shape))
    slots = in_memory(slot_mapping, np.int32).copy()
    table = None if block_table is None else in_memory(block_table, np.int32).copy()
    batch, block_num = len(lengths), input.shape[0]
    max_pages = table.shape[1] if table is not None else block_num // max(batch, 1)
    raise_first(
        contract.index_violations(
            slots.tolist(),
            table,
            lengths.tolist(),
            *sizes,
            block_num,
            max_pages,
            cache.shape[0],
        )
    )
    writers = np.flatnonzero(triggers(lengths, block, stride))
    first = lengths[writers] - block

    def token(windows: slice, j: int) -> Indices:
        sequences, tokens = writers[windows], first[windows] + j
        logical = tokens // page
        pages: Indices = sequences * max_pages + logical
        if table is not None:
            pages = table[sequences, logical].astype(np.int64)
        at: Indices = pages * page + tokens % page
        return at

    values = in_memory(input)
    result = np.empty((len(writers), *cache.shape[1:]), np.uint16)
    weighted_sums(dtype, values.reshape(block_num * page, *values.shape[2:]), in_memory(weight), token, result)
    in_memory(cache)[slots[writers]] = result
