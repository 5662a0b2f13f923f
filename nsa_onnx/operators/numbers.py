"""Results as float64, 16-bit floats and integers: rounding, distances, the largest error of a float32 sum."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..graph.tensors import Integers
from .contract import DTYPES

Floats = npt.NDArray[np.float64]


def rounded(values: Floats, dtype: str) -> Floats:
    """To the nearest number of the type, ties to even. Of an integer type, the values are numbers already.

    bfloat16 has float64's layout with a shorter fraction (7 of 52 bits), so that its numbers are found by rounding the
    bits; subnormal ones, which generated input does not come near, are not rounded as far as they should be.
    """
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float64)
    if dtype not in DTYPES:
        return values
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    dropped = np.uint64(45)
    odd = (bits >> dropped) & np.uint64(1)
    nearest = (bits + ((np.uint64(1) << np.uint64(44)) - np.uint64(1)) + odd) >> dropped << dropped
    with np.errstate(over="ignore"):
        result: Floats = nearest.view(np.float64).astype(np.float32).astype(np.float64)
    return result


def ulps(first: Floats, second: Floats, dtype: str) -> Integers:
    """Distance in units in the last place, of integers their difference. NaN is far from all but NaN."""
    if dtype not in DTYPES:
        return np.abs(first - second).astype(np.int64)
    a, b = (_ordered(values, dtype) for values in (first, second))
    distance: Integers = np.abs(a - b)
    distance[np.isnan(first) ^ np.isnan(second)] = 2**16
    return distance


def _ordered(values: Floats, dtype: str) -> Integers:
    """Integers that lie as the numbers do, neighbours one apart."""
    if dtype == "float16":
        bits = values.astype(np.float16).view(np.uint16).astype(np.int64)
    else:
        bits = (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.int64)
    return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)


def gamma(terms: int) -> float:
    """A sum of ``terms`` float32 numbers is off by at most this times the sum of their sizes (Higham, 4.2)."""
    unit = 2.0**-24
    return terms * unit / (1 - terms * unit)
