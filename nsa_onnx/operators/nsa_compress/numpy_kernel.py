"""NsaCompress in NumPy, for where the native library is missing: the same bits, the same errors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...runtime.native import Buffer
from ..bits import in_memory
from ..contract import raise_first
from ..weighted_sums import weighted_sums
from ..windows import row_plan
from . import contract


def compress(
    dtype: str,
    input: Buffer,
    weight: Buffer,
    block: int,
    stride: int,
    actual_seq_len: npt.NDArray[np.int64],
    output: Buffer,
) -> None:
    """What the native function of that name does, with the arguments of `call.kernel`."""
    ends = actual_seq_len.tolist()  # what is checked is what is used
    raise_first(contract.shape_violations(input.shape, weight.shape, block, stride))
    raise_first(contract.prefix_sum_violations(ends, input.shape[0]))
    values, result = in_memory(input), in_memory(output)
    if not result.size:  # where D is 0, there may be any number of windows
        return
    runs = row_plan(ends, block, stride)
    starts = [np.arange(run.rows, dtype=np.int64) * stride + run.first_token for run in runs]
    first = np.concatenate([np.empty(0, np.int64), *starts])
    weighted_sums(dtype, values, in_memory(weight), lambda windows, j: first[windows] + j, result)
