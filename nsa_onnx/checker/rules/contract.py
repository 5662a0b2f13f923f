"""Rules NSA001 to NSA017: the model, the inputs and attributes of its NSA nodes, and every limit of the operators.

The limits and their messages are in `nsa_onnx.operators`; a rule only says which of them it reports.
"""

from __future__ import annotations

from collections.abc import Iterator

from ... import spec
from ...analysis import Analysis
from ...operators.schema import SCHEMAS
from ...rulebook.examples import compress, infer, model
from ...rulebook.finding import Finding
from ...rulebook.rule import finding, note
from .registry import RULE_OF_ROW, general, observed_violations, row_rule

_EXPORT_AGAIN = "export again with nsa_onnx.exporters.export, which writes complete nodes"
_PAGES = " or ".join(map(str, spec.PAGE_BLOCK_SIZES))
_GOOD = compress()


@general(
    "NSA001",
    "a model has a graph",
    example=model([], [], []),
    accepted=model(["float16[2] x"], ["float16[2] y"], ["y = Neg (x)"], imports=""),
    hint="export or copy the file again",
)
def _graph(model: Analysis) -> Iterator[Finding]:
    """The file must hold a graph with nodes. An empty or truncated file often still parses as a model without one."""
    if not model.proto.HasField("graph"):
        yield note("the model has no graph")
    elif not model.proto.graph.node:
        yield note("the graph has no nodes")


@general(
    "NSA002",
    "the domain is imported",
    example=compress(imports=f'"{spec.DOMAIN}" : {spec.OPSET_VERSION + 1}'),
    accepted=_GOOD,
    hint=f'add opset_import {{domain: "{spec.DOMAIN}", version: {spec.OPSET_VERSION}}} to the model or function',
)
def _import(model: Analysis) -> Iterator[Finding]:
    """A model or function that uses our nodes imports version 1 of domain nsa_onnx.

    Runtimes refuse a domain that is not imported, and a version they do not know may mean something else.
    """
    reported: set[int] = set()
    for node in model.nodes:
        version = node.scope.imports.get(spec.DOMAIN)
        if version == spec.OPSET_VERSION or id(node.scope.imports) in reported:
            continue
        reported.add(id(node.scope.imports))
        got = "it is not imported" if version is None else f"got {version}"
        message = f"opset import of domain {spec.DOMAIN} must be version {spec.OPSET_VERSION}, {got}"
        yield finding(node, message, "opset_import")


@general(
    "NSA003",
    "the operator exists",
    example=_GOOD.replace("NsaCompress", "NsaCompres"),
    accepted=_GOOD,
    hint=f"correct its name, or move an operator of your own to another domain than {spec.DOMAIN}",
)
def _operator(model: Analysis) -> Iterator[Finding]:
    """Domain nsa_onnx holds NsaCompress and NsaCompressInfer, and nothing else. What a function of the model computes,
    NSA043 looks at.
    """
    functions = {(function.domain, function.name) for function in model.proto.functions}
    for node in model.nodes:
        if node.facts is None and (node.proto.domain, node.proto.op_type) not in functions:
            yield finding(node, f"domain {spec.DOMAIN} has no operator {node.op_type!r}, only {', '.join(SCHEMAS)}")


@general(
    "NSA004",
    "inputs and outputs are all there",
    example=compress(inputs="x, w"),
    accepted=infer(table=None, batch="3"),
    hint=_EXPORT_AGAIN,
)
def _counts(model: Analysis) -> Iterator[Finding]:
    """Every input that is not optional is connected, to a value that exists; there is one output and no surplus."""
    for node in model.nodes:
        if node.facts is None:
            continue
        for violation in node.violations:
            if violation.row.id == "input_missing":
                yield finding(node, violation.message, str(violation.values[0]))
        formal = SCHEMAS[node.op_type].inputs
        if len(node.proto.input) > len(formal):
            yield finding(node, f"takes at most {len(formal)} inputs, got {len(node.proto.input)}", "inputs")
        if len(node.proto.output) != 1 or not node.proto.output[0]:
            there = sum(bool(name) for name in node.proto.output)
            yield finding(node, f"must have 1 output, got {there}", "outputs")
        for parameter, name in zip(formal, node.proto.input, strict=False):
            if name and not node.scope.knows(name):
                yield finding(node, f"{parameter.name}: no value {name!r} in the graph", parameter.name)
    yield from observed_violations(model, ("input_missing",))  # a function's input that a call leaves out


RULE_OF_ROW["input_missing"] = "NSA004"
_ATTRIBUTE_ROWS = ("attribute_missing", "block_kind", "stride_kind", "page_kind")
RULE_OF_ROW.update(dict.fromkeys(_ATTRIBUTE_ROWS, "NSA005"))


@general(
    "NSA005",
    "attributes are there, known and ints",
    example=_GOOD.replace(", compress_stride = 16", ""),
    accepted=_GOOD,
    hint=_EXPORT_AGAIN,
)
def _attributes(model: Analysis) -> Iterator[Finding]:
    """Every attribute of the schema is given once, as an int, and there is no other.

    onnxruntime gives an empty result, without a word, for a portable body whose attribute is missing.
    """
    for node in model.nodes:
        if node.facts is None:
            continue
        for violation in node.violations:
            if violation.row.id in _ATTRIBUTE_ROWS:
                argument = violation.values[0] if violation.row.id == "attribute_missing" else violation.row.argument
                yield finding(node, violation.message, str(argument))
        names = [attribute.name for attribute in node.proto.attribute]
        known = SCHEMAS[node.op_type].attributes
        for name in dict.fromkeys(names):
            if name not in known:
                yield finding(node, f"{name!r} is not an attribute of {node.op_type}", name)
            elif names.count(name) > 1:
                yield finding(node, f"{name} is given {names.count(name)} times", name)
        for attribute in node.proto.attribute:
            if attribute.ref_attr_name and not node.scope.in_function():
                message = f"{attribute.name} refers to {attribute.ref_attr_name!r} of a function, and is in none"
                yield finding(node, message, attribute.name)
    yield from observed_violations(model, _ATTRIBUTE_ROWS)  # a function's attribute that a call leaves out


# --------------------------------------------------------------------------------------------------
# The error table

row_rule(
    "NSA006",
    "element types are the operator's",
    "input, weight and cache are of one type, float16 or bfloat16; lengths are int64, slots and tables int32.",
    [f"{name}_{what}" for name in ("input", "weight", "cache", "slot", "table", "seq") for what in ("dtype", "kind")],
    example=compress(dtype="float"),
    accepted=compress(dtype="bfloat16"),
    hint="put a Cast before the node, or convert the model to float16 or bfloat16 before the export",
)
row_rule(
    "NSA007",
    "every input has its rank",
    "Every input has the rank that the operator's documentation gives it.",
    ("input_rank", "weight_rank", "slot_rank", "table_rank", "cache_rank", "seq_rank"),
    example=compress(x="1, T, 4, 16"),
    accepted=_GOOD,
    hint="prefill takes the segments of a batch one after the other, [T, N, D], without a batch axis: Squeeze or "
    "Reshape before the node",
)
row_rule(
    "NSA008",
    "weight is [compress_block_size, N]",
    "weight is [compress_block_size, N] with the N of input.",
    ("weight_block", "weight_heads"),
    example=compress(w="31, 4"),
    accepted=_GOOD,
)
row_rule(
    "NSA009",
    f"D is a multiple of {spec.ALIGNMENT} and at most {spec.MAX_HEAD_DIM}",
    f"D is a multiple of {spec.ALIGNMENT} and at most {spec.MAX_HEAD_DIM}.",
    ("head_dim_multiple", "head_dim_max"),
    example=compress(x=f"T, 4, {spec.MAX_HEAD_DIM + spec.ALIGNMENT}", y=f"R, 4, {spec.MAX_HEAD_DIM + spec.ALIGNMENT}"),
    accepted=compress(x=f"T, 4, {spec.MAX_HEAD_DIM}", y=f"R, 4, {spec.MAX_HEAD_DIM}"),
    hint=f"Pad D with zeros to a multiple of {spec.ALIGNMENT} and Slice the result, or Split D in parts of at most "
    f"{spec.MAX_HEAD_DIM}: every channel is compressed on its own",
)


def _heads(n: int) -> str:
    return compress(x=f"T, {n}, 16", w=f"32, {n}", y=f"R, {n}, 16")


row_rule(
    "NSA010",
    "the number of heads is within bounds",
    f"N is within the operator's bounds: at most {spec.COMPRESS_LIMITS.max_heads} in prefill, at most "
    f"{spec.INFER_LIMITS.max_heads} in decode.",
    ("heads_min", "heads_max"),
    example=_heads(spec.COMPRESS_LIMITS.max_heads + 1),
    accepted=_heads(spec.COMPRESS_LIMITS.max_heads),
    hint="Split the heads among several nodes: every head is compressed on its own",
)
_LARGEST = spec.COMPRESS_LIMITS.max_block
row_rule(
    "NSA011",
    "block and stride are within bounds",
    f"compress_block_size and compress_stride are multiples of {spec.ALIGNMENT}; the block is at most {_LARGEST} in "
    f"prefill\nand at most {spec.INFER_LIMITS.max_block} in decode, the stride at most the block.",
    ("block_multiple", "block_range", "stride_multiple", "stride_range"),
    example=compress(w=f"{_LARGEST + 16}, 4", block=_LARGEST + 16),
    accepted=compress(w=f"{_LARGEST}, 4", block=_LARGEST),
)
row_rule(
    "NSA012",
    "pages have a legal size",
    f"page_block_size is {_PAGES} and input's second dim; without a block_table, the pages divide among the sequences.",
    ("page_size", "input_page", "pages_divide"),
    example=infer(x="12, 32, 4, 16", page=32),
    accepted=infer(x="12, 128, 4, 16", page=128),
    hint="Reshape the paged keys or values to pages of a legal size, and make the block_table for them",
)
row_rule(
    "NSA013",
    "cache is [slots, N, D]",
    "cache is [slots, N, D] with input's N and D.",
    ("cache_heads", "cache_dim"),
    example=infer(cache="9, 5, 16"),
    accepted=infer(cache="9, 4, 16"),
)
row_rule(
    "NSA014",
    "every sequence has its row",
    "slot_mapping, actual_seq_len and block_table have one row per sequence.",
    ("seq_count", "table_batch"),
    example=infer(table="2, 4"),
    accepted=infer(table="3, 4"),
)

# --------------------------------------------------------------------------------------------------
# Constants


row_rule(
    "NSA015",
    "constant lengths are what the operator takes",
    """NsaCompress takes prefix sums: positive, not decreasing, the last one equal to T. NsaCompressInfer takes
    lengths, each within what its pages hold. Giving one operator what the other takes is a common mistake.

    Constants are looked at, and what small nodes (Cast, Concat, Add, CumSum, Slice, ...) make of them.
    """,
    ("seq_empty", "seq_decreasing", "seq_positive", "seq_last", "seq_range", "seq_negative"),
    example=compress(x="100, 4, 16", seq=[40, 60]),
    accepted=compress(x="100, 4, 16", seq=[40, 100]),
)
_PAGES_USED = [0, -1, -1, -1, -1, -1, -1, -1, 3, -1, -1, -1]
row_rule(
    "NSA016",
    "constant slots and pages are in range",
    "The slots of the sequences that write are in range and differ, and so are the pages that are read.\n"
    "Rows of sequences that do not write may hold anything; -1 is common.",
    ("slot_range", "slot_duplicate", "table_range"),
    example=infer(seq=[32, 33, 48], slots=[1, -1, 9], pages=_PAGES_USED),
    accepted=infer(seq=[32, 33, 48], slots=[1, -1, 8], pages=_PAGES_USED),
    hint="nothing is clamped: correct the index, or enlarge the cache or the pages",
)


@general(
    "NSA017",
    "constants are readable",
    example=compress(x="T, 4, 16", seq=[40, 100]).replace("int64[2]", "int64[3]"),
    accepted=compress(x="T, 4, 16", seq=[40, 100]),
    hint="save the model again; its external data belongs into its folder",
)
def _constants(model: Analysis) -> Iterator[Finding]:
    """The data of a constant index input fits its shape; external data is in the model's folder and long enough."""
    for node in model.nodes:
        for argument, problem in node.unreadable.items():
            yield finding(node, f"{argument}: {problem}", argument)
