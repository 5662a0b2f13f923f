"""Attention in float64, and by how much float32 may be off: what the stages' references have in common.

The bounds follow from what a kernel may do, in any order of its sums (N. Higham, Accuracy and Stability of Numerical
Algorithms, 3.1 and 4.2; u = 2^-24, gamma(n) = n u / (1 - n u)):

- a logit is a sum of D exact products and its product with the scale: off by at most gamma(D + 3) times the sum of the
  products' sizes. What is subtracted from all logits of a row cancels out, its rounding and that of a change of the
  exponent's base (3 u of both numbers) do not;
- exp of x + delta is off by the factor e^delta, and its own error is below `EXP_ERROR`;
- the sum of L such numbers is off by their mean error and gamma(L); the division rounds once more;
- a weighted sum of L values adds gamma(L + 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .numbers import Floats, gamma
from .results import Exact

EXP_ERROR = 2.0**-21
"""Relative error of a kernel's exp, four to eight units in the last place."""
_UNIT = 2.0**-24
# What exp gives below float32's smallest normal number may be anything from 0 on.
_TINY = 2.0**-125
_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Chances:
    """Probabilities ``[..., L]`` and by how much float32 may be off."""

    values: Floats
    slack: Floats

    def weighted(self, values: Floats) -> Exact:
        """The sums of values ``[..., L, Dv]`` that these are the weights of: ``[..., Dv]`` for each row."""
        size = np.abs(values)
        slack = self.slack @ size
        return Exact(self.values @ values, slack + gamma(values.shape[-2] + 2) * (self.values @ size + slack))


def softmax(
    products: Floats, sizes: Floats, dim: int, scale: float, hidden: npt.NDArray[np.bool_] | None = None
) -> Chances:
    """The softmax of scaled products over the last axis, which is not empty.

    Args:
        products: ``[..., L]``, query times key.
        sizes: the sums of the products' sizes, ``|query|`` times ``|key|``.
        dim: terms of a product, D.
        scale: rounded to float32.
        hidden: of the products' shape, true where a key is not seen: its logit is the lowest float32.
    """
    factor = float(np.float32(scale))
    seen = np.ones(products.shape, bool) if hidden is None else ~hidden
    logits = np.where(seen, products * factor, _LOWEST)
    highest = logits.max(-1, keepdims=True)
    numbers = np.exp(logits - highest)
    values = numbers / numbers.sum(-1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        delta = gamma(dim + 3) * abs(factor) * sizes + 3 * _UNIT * (np.abs(logits) + np.abs(highest))
        off = np.where(seen, np.expm1(delta) * (1 + EXP_ERROR) + EXP_ERROR, 0.0)
        total = (values * off).sum(-1, keepdims=True) + gamma(products.shape[-1])
        relative = (1 + off) * (1 + 2 * _UNIT) / np.fmax(1 - total, 0) - 1  # infinite where all may be error
        slack = np.where(values > 0, values * relative, 0.0) + np.where(seen, _TINY, 0.0)
    return Chances(values, np.minimum(slack, 1.0))


def block_scores(chances: Chances, blocks: int, block: int, window: int) -> Exact:
    """The scores of blocks, from the chances ``[G, rows, L]`` of the heads of one group: ``[rows, blocks]``.

    Args:
        block: strides in a block, m.
        window: strides in a window, n.
    """
    group, rows, tokens = chances.values.shape
    values, slack = np.zeros((rows, blocks)), np.zeros((rows, blocks))
    of_group, off = chances.values.sum(0), chances.slack.sum(0)
    ends = block * np.arange(1, blocks + 1)
    # Each stride of a block meets each stride of a window that ends one stride later or more.
    for inner in range(block):
        for outer in range(window):
            token = ends - inner - outer
            there = np.flatnonzero((token >= 0) & (token < tokens))
            values[:, there] += of_group[:, token[there]]
            slack[:, there] += off[:, token[there]]
    return Exact(values, slack + gamma(group * (block + window) + 2) * (values + slack))
