"""Portable bodies: both operators written in standard ONNX operators, as model-local functions.

`expand` adds them to a model, which then runs in any ONNX runtime, without our library. Where the library is
loaded, onnxruntime prefers its kernels to a function of the same name.

The bodies refuse what the kernels refuse at run time (lengths, slots and pages out of range): a wrong value makes
a `Gather` on a tensor of one element fail, in a node named after the argument. Nothing is clamped or wrapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx.parser
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from . import spec
from .graph.walk import standard_opset, subgraphs
from .schema import INPUT_NAMES, SCHEMAS

# ScatterElements adds from version 16 on; everything else in the bodies is older.
MIN_OPSET = 16
# For a model of nothing but our nodes, which imports no standard operators.
DEFAULT_OPSET = 18
# Functions came with IR version 8.
_MIN_IR = 8
_TABLE_INDEX = INPUT_NAMES[spec.INFER_OP].index("block_table")

# One token of every window per turn: the order of the sum is the contract's, so the result is the kernel's to the
# bit. The alternative, gathering whole windows for one ReduceSum, leaves the order to the runtime and is worse in
# everything else (T = 16384, N = 4, D = 128, float16, onnxruntime 1.32 on 2 cores; extra memory, ulps off; measured by
# `python -m benchmarks --sections figures`):
#   block/stride 32/16:  loop 6.0 ms,  11 MiB, 0;  ReduceSum 14.6 ms, 166 MiB, 12
#   block/stride 128/16: loop 23.3 ms, 10 MiB, 0;  ReduceSum 52.0 ms, 654 MiB, 40
#
# Expects the constants below, all_tokens [block, windows] (rows of `values`) and values [*, N, D]; gives
# sum [windows, N, D] in float32.
_WEIGHTED_SUM = """
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

_CONSTANTS = """
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

_COMPRESS_BODY = f"""
{spec.COMPRESS_OP} <compress_block_size, compress_stride> (input, weight, actual_seq_len) => (output) {{
    {_CONSTANTS}
    last = Constant <value_ints = [-1]> ()

    # Whether the lengths are prefix sums that end in T. Nothing is computed from them before that is known.
    ends_but_last = Slice (actual_seq_len, zero_row, last)
    ends_before = Concat <axis = 0> (zero_row, ends_but_last)
    decreasing = Less (actual_seq_len, ends_before)
    not_positive = Less (actual_seq_len, one)
    end = Gather (actual_seq_len, last)
    size = Shape <start = 0, end = 1> (input)
    ends_in_t = Equal (end, size)
    ends_elsewhere = Not (ends_in_t)
    wrong = Concat <axis = 0> (decreasing, not_positive, ends_elsewhere)
    wrong_numbers = Cast <to = 7> (wrong)
    wrong_count = ReduceSum <keepdims = 0> (wrong_numbers)
    check_actual_seq_len = Gather (zero_row, wrong_count)
    ends = Add (actual_seq_len, check_actual_seq_len)
    begins = Add (ends_before, check_actual_seq_len)
    lengths = Sub (ends, begins)

    # Windows of each segment. The division never sees a negative number, where runtimes differ.
    beyond = Sub (lengths, block)
    reach = Add (beyond, stride)
    reach_positive = Max (reach, zero)
    counts = Div (reach_positive, stride)
    row_ends = CumSum (counts, zero)
    row_begins = Sub (row_ends, counts)

    # Row i of a segment starts at begin + (i - row_begin) * stride = i * stride + base: the bases' differences,
    # placed at each segment's first row and summed up, give every row its segment's base.
    row_tokens = Mul (row_begins, stride)
    bases = Sub (begins, row_tokens)
    bases_but_last = Slice (bases, zero_row, last)
    bases_before = Concat <axis = 0> (zero_row, bases_but_last)
    steps = Sub (bases, bases_before)
    row_count = Gather (row_ends, last)
    row_count_1 = Add (row_count, one_row)
    no_steps = ConstantOfShape <value = int64[1] {{0}}> (row_count_1)
    placed = ScatterElements <axis = 0, reduction = "add"> (no_steps, row_begins, steps)
    base_of_row_1 = CumSum (placed, zero)
    base_of_row = Slice (base_of_row_1, zero_row, row_count)
    row_count_scalar = Squeeze (row_count, zero_row)
    rows = Range (zero, row_count_scalar, one)
    rows_stride = Mul (rows, stride)
    starts = Add (rows_stride, base_of_row)

    all_tokens = Add (offsets, starts)
    values = Identity (input)
    {_WEIGHTED_SUM}
    output = CastLike (sum, input)
}}
"""

_INFER_BODY = f"""
{spec.INFER_OP} <compress_block_size, compress_stride, page_block_size>
(input, weight, slot_mapping, cache, actual_seq_len, block_table) => (cache_out) {{
    {_CONSTANTS}
    page = Constant <value_int: int = @page_block_size> ()
    block_num = Shape <start = 0, end = 1> (input)
    input_page = Shape <start = 1, end = 2> (input)
    max_pages = Shape <start = 1, end = 2> (block_table)
    batch = Shape (actual_seq_len)
    slot_batch = Shape (slot_mapping)
    table_batch = Shape <start = 0, end = 1> (block_table)

    same_page = Equal (input_page, page)
    same_slot_batch = Equal (slot_batch, batch)
    same_table_batch = Equal (table_batch, batch)
    same = Concat <axis = 0> (same_page, same_slot_batch, same_table_batch)
    longest = Mul (max_pages, page)
    too_short = Less (actual_seq_len, zero)
    too_long = Greater (actual_seq_len, longest)
    different = Not (same)
    wrong_lengths = Concat <axis = 0> (different, too_short, too_long)
    wrong_lengths_numbers = Cast <to = 7> (wrong_lengths)
    wrong_lengths_count = ReduceSum <keepdims = 0> (wrong_lengths_numbers)
    check_actual_seq_len = Gather (zero_row, wrong_lengths_count)

    # The sequences that write; of the others nothing but the length is looked at.
    lengths = Add (actual_seq_len, check_actual_seq_len)
    firsts = Sub (lengths, block)
    shorter = Less (firsts, zero)
    long_enough = Not (shorter)
    firsts_positive = Max (firsts, zero)
    rest = Mod (firsts_positive, stride)
    on_stride = Equal (rest, zero)
    complete = And (long_enough, on_stride)
    writers_matrix = NonZero (complete)
    writers = Squeeze (writers_matrix, zero_row)

    slots_32 = Gather (slot_mapping, writers)
    slots_unchecked = Cast <to = 7> (slots_32)
    slot_count = Shape <start = 0, end = 1> (cache)
    slot_below = Less (slots_unchecked, zero)
    slot_inside = Less (slots_unchecked, slot_count)
    slot_above = Not (slot_inside)
    # Each slot equals itself, and must equal no other.
    slots_column = Unsqueeze (slots_unchecked, one_row)
    slots_equal = Equal (slots_column, slots_unchecked)
    slots_equal_numbers = Cast <to = 7> (slots_equal)
    slots_equal_count = ReduceSum <keepdims = 0> (slots_equal_numbers)
    slots_size = Size (slots_unchecked)
    slots_distinct = Equal (slots_equal_count, slots_size)
    slots_double_scalar = Not (slots_distinct)
    slots_double = Unsqueeze (slots_double_scalar, zero_row)
    wrong_slots = Concat <axis = 0> (slot_below, slot_above, slots_double)
    wrong_slots_numbers = Cast <to = 7> (wrong_slots)
    wrong_slots_count = ReduceSum <keepdims = 0> (wrong_slots_numbers)
    check_slot_mapping = Gather (zero_row, wrong_slots_count)
    slots = Add (slots_unchecked, check_slot_mapping)

    # Tokens of every window, and where they lie: [compress_block_size, writers].
    starts = Gather (firsts, writers)
    positions = Add (offsets, starts)
    logical_pages = Div (positions, page)
    in_page = Mod (positions, page)
    table_rows = Gather <axis = 0> (block_table, writers)
    table_columns = Transpose <perm = [1, 0]> (table_rows)
    pages_32 = GatherElements <axis = 0> (table_columns, logical_pages)
    pages_unchecked = Cast <to = 7> (pages_32)
    page_below = Less (pages_unchecked, zero)
    page_inside = Less (pages_unchecked, block_num)
    page_above = Not (page_inside)
    wrong_pages = Or (page_below, page_above)
    wrong_pages_numbers = Cast <to = 7> (wrong_pages)
    wrong_pages_count = ReduceSum <keepdims = 0> (wrong_pages_numbers)
    check_block_table = Gather (zero_row, wrong_pages_count)
    pages = Add (pages_unchecked, check_block_table)
    page_tokens = Mul (pages, page)
    all_tokens = Add (page_tokens, in_page)

    token_count = Mul (block_num, page)
    input_dims = Shape <start = 2> (input)
    values_shape = Concat <axis = 0> (token_count, input_dims)
    values = Reshape <allowzero = 1> (input, values_shape)
    {_WEIGHTED_SUM}
    written = CastLike (sum, cache)
    slot_indices = Unsqueeze (slots, one_row)
    cache_out = ScatterND (cache, slot_indices, written)
}}
"""

# What an absent block_table stands for: sequence b owns the pages b*P .. (b+1)*P-1, P = block_num / B.
_DEFAULT_TABLE = """
table (input, slot_mapping) => (block_table) {
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    zero_row = Constant <value_ints = [0]> ()
    one_row = Constant <value_ints = [1]> ()
    block_num = Shape <start = 0, end = 1> (input)
    batch = Shape (slot_mapping)
    batch_positive = Max (batch, one_row)
    left_over = Mod (block_num, batch_positive)
    check_block_num = Gather (zero_row, left_over)
    pages_each_unchecked = Div (block_num, batch_positive)
    pages_each = Add (pages_each_unchecked, check_block_num)
    used = Mul (batch, pages_each)
    used_scalar = Squeeze (used, zero_row)
    pages = Range (zero, used_scalar, one)
    shape = Concat <axis = 0> (batch, pages_each)
    pages_32 = Cast <to = 6> (pages)
    block_table = Reshape <allowzero = 1> (pages_32, shape)
}
"""


def body(op_type: str, opset: int) -> FunctionProto:
    """The portable body of ``NsaCompress`` or ``NsaCompressInfer`` for the given version of the standard operators.

    Raises:
        ValueError: the version is older than `MIN_OPSET`.
    """
    if opset < MIN_OPSET:
        raise ValueError(
            f"the portable bodies need opset {MIN_OPSET} or newer of the standard operators, got {opset}: "
            "convert the model first (onnx.version_converter)"
        )
    text = {spec.COMPRESS_OP: _COMPRESS_BODY, spec.INFER_OP: _INFER_BODY}[op_type]
    return _parsed(text, opset)


def _parsed(text: str, opset: int) -> FunctionProto:
    header = f'<domain: "{spec.DOMAIN}", opset_import: ["" : {opset}]>'
    function = onnx.parser.parse_function(header + text)
    for node in function.node:
        # Runtimes name the node that fails: the checks say by it what is wrong.
        if node.output[0].startswith("check_"):
            node.name = node.output[0]
    return function


def expand(model: ModelProto) -> ModelProto:
    """A copy of the model that also runs without our library: the bodies of its NSA operators are added.

    The nodes stay what they are. A node that leaves out ``block_table`` gets the table that this stands for,
    computed by standard nodes before it, because a function cannot ask whether an input is there. Expanding again
    changes nothing.

    Raises:
        ValueError: opset too old, the domain's version missing or unknown, an operator of the domain that is not
            ours, a node without an attribute or input that it needs. The message names the node.
    """
    result = ModelProto()
    result.CopyFrom(model)
    opset = standard_opset(result.opset_import)
    scopes = list(_scopes(result))
    used = {node.op_type for scope in scopes for node in scope.nodes if node.domain == spec.DOMAIN}
    if not used:
        return result
    for scope in scopes:
        _require_sound(scope)
    if opset is None:
        opset = DEFAULT_OPSET
        result.opset_import.add(domain="", version=opset)
    bodies = [body(op_type, opset) for op_type in sorted(used)]
    _insert_tables(scopes, opset)
    result.ir_version = max(result.ir_version, _MIN_IR)
    ours = {(spec.DOMAIN, op_type) for op_type in used}
    others = [function for function in result.functions if (function.domain, function.name) not in ours]
    del result.functions[:]
    # First, since some runtimes read functions in order and a function of the model may call them.
    result.functions.extend([*bodies, *others])
    return result


@dataclass(frozen=True)
class _Scope:
    """The nodes of a graph, a subgraph or a function, and the imports that hold for them."""

    nodes: Any  # protobuf's repeated container of NodeProto, changed in place
    values: tuple[str, ...]
    owner: ModelProto | FunctionProto


def _scopes(model: ModelProto) -> Iterator[_Scope]:
    for function in model.functions:
        # A body of ours is replaced, whatever it is.
        if function.domain == spec.DOMAIN and function.name in SCHEMAS:
            continue
        yield from _with_subgraphs(_Scope(function.node, (*function.input, *function.output), function))
    yield from _with_subgraphs(_Scope(model.graph.node, _value_names(model.graph), model))


def _with_subgraphs(top: _Scope) -> Iterator[_Scope]:
    pending = [top]
    while pending:
        scope = pending.pop()
        yield scope
        for node in scope.nodes:
            pending.extend(_Scope(graph.node, _value_names(graph), scope.owner) for graph in subgraphs(node))


def _value_names(graph: GraphProto) -> tuple[str, ...]:
    return tuple(value.name for value in (*graph.input, *graph.initializer))


def _require_sound(scope: _Scope) -> None:
    """ValueError for what a function body would not notice: runtimes give an empty result, or none."""
    versions = [entry.version for entry in scope.owner.opset_import if entry.domain == spec.DOMAIN]
    for node in scope.nodes:
        if node.domain != spec.DOMAIN:
            continue
        where = f"node {node.name!r} ({node.op_type})"
        if node.op_type not in SCHEMAS:
            raise ValueError(f"{where}: domain {spec.DOMAIN} has no such operator, only {', '.join(SCHEMAS)}")
        if versions != [spec.OPSET_VERSION]:
            raise ValueError(f"{where}: version {spec.OPSET_VERSION} of domain {spec.DOMAIN} must be imported")
        schema = SCHEMAS[node.op_type]
        missing = [name for name in sorted(schema.attributes) if name not in {a.name for a in node.attribute}]
        connected = [name != "" for name in node.input] + [False] * len(schema.inputs)
        missing += [formal.name for formal, there in zip(schema.inputs, connected, strict=False) if not there]
        missing = [name for name in missing if name != "block_table"]
        if missing:
            raise ValueError(f"{where}: {missing[0]} is required and missing")


def _insert_tables(scopes: list[_Scope], opset: int) -> None:
    """Give every NsaCompressInfer node without a block_table one, computed from the shapes of its other inputs."""
    taken = {name for scope in scopes for name in scope.values}
    taken.update(name for scope in scopes for node in scope.nodes for name in (*node.output, node.name))
    taken = {name for name in taken if isinstance(name, str)}  # protobuf gives text that is not UTF-8 as bytes
    number = 0
    for scope in scopes:
        for node in [node for node in scope.nodes if _lacks_table(node)]:
            prefix = f"nsa_onnx_{number}_"
            while any(name.startswith(prefix) for name in taken):
                number += 1
                prefix = f"nsa_onnx_{number}_"
            number += 1
            if standard_opset(scope.owner.opset_import) is None:  # a function of nothing but our nodes
                scope.owner.opset_import.add(domain="", version=opset)
            at = next(index for index, other in enumerate(scope.nodes) if other is node)
            for offset, table_node in enumerate(_table_nodes(node, prefix, opset)):
                scope.nodes.insert(at + offset, table_node)
            del node.input[_TABLE_INDEX:]
            node.input.append(f"{prefix}block_table")


def _table_nodes(node: NodeProto, prefix: str, opset: int) -> list[NodeProto]:
    """The nodes that compute the default table of ``node`` under ``prefix + "block_table"``."""
    function = _parsed(_DEFAULT_TABLE, opset)
    own = {name: node.input[INPUT_NAMES[spec.INFER_OP].index(name)] for name in function.input}
    for table_node in function.node:
        table_node.input[:] = [own.get(name, prefix + name) for name in table_node.input]
        table_node.output[:] = [prefix + name for name in table_node.output]
        table_node.name = prefix + (table_node.name or table_node.output[0].removeprefix(prefix))
    return list(function.node)


def _lacks_table(node: NodeProto) -> bool:
    ours = node.domain == spec.DOMAIN and node.op_type == spec.INFER_OP
    return ours and not any(node.input[_TABLE_INDEX:])
