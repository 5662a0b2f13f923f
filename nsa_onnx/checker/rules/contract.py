"""Rules NSA001 to NSA017 and NSA102: the model, its NSA nodes' inputs and attributes, every limit of the operators.

The limits, their messages and which rule reports a row are in `nsa_onnx.operators`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...analysis import Analysis
from ...operators import OPERATORS
from ...operators.attention import LIMITS as ATTENTION
from ...operators.base import Lengths
from ...operators.contract import DOMAIN, OPSET_VERSION, listed, plural
from ...operators.model_text import model
from ...operators.windows import ALIGNMENT, MAX_HEAD_DIM, WindowLimits
from ...rulebook.finding import Finding
from ...rulebook.rule import finding, note, ours, taking
from ...targets import TARGETS
from ...targets.preparing import ELSEWHERE
from .registry import broken_rows, general, row_rule

_EXPORT_AGAIN = "export again with nsa_onnx.exporters.export, which writes complete nodes"


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
    hint=f'add opset_import {{domain: "{DOMAIN}", version: {OPSET_VERSION}}} to the model or function',
)
def _import(model: Analysis) -> Iterator[Finding]:
    """A model or function that uses our nodes imports version 1 of domain nsa_onnx.

    Runtimes refuse a domain that is not imported, and a version they do not know may mean something else.
    """
    reported: set[int] = set()
    for node in model.nodes:
        version = node.scope.imports.get(DOMAIN)
        if version == OPSET_VERSION or id(node.scope.imports) in reported:
            continue
        reported.add(id(node.scope.imports))
        got = "it is not imported" if version is None else f"got {version}"
        message = f"opset import of domain {DOMAIN} must be version {OPSET_VERSION}, {got}"
        yield finding(node, message, "opset_import")


@general(
    "NSA003",
    "the operator exists",
    documentation=f"Domain nsa_onnx holds {listed(list(OPERATORS))}, and nothing else. What a function of the model "
    "computes,\nNSA043 looks at.",
    hint=f"correct its name, or move an operator of your own to another domain than {DOMAIN}",
)
def _operator(model: Analysis) -> Iterator[Finding]:
    functions = model.outline.bodies()
    for node in model.nodes:
        if node.facts is None and (node.proto.domain, node.proto.op_type) not in functions:
            yield finding(node, f"domain {DOMAIN} has no operator {node.op_type!r}, only {', '.join(OPERATORS)}")


@general(
    "NSA102",
    "the target has the operator",
    hint=f"{ELSEWHERE}, where all operators run, or on another target that has it",
)
def _not_there(model: Analysis) -> Iterator[Finding]:
    """The target has each of our operators that the model uses.

    On Ascend, an operator is a kernel of ours (cann) or of the vendor's (cann-aclnn, atc). An operator may have none.
    """
    for node, operator, _ in ours(model.nodes):
        if problem := TARGETS[model.target].lacks(operator.op_type):
            yield finding(node, problem)


@general(
    "NSA004",
    "inputs and outputs are all there",
    hint=_EXPORT_AGAIN,
)
def _counts(model: Analysis) -> Iterator[Finding]:
    """Every input that is not optional is connected, to a value that exists; all outputs are there, and no more."""
    yield from broken_rows(model, "NSA004")
    for node, operator, _ in ours(model.nodes):
        formal, given = operator.inputs, node.proto.output
        if len(node.proto.input) > len(formal):
            yield finding(node, f"takes at most {len(formal)} inputs, got {len(node.proto.input)}", "inputs")
        if len(given) != len(operator.outputs) or not all(given):
            there, wanted = sum(bool(name) for name in given), plural(len(operator.outputs), "output")
            yield finding(node, f"must have {wanted}, got {there}", "outputs")
        for one, name in zip(formal, node.proto.input, strict=False):
            if name and not node.scope.knows(name):
                yield finding(node, f"{one.name}: no value {name!r} in the graph", one.name)


@general("NSA005", "attributes are there, known and of their kind", hint=_EXPORT_AGAIN)
def _attributes(model: Analysis) -> Iterator[Finding]:
    """Every attribute of the schema is given once, of its kind (int or float), and there is no other.

    onnxruntime gives an empty result, without a word, for a portable body whose attribute is missing.
    """
    yield from broken_rows(model, "NSA005")
    for node, operator, _ in ours(model.nodes):
        names = [attribute.name for attribute in node.proto.attribute]
        for name in dict.fromkeys(names):
            if name not in operator.attribute_names:
                yield finding(node, f"{name!r} is not an attribute of {node.op_type}", name)
            elif names.count(name) > 1:
                yield finding(node, f"{name} is given {names.count(name)} times", name)
        for attribute in node.proto.attribute:
            if attribute.ref_attr_name and not node.scope.in_function():
                message = f"{attribute.name} refers to {attribute.ref_attr_name!r} of a function, and is in none"
                yield finding(node, message, attribute.name)


# --------------------------------------------------------------------------------------------------
# The error table

row_rule(
    "NSA006",
    "element types are the operator's",
    "All floating-point inputs of a node are of one type, float16 or bfloat16; lengths are int64; slots, tables and\n"
    "selected blocks are int32; masks are bool.",
    hint="put a Cast before the node, or convert the model to float16 or bfloat16 before the export",
)
row_rule(
    "NSA007",
    "every input has its rank",
    "Every input has the rank that the operator's documentation gives it.",
    hint="prefill takes the segments of a batch one after the other, [T, N, D], without a batch axis: Squeeze or "
    "Reshape before the node",
)
row_rule(
    "NSA008",
    "weight is [compress_block_size, N]",
    "weight is [compress_block_size, N] with the N of input.",
)
row_rule(
    "NSA009",
    "head dims are within bounds",
    f"D is a multiple of {ALIGNMENT}, at most {MAX_HEAD_DIM} in a compression and at most {ATTENTION.max_head_dim} in "
    "an attention stage; there,\nkey has the D of query, and Dv, that of value, is a multiple of "
    f"{ALIGNMENT} as well and at most D.",
    hint="Pad with zeros to a size that the target takes and Slice the result, or serve it on the CPU; a compression "
    f"may also be Split in parts of at most {MAX_HEAD_DIM}: every channel is compressed on its own",
)


_KINDS = {
    **dict.fromkeys(taking(Lengths.PREFIX_SUMS), "prefill"),
    **dict.fromkeys(taking(Lengths.LENGTHS), "decode"),
}


def _at_most(limit: str) -> list[str]:
    """A bound on windows, where operators have them."""
    bounds = {op_type: operator.contract.limits for op_type, operator in OPERATORS.items()}
    texts = (
        f"at most {getattr(limits, limit)} in {_KINDS[op_type]}"
        for op_type, limits in bounds.items()
        if isinstance(limits, WindowLimits)
    )
    return list(dict.fromkeys(texts))


row_rule(
    "NSA010",
    "the number of heads is within bounds",
    f"N of a compression is within its bounds: {', '.join(_at_most('max_heads'))}. In an attention stage head_num is\n"
    f"that of query, and a multiple of N2, the heads of key and value: at most {ATTENTION.max_group} times as many.",
    hint="Split the heads among several nodes: every head of keys and values is computed on its own",
)
row_rule(
    "NSA011",
    "block, stride and count are within bounds",
    f"compress_block_size and compress_stride are multiples of {ALIGNMENT}; the block of a compression is "
    + "\nand ".join(_at_most("max_block"))
    + ", the stride at most the block.\n\n"
    f"In an attention stage select_block_size is a multiple of {ALIGNMENT} and of compress_stride, at least "
    f"compress_block_size and\nat most {ATTENTION.max_select_block}; select_block_count is at most "
    f"{ATTENTION.max_select_count}.",
)
_PAGES = next(
    " or ".join(map(str, sizes))
    for operator in OPERATORS.values()
    if isinstance(sizes := operator.contract.constants.get("PAGE_BLOCK_SIZES"), tuple)
)
row_rule(
    "NSA012",
    "pages have a legal size",
    f"page_block_size is {_PAGES} in a compression, a multiple of {ALIGNMENT} up to {ATTENTION.max_page} in an "
    "attention stage, and what\nthe pages' second dim says; without a block_table, the pages divide among the "
    "sequences.",
    hint="Reshape the paged keys or values to pages of a legal size, and make the block_table for them",
)
row_rule(
    "NSA013",
    "cache is [slots, N, D]",
    "cache is [slots, N, D] with input's N and D.",
)
row_rule(
    "NSA014",
    "every sequence and every token has its row",
    "What goes by sequences (lengths, slots, tables) has as many rows as there are sequences, and what goes by tokens\n"
    "(values beside keys, selected blocks beside queries) as many as there are tokens.\n\n"
    "Masks reach the longest sequence.",
)

# --------------------------------------------------------------------------------------------------
# Constants


row_rule(
    "NSA015",
    "constant lengths are what the operator takes",
    f"{listed(taking(Lengths.PREFIX_SUMS), 'take')} prefix sums: not decreasing, the last one equal to the tokens. "
    f"{listed(taking(Lengths.LENGTHS), 'take')}\n"
    "lengths, each within what its pages hold. Giving one operator what the other takes is a common mistake.\n\n"
    "Constants are looked at, and what small nodes (Cast, Concat, Add, CumSum, Slice, ...) make of them.",
)
row_rule(
    "NSA016",
    "constant slots and pages are in range",
    "The slots of the sequences that write are in range and differ; pages that are read and selected blocks are in\n"
    "range.\n"
    "Rows of sequences that do not write may hold anything; -1 is common.",
    hint="nothing is clamped: correct the index, or enlarge the cache or the pages",
)


@general(
    "NSA017",
    "constants are readable",
    hint="save the model again; its external data belongs into its folder",
)
def _constants(model: Analysis) -> Iterator[Finding]:
    """The data of a constant index input fits its shape; external data is in the model's folder and long enough."""
    for node in model.nodes:
        for argument, problem in node.unreadable.items():
            yield finding(node, f"{argument}: {problem}", argument)
