"""ONNX schemas of NsaCompress and NsaCompressInfer, and what can be told about a node without running it.

Importing this module registers the schemas (`register`), so that ``onnx.shape_inference`` computes the
exact T' of constant lengths and ``onnx.checker`` sees types, attributes and limits. The same reading of a
node (`NodeFacts`, `violations`) serves the graph checker; the limits themselves are `nsa_onnx.spec`'s.

``docs/operators.md`` is generated from the documentation strings here.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, TensorShapeProto, TypeProto, defs
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceContext, InferenceError

from . import spec
from .graph.tensors import Integers, TensorFacts, Unknown, attribute_value, integer_values, tensor_facts
from .operators.windows import TENSOR_ROWS, seq_tensor_violations

# --------------------------------------------------------------------------------------------------
# Reading a node


@dataclass(frozen=True)
class NodeFacts:
    """A node of one of our operators, as far as it is known.

    Attributes:
        op_type: ``NsaCompress`` or ``NsaCompressInfer``.
        attributes: value by name; `Unknown` for a reference to an attribute of the enclosing function.
        inputs: the connected inputs by the schema's name. An input that is left out is not in it.
        constants: values of the integer inputs that are constant, by name.
    """

    op_type: str
    attributes: Mapping[str, object]
    inputs: Mapping[str, TensorFacts]
    constants: Mapping[str, Integers] = field(default_factory=dict)

    def tensor(self, name: str) -> TensorFacts:
        return self.inputs.get(name, TensorFacts())

    def integer(self, name: str) -> int | None:
        """The attribute if it is an int; None if it is missing, unknown or of another kind."""
        value = self.attributes.get(name)
        return int(value) if isinstance(value, (int, np.integer)) else None


# --------------------------------------------------------------------------------------------------
# What is wrong with it

# What only a graph can get wrong: the eager calls have no such rows.
NODE_ROWS = {
    row.id: row
    for row in (
        spec.Row("input_missing", TypeError, "inputs", "{} is a required input and is not connected"),
        spec.Row("attribute_missing", TypeError, "attributes", "{} is a required attribute and is missing"),
        spec.Row("seq_negative", RuntimeError, "actual_seq_len", "actual_seq_len[{}] must be >= 0, got {}"),
        *TENSOR_ROWS.values(),
    )
}


def violations(facts: NodeFacts) -> spec.Violations:
    """Everything that is certainly wrong with a node, in the order of the error table.

    What is unknown is taken to be right: a graph that merely cannot be resolved has no violation.
    """
    rules = {spec.COMPRESS_OP: _compress_violations, spec.INFER_OP: _infer_violations}
    return rules[facts.op_type](facts)


def _row(name: str, *values: object) -> spec.Violation:
    return spec.Violation(NODE_ROWS[name], values)


def _completeness_violations(facts: NodeFacts) -> spec.Violations:
    schema = SCHEMAS[facts.op_type]
    for formal in schema.inputs:
        if formal.option == OpSchema.FormalParameterOption.Single and formal.name not in facts.inputs:
            yield _row("input_missing", formal.name)
    for name in sorted(schema.attributes):
        if name not in facts.attributes:
            yield _row("attribute_missing", name)


def _arrays(facts: NodeFacts, names: Sequence[str]) -> dict[str, spec.Array]:
    """Inputs of type T as spec sees them. A type that is unknown is taken to be that of the others."""
    known = [dtype for name in names if (dtype := facts.tensor(name).dtype) is not None]
    default = known[0] if known else spec.DTYPES[0]
    return {name: spec.Array(facts.tensor(name).dtype or default, ()) for name in names}


def _attribute(facts: NodeFacts, name: str) -> object:
    """The attribute for a check of its kind: what is unknown or missing passes as an int."""
    value = facts.attributes.get(name, 0)
    return 0 if isinstance(value, Unknown) else value


def _sequence_type_violations(facts: NodeFacts) -> spec.Violations:
    seq = facts.tensor("actual_seq_len")
    yield from seq_tensor_violations(seq.dtype, seq.rank())


def _compress_violations(facts: NodeFacts) -> spec.Violations:
    yield from _completeness_violations(facts)
    arrays = _arrays(facts, ("input", "weight"))
    kinds = [_attribute(facts, name) for name in ("compress_block_size", "compress_stride")]
    yield from spec.compress_type_violations(arrays["input"], arrays["weight"], kinds[0], kinds[1], ())
    yield from _sequence_type_violations(facts)
    tokens, weight = facts.tensor("input"), facts.tensor("weight")
    window = _Window.of(facts, spec.COMPRESS_LIMITS)
    yield from window.known(spec.compress_shape_violations(tokens.dims(3), weight.dims(2), window.block, window.stride))
    lengths = facts.constants.get("actual_seq_len")
    if lengths is not None and lengths.ndim == 1:
        yield from spec.prefix_sum_violations(lengths.tolist(), tokens.dim(0) if tokens.rank() == 3 else None)
    elif facts.tensor("actual_seq_len").shape == (0,):
        yield from spec.prefix_sum_violations((), None)


_ROWS_ABOUT = {
    "compress_block_size": {"weight_block", "block_multiple", "block_range"},
    "compress_stride": {"stride_multiple", "stride_range"},
    "page_block_size": {"page_size", "input_page"},
}


@dataclass(frozen=True)
class _Window:
    """Block and stride for the checks of shapes, where one may be unknown.

    An unknown one gets a value that is legal with the other, and what is said because of it is dropped.
    """

    block: int
    stride: int
    unknown: frozenset[str]

    @classmethod
    def of(cls, facts: NodeFacts, limits: spec.Limits) -> _Window:
        block, stride = facts.integer("compress_block_size"), facts.integer("compress_stride")
        largest = limits.max_block - limits.max_block % spec.ALIGNMENT
        names = ("compress_block_size", "compress_stride", "page_block_size")
        return cls(
            largest if block is None else block,
            spec.ALIGNMENT if stride is None else stride,
            frozenset(name for name in names if facts.integer(name) is None),
        )

    def known(self, found: spec.Violations) -> spec.Violations:
        dropped = {row for name in self.unknown for row in _ROWS_ABOUT[name]}
        return (violation for violation in found if violation.row.id not in dropped)


def _infer_violations(facts: NodeFacts) -> spec.Violations:
    yield from _completeness_violations(facts)
    arrays = _arrays(facts, ("input", "weight", "cache"))
    table = spec.Array(facts.tensor("block_table").dtype or "int32", ()) if "block_table" in facts.inputs else None
    yield from spec.infer_type_violations(
        arrays["input"],
        arrays["weight"],
        spec.Array(facts.tensor("slot_mapping").dtype or "int32", ()),
        _attribute(facts, "compress_block_size"),
        _attribute(facts, "compress_stride"),
        _attribute(facts, "page_block_size"),
        table,
        (),
        arrays["cache"],
    )
    yield from _sequence_type_violations(facts)
    wrong_shape = False
    for violation in _infer_shape_violations(facts):
        wrong_shape = True
        yield violation
    if not wrong_shape:
        yield from _infer_value_violations(facts)


def _infer_shape_violations(facts: NodeFacts) -> spec.Violations:
    window = _Window.of(facts, spec.INFER_LIMITS)
    page = facts.integer("page_block_size")
    return window.known(
        spec.infer_shape_violations(
            facts.tensor("input").dims(4),
            facts.tensor("weight").dims(2),
            facts.tensor("slot_mapping").dims(1),
            window.block,
            window.stride,
            spec.PAGE_BLOCK_SIZES[0] if page is None else page,
            facts.tensor("block_table").dims(2) if "block_table" in facts.inputs else None,
            facts.tensor("actual_seq_len").dim(0),
            facts.tensor("cache").dims(3),
        )
    )


def _max_pages(facts: NodeFacts) -> spec.Dim:
    if "block_table" in facts.inputs:
        return facts.tensor("block_table").dim(1)
    block_num, batch = facts.tensor("input").dim(0), facts.tensor("slot_mapping").dim(0)
    return block_num // batch if block_num is not None and batch else None


def _infer_value_violations(facts: NodeFacts) -> spec.Violations:
    """Constant lengths against the pages, and constant indices where all of them are known."""
    lengths, page = facts.constants.get("actual_seq_len"), facts.integer("page_block_size")
    if lengths is None or lengths.ndim != 1 or page is None:
        return
    pages = _max_pages(facts)
    if pages is None:
        yield from (_row("seq_negative", b, length) for b, length in enumerate(lengths.tolist()) if length < 0)
        return
    slots, table = facts.constants.get("slot_mapping"), facts.constants.get("block_table")
    block, stride = facts.integer("compress_block_size"), facts.integer("compress_stride")
    block_num, slot_count = facts.tensor("input").dim(0), facts.tensor("cache").dim(0)
    # Constants whose shapes disagree with the types are malformed, which is for others to say.
    sound = slots is not None and slots.shape == lengths.shape
    if "block_table" in facts.inputs:
        sound = sound and table is not None and table.shape == (lengths.size, pages)
    if not sound or slots is None or block is None or stride is None or block_num is None or slot_count is None:
        yield from spec.infer_length_violations(lengths.tolist(), pages * page)
        return
    rows = None if table is None else table.tolist()
    yield from spec.infer_index_violations(
        slots.tolist(), rows, lengths.tolist(), block, stride, page, block_num, pages, slot_count
    )


# Where the output's dims are to be read: per axis (input's name, its axis), the best source first.
_DIM_SOURCES: dict[str, tuple[tuple[tuple[str, int], ...], ...]] = {
    spec.COMPRESS_OP: ((), (("input", 1), ("weight", 1)), (("input", 2),)),
    spec.INFER_OP: ((("cache", 0),), (("cache", 1), ("input", 2), ("weight", 1)), (("cache", 2), ("input", 3))),
}


OUTPUT_RANKS = {(spec.DOMAIN, op_type): len(axes) for op_type, axes in _DIM_SOURCES.items()}
"""Rank of each operator's output, by domain and operator."""


def output_type(facts: NodeFacts, types: Mapping[str, TypeProto]) -> TypeProto:
    """The output's type, from a node without violations. ``types`` are the inputs' own, by name.

    Dims that have a name in the graph keep it; an unknown T' stays without value and name.
    """
    result = TypeProto()
    tensor = result.tensor_type
    arrays = _arrays(facts, ("input", "weight", "cache"))
    if any(facts.tensor(name).dtype is not None for name in arrays):
        tensor.elem_type = getattr(TensorProto, arrays["input"].dtype.upper())
    for sources in _DIM_SOURCES[facts.op_type]:
        known = [dim for name, axis in sources if (dim := _dim_proto(types.get(name), axis)) is not None]
        # A number beats a name, and a name beats nothing.
        known.sort(key=lambda dim: not dim.HasField("dim_value"))
        tensor.shape.dim.add().CopyFrom(known[0] if known else TensorShapeProto.Dimension())
    rows = output_rows(facts)
    if rows is not None:
        tensor.shape.dim[0].dim_value = rows
    return result


def _dim_proto(type_proto: TypeProto | None, index: int) -> Any:
    """A usable dim of a tensor type (a value that is not negative, or a name), or None."""
    if type_proto is None or not type_proto.HasField("tensor_type"):
        return None
    shape = type_proto.tensor_type.shape
    if index >= len(shape.dim):
        return None
    dim = shape.dim[index]
    usable = dim.dim_value >= 0 if dim.HasField("dim_value") else bool(dim.dim_param)
    return dim if usable else None


def output_rows(facts: NodeFacts) -> int | None:
    """T' of an NsaCompress node without violations, when its lengths and window are known."""
    lengths = facts.constants.get("actual_seq_len")
    block, stride = facts.integer("compress_block_size"), facts.integer("compress_stride")
    if facts.op_type != spec.COMPRESS_OP or lengths is None or lengths.ndim != 1 or block is None or stride is None:
        return None
    return spec.compressed_length(lengths.tolist(), block, stride)


# --------------------------------------------------------------------------------------------------
# Type and shape inference


def context_facts(op_type: str, ctx: InferenceContext) -> tuple[NodeFacts, dict[str, TypeProto]]:
    """The node that onnx is inferring, and the types of its inputs by name."""
    schema = SCHEMAS[op_type]
    inputs: dict[str, TensorFacts] = {}
    types: dict[str, TypeProto] = {}
    constants: dict[str, Integers] = {}
    for index, formal in enumerate(schema.inputs[: ctx.get_num_inputs()]):
        if not ctx.has_input(index):
            continue
        type_proto = ctx.get_input_type(index)
        inputs[formal.name] = tensor_facts(type_proto)
        if type_proto is not None:
            types[formal.name] = type_proto
        values = _context_values(ctx, index)
        if values is not None:
            constants[formal.name] = values
    attributes = {name: attribute_value(a) for name in schema.attributes if (a := ctx.get_attribute(name)) is not None}
    return NodeFacts(op_type, attributes, inputs, constants), types


def _context_values(ctx: InferenceContext, index: int) -> Integers | None:
    tensor = ctx.get_input_data(index)
    if tensor is not None:
        return integer_values(tensor)
    # With data propagation, integers that onnx has computed come as a "shape".
    symbolic = ctx.get_symbolic_input(index)
    if symbolic is None or not all(dim.HasField("dim_value") for dim in symbolic.dim):
        return None
    return np.array([dim.dim_value for dim in symbolic.dim], np.int64)


# While `observing`: what onnx has shown of each node, and then nothing is raised.
_observed: ContextVar[list[tuple[str, NodeFacts]] | None] = ContextVar("observed", default=None)


@contextmanager
def observing() -> Iterator[list[tuple[str, NodeFacts]]]:
    """Collect what onnx knows of every node of ours that it infers (name for people, facts), and raise nothing.

    Nodes in functions come once per call, with what the call gives them.
    """
    seen: list[tuple[str, NodeFacts]] = []
    token = _observed.set(seen)
    try:
        yield seen
    finally:
        _observed.reset(token)


def _inference(op_type: str) -> Callable[[InferenceContext], None]:
    """The inference function of one operator.

    onnx gives a Python function no way to report an error that strict mode raises and lax mode drops:
    an exception ends both. So it is raised only for what `violations` is certain of.
    """

    def infer(ctx: InferenceContext) -> None:
        facts, types = context_facts(op_type, ctx)
        first = next(violations(facts), None)
        seen = _observed.get()
        if seen is not None:
            seen.append((ctx.get_display_name(), facts))
        elif first is not None:
            raise InferenceError(f"[ShapeInferenceError] {op_type}: {first.message}")
        if first is None and ctx.get_num_outputs() and ctx.has_output(0):
            ctx.set_output_type(0, output_type(facts, types))

    return infer


# --------------------------------------------------------------------------------------------------
# The schemas

_HOST = "Read on the host on every execution provider, and checked in full before anything is computed."
_TYPES = ("T", [f"tensor({dtype})" for dtype in spec.DTYPES], "16-bit floating point; one type for the whole node.")
_WINDOW = (
    "A window is `compress_block_size` consecutive tokens; windows start `compress_stride` tokens apart.",
    "Products are accumulated in float32 in the order j = 0, 1, 2, ... and rounded once, to nearest even, so that "
    "every instruction set and thread count gives the same bits. NaN and Inf stay in their own window, head and "
    "channel.",
)


def _limits_text(limits: spec.Limits) -> str:
    return (
        f"`D` is a multiple of {spec.ALIGNMENT} and at most {spec.MAX_HEAD_DIM}; "
        f"`{limits.min_heads} <= N <= {limits.max_heads}`; `compress_block_size` is a multiple of {spec.ALIGNMENT} in "
        f"`[{limits.min_block}, {limits.max_block}]`; `compress_stride` is a multiple of {spec.ALIGNMENT} in "
        f"`[{spec.ALIGNMENT}, compress_block_size]`"
    )


_COMPRESS_DOC = f"""Compresses the KV sequences of a batch: each window becomes one token, a weighted sum per head.

    output[i, n, :] = sum_j input[start(i) + j, n, :] * weight[j, n]      j = 0 .. compress_block_size - 1

{_WINDOW[0]} The batch's sequences (segments) lie one after the other in `input`; windows never cross a
segment's end, and the segments' results are concatenated in order. With `L_i` the lengths of the segments,

    T' = sum_i max(0, 1 + floor((L_i - compress_block_size) / compress_stride))

so a tail that fills no window is dropped, a segment shorter than a window yields nothing, and `T' = 0` is legal.

{_WINDOW[1]}

Limits: {_limits_text(spec.COMPRESS_LIMITS)}.

Shape inference computes `T'` exactly where `actual_seq_len` is a constant of the node's own graph; elsewhere it is a
dim of its own. (To a node in a subgraph, onnx shows no constants from outside; `nsa-onnx check` looks there, too.)
"""

_INFER_DOC = f"""One decode step over a paged KV cache: a sequence that has just completed a window has it compressed.

For a sequence `b` of length `L = actual_seq_len[b]`: if `L >= compress_block_size` and
`(L - compress_block_size) % compress_stride == 0`, its last `compress_block_size` tokens are compressed into
`cache_out[slot_mapping[b]]`; otherwise nothing is written for `b`. All other rows of `cache_out` are those of `cache`.

    cache_out[slot_mapping[b], n, :] = sum_j token(b, L - compress_block_size + j)[n, :] * weight[j, n]
    token(b, t) = input[block_table[b, t // page_block_size], t % page_block_size]

{_WINDOW[1]}

Limits: {_limits_text(spec.INFER_LIMITS)}; `page_block_size` is {" or ".join(map(str, spec.PAGE_BLOCK_SIZES))}.
The slots of the sequences that write are in range and differ from one another, and the entries of `block_table` that
are read are in `[0, block_num)`. Rows that do not write may hold anything (-1 padding is common). A bad index is an
error, found before the cache is written: nothing is clamped or wrapped.

`cache_out` may share `cache`'s memory; bound to the same value, only the written slots are touched.
"""

_Option = OpSchema.FormalParameterOption


def _input(name: str, type_str: str, text: str, option: Any = _Option.Single) -> OpSchema.FormalParameter:
    return OpSchema.FormalParameter(name, type_str, text, param_option=option)


def _int_attribute(name: str, text: str) -> OpSchema.Attribute:
    return OpSchema.Attribute(name, OpSchema.AttrType.INT, text, required=True)


_BLOCK = _int_attribute("compress_block_size", "Tokens in a window.")
_STRIDE = _int_attribute("compress_stride", "Tokens between the starts of two neighbouring windows.")
_WEIGHT = _input("weight", "T", "`[compress_block_size, N]`: the weight of each token of a window, per head.")


def _compress_schema() -> OpSchema:
    return OpSchema(
        spec.COMPRESS_OP,
        spec.DOMAIN,
        spec.OPSET_VERSION,
        _COMPRESS_DOC,
        inputs=[
            _input("input", "T", "`[T, N, D]`: the tokens of all segments, one segment after the other."),
            _WEIGHT,
            _input(
                "actual_seq_len",
                "tensor(int64)",
                "`[B]`: prefix sums of the segments' lengths, in tokens: positive, not decreasing, the last one equal "
                f"to `T`. Two equal neighbours are an empty segment. {_HOST}",
            ),
        ],
        outputs=[OpSchema.FormalParameter("output", "T", "`[T', N, D]`: one row per window.")],
        type_constraints=[_TYPES],
        attributes=[_BLOCK, _STRIDE],
    )


def _infer_schema() -> OpSchema:
    return OpSchema(
        spec.INFER_OP,
        spec.DOMAIN,
        spec.OPSET_VERSION,
        _INFER_DOC,
        inputs=[
            _input("input", "T", "`[block_num, page_block_size, N, D]`: the pages of the KV cache."),
            _WEIGHT,
            _input("slot_mapping", "tensor(int32)", f"`[B]`: the row of `cache` that each sequence writes. {_HOST}"),
            _input("cache", "T", "`[slots, N, D]`: the compressed tokens so far."),
            _input(
                "actual_seq_len",
                "tensor(int64)",
                "`[B]`: the sequences' lengths in tokens (not prefix sums), each in "
                f"`0 .. max_pages * page_block_size`. {_HOST}",
            ),
            _input(
                "block_table",
                "tensor(int32)",
                "`[B, max_pages]`: the physical page of each logical page of each sequence. Without it, sequence `b` "
                "owns the pages `b * P .. (b + 1) * P - 1` with `P = block_num / B`, which must divide, and "
                f"`max_pages = P`. {_HOST}",
                _Option.Optional,
            ),
        ],
        outputs=[OpSchema.FormalParameter("cache_out", "T", "`[slots, N, D]`: `cache` with the new rows.")],
        type_constraints=[_TYPES],
        attributes=[
            _BLOCK,
            _STRIDE,
            _int_attribute("page_block_size", "Tokens in a page."),
        ],
    )


SCHEMAS: dict[str, OpSchema] = {spec.COMPRESS_OP: _compress_schema(), spec.INFER_OP: _infer_schema()}
"""The schemas by op type, for those who need the object (onnxscript, the documentation)."""


def register() -> None:
    """Make the schemas known to onnx, once per process; calling it again does nothing."""
    for op_type, schema in SCHEMAS.items():
        if not defs.has(op_type, spec.OPSET_VERSION, spec.DOMAIN):
            defs.register_schema(schema)
            atexit.register(_deregister, op_type)


def _deregister(op_type: str) -> None:
    # Before Python ends: onnx frees the inference function with the process otherwise, and onnx 1.19 then waits
    # for ever for the interpreter that is gone.
    if defs.has(op_type, spec.OPSET_VERSION, spec.DOMAIN):
        defs.deregister_schema(op_type, spec.OPSET_VERSION, spec.DOMAIN)


INPUT_NAMES = {op_type: tuple(formal.name for formal in schema.inputs) for op_type, schema in SCHEMAS.items()}
"""Names of each operator's inputs, in their order."""

for _op_type, _schema in SCHEMAS.items():
    _schema.set_type_and_shape_inference_function(_inference(_op_type))
register()
