"""Portable bodies: our operators written with standard ONNX operators, as model-local functions in ONNX's text format.

A body refuses the same values at run time as the kernels (lengths, slots and pages out of range): a wrong value makes
a `Gather` on a tensor of one element fail, in a node named after the argument. Nothing is clamped or wrapped.

`WINDOW_CONSTANTS` and `WEIGHTED_SUM` are what the bodies of the two compressions have in common.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx.parser
from onnx import FunctionProto, NodeProto

from .contract import DOMAIN

# ScatterElements adds from version 16 on; everything else in the bodies is older.
MIN_OPSET = 16


def parsed(text: str, opset: int) -> FunctionProto:
    """A body for the given version of the standard operators.

    Raises:
        ValueError: the version is older than `MIN_OPSET`.
    """
    if opset < MIN_OPSET:
        raise ValueError(
            f"the portable bodies need opset {MIN_OPSET} or newer of the standard operators, got {opset}: "
            "convert the model first (onnx.version_converter)"
        )
    function = onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>{text}')
    for node in function.node:
        # Runtimes name the node that fails: the checks say by it what is wrong.
        first, *_ = node.output
        if first.startswith("check_"):
            node.name = first
    return function


def inlined(text: str, opset: int, inputs: Mapping[str, str], prefix: str) -> list[NodeProto]:
    """The nodes of a function on values, by the names of its inputs. All names that they make begin with ``prefix``."""
    function = parsed(text, opset)
    for made in function.node:
        first, *_ = made.output
        made.name = prefix + (made.name or first)
        made.input[:] = [inputs[name] if name in function.input else prefix + name for name in made.input]
        made.output[:] = [prefix + name for name in made.output]
    return list(function.node)


WINDOW_CONSTANTS = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    zero_row = Constant <value_ints = [0]> ()
    one_row = Constant <value_ints = [1]> ()
    two_row = Constant <value_ints = [2]> ()
    block = Constant <value_int: int = @compress_block_size> ()
    stride = Constant <value_int: int = @compress_stride> ()
    block_row = Unsqueeze (block, zero_row)
    from_first = Range (zero, block, one)
    offsets = Unsqueeze (from_first, one_row)
"""

# One token of every window per turn: the order of the sum is the contract's, so the result is the kernel's to the
# bit. The alternative, gathering whole windows for one ReduceSum, leaves the order to the runtime and is worse in
# everything else (T = 16384, N = 4, D = 128, float16, onnxruntime 1.32 on 2 cores; extra memory, ulps off; measured by
# `python -m benchmarks --sections figures`):
#   block/stride 32/16:  loop 6.0 ms,  11 MiB, 0;  ReduceSum 14.6 ms, 166 MiB, 12
#   block/stride 128/16: loop 23.3 ms, 10 MiB, 0;  ReduceSum 52.0 ms, 654 MiB, 40
#
# Expects the constants below, all_tokens [block, windows] (rows of `values`) and values [*, N, D]; gives
# sum [windows, N, D] in float32.
WEIGHTED_SUM = """
    heads_and_dim = Shape <start = 1> (values)
    heads = Slice (heads_and_dim, zero_row, one_row)
    weight_shape = Shape (weight)
    block_and_heads = Concat <axis = 0> (block_row, heads)
    weight_fits = Equal (weight_shape, block_and_heads)
    weight_differs = Not (weight_fits)
    weight_numbers = Cast <to = 7> (weight_differs)
    weight_count = ReduceSum <keepdims = 0> (weight_numbers)
    check_weight = Gather (zero_row, weight_count)
    weight_float = Cast <to = 1> (weight)
    weights = Unsqueeze (weight_float, two_row)
    tokens = Add (all_tokens, check_weight)
    windows = Shape <start = 1, end = 2> (tokens)
    sum_shape = Concat <axis = 0> (windows, heads_and_dim)
    no_sum = ConstantOfShape <value = float[1] {0.0}> (sum_shape)
    always = Cast <to = 9> (one)
    sum = Loop (block, always, no_sum) <body = one_token (int64 j, bool go, float[r, n, d] sum_before)
        => (bool go_on, float[r, n, d] sum_after) {
        go_on = Identity (go)
        tokens_j = Gather <axis = 0> (tokens, j)
        values_16 = Gather <axis = 0> (values, tokens_j)
        values_32 = Cast <to = 1> (values_16)
        weight_j = Gather <axis = 0> (weights, j)
        products = Mul (values_32, weight_j)
        sum_after = Add (sum_before, products)
    }>
"""
