"""The rules: each a small function with a stable id, a severity and its documentation.

Limits and their words are `nsa_onnx.spec`'s (through `nsa_onnx.schema.violations`); a rule only says which of them
it reports. To add a rule, decorate a function with `rule`; ids are never reused or renumbered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from onnx import TypeProto

from .. import spec
from ..functions import standard_opset
from ..schema import SCHEMAS, dtype_name, output_type
from .model import Model, NsaNode, merged_type, text
from .report import Finding, Severity

Check = Callable[[Model], Iterator[Finding]]


@dataclass(frozen=True)
class Rule:
    """A rule of the checker. ``documentation`` is its function's docstring."""

    id: str
    title: str
    severity: Severity
    documentation: str
    check: Check


RULES: dict[str, Rule] = {}
"""All rules by id, in the order in which they report."""

# Which rule reports a row of the error table.
_RULE_OF_ROW: dict[str, str] = {}


def rule(rule_id: str, title: str, severity: Severity = Severity.ERROR) -> Callable[[Check], Check]:
    """Register a rule. Its findings get the id and severity from here."""

    def register(check: Check) -> Check:
        def stamped(model: Model) -> Iterator[Finding]:
            for finding in check(model):
                yield replace(finding, rule=rule_id, severity=severity, argument=text(finding.argument))

        RULES[rule_id] = Rule(rule_id, title, severity, check.__doc__ or "", stamped)
        return check

    return register


def _rows(rule_id: str, title: str, documentation: str, *rows: str) -> None:
    """Register a rule that reports rows of the error table, on every node they apply to."""

    def check(model: Model) -> Iterator[Finding]:
        for node in model.nodes:
            for violation in node.violations:
                if violation.row.id in rows:
                    yield _finding(node, violation.message, violation.row.argument)
        yield from _observed_violations(model, rows)

    check.__doc__ = documentation
    rule(rule_id, title)(check)
    _RULE_OF_ROW.update(dict.fromkeys(rows, rule_id))


def _observed_violations(model: Model, rows: tuple[str, ...]) -> Iterator[Finding]:
    """What only inference can know: nodes in functions with what a call gives them, computed constants."""
    seen = {(node.op_type, violation.message) for node in model.nodes for violation in node.violations}
    for name, op_type, violation in model.observed:
        if violation.row.id in rows and (op_type, violation.message) not in seen:
            seen.add((op_type, violation.message))
            # onnx names a node "node <op type>[<domain>] (<name>)", without the brackets if it has no name.
            same = [n for n in model.nodes if n.op_type == op_type and name.endswith(f"({n.proto.name})")]
            same = same or [n for n in model.nodes if n.op_type == op_type and not n.proto.name]
            if len(same) == 1:
                yield _finding(same[0], violation.message, violation.row.argument)
            else:
                yield Finding("", Severity.ERROR, violation.message, name, op_type, violation.row.argument)


def _finding(node: NsaNode, message: str, argument: str = "") -> Finding:
    return Finding("", Severity.ERROR, message, node.name, node.op_type, argument, node.scope.place)


def run(model: Model) -> tuple[Finding, ...]:
    """What all rules find, in their order."""
    return tuple(finding for entry in RULES.values() for finding in entry.check(model))


# --------------------------------------------------------------------------------------------------
# The model


@rule("NSA001", "a model has a graph")
def _graph(model: Model) -> Iterator[Finding]:
    """The file must hold a graph with nodes. An empty or truncated file often still parses as a model without one."""
    if not model.proto.HasField("graph"):
        yield Finding("", Severity.ERROR, "the model has no graph")
    elif not model.proto.graph.node:
        yield Finding("", Severity.ERROR, "the graph has no nodes")


@rule("NSA002", "the domain is imported")
def _import(model: Model) -> Iterator[Finding]:
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
        yield _finding(node, message, "opset_import")


@rule("NSA003", "the operator exists")
def _operator(model: Model) -> Iterator[Finding]:
    """Domain nsa_onnx holds NsaCompress and NsaCompressInfer, and nothing else."""
    for node in model.nodes:
        if node.facts is None:
            yield _finding(node, f"domain {spec.DOMAIN} has no operator {node.op_type!r}, only {', '.join(SCHEMAS)}")


@rule("NSA004", "inputs and outputs are all there")
def _counts(model: Model) -> Iterator[Finding]:
    """Every input that is not optional is connected, to a value that exists; there is one output and no surplus."""
    for node in model.nodes:
        if node.facts is None:
            continue
        for violation in node.violations:
            if violation.row.id == "input_missing":
                yield _finding(node, violation.message, str(violation.values[0]))
        formal = SCHEMAS[node.op_type].inputs
        if len(node.proto.input) > len(formal):
            yield _finding(node, f"takes at most {len(formal)} inputs, got {len(node.proto.input)}", "inputs")
        if len(node.proto.output) != 1 or not node.proto.output[0]:
            connected = sum(bool(name) for name in node.proto.output)
            yield _finding(node, f"must have 1 output, got {connected}", "outputs")
        for parameter, name in zip(formal, node.proto.input, strict=False):
            if name and not node.scope.knows(name):
                yield _finding(node, f"{parameter.name}: no value {name!r} in the graph", parameter.name)
    yield from _observed_violations(model, ("input_missing",))  # a function's input that a call leaves out


_RULE_OF_ROW["input_missing"] = "NSA004"


@rule("NSA005", "attributes are there, known and ints")
def _attributes(model: Model) -> Iterator[Finding]:
    """Every attribute of the schema is given once, as an int, and there is no other.

    onnxruntime gives an empty result, without a word, for a portable body whose attribute is missing.
    """
    for node in model.nodes:
        if node.facts is None:
            continue
        for violation in node.violations:
            if violation.row.id in _ATTRIBUTE_ROWS:
                argument = violation.values[0] if violation.row.id == "attribute_missing" else violation.row.argument
                yield _finding(node, violation.message, str(argument))
        names = [attribute.name for attribute in node.proto.attribute]
        known = SCHEMAS[node.op_type].attributes
        for name in dict.fromkeys(names):
            if name not in known:
                yield _finding(node, f"{name!r} is not an attribute of {node.op_type}", name)
            elif names.count(name) > 1:
                yield _finding(node, f"{name} is given {names.count(name)} times", name)
        for attribute in node.proto.attribute:
            if attribute.ref_attr_name and not node.scope.in_function():
                message = f"{attribute.name} refers to {attribute.ref_attr_name!r} of a function, and is in none"
                yield _finding(node, message, attribute.name)
    yield from _observed_violations(model, _ATTRIBUTE_ROWS)  # a function's attribute that a call leaves out


_ATTRIBUTE_ROWS = ("attribute_missing", "block_kind", "stride_kind", "page_kind")
_RULE_OF_ROW.update(dict.fromkeys(_ATTRIBUTE_ROWS, "NSA005"))

# --------------------------------------------------------------------------------------------------
# The error table

_rows(
    "NSA006",
    "element types",
    "input, weight and cache are of one type, float16 or bfloat16; lengths are int64, slots and tables int32.",
    *("input_dtype", "weight_dtype", "cache_dtype", "slot_dtype", "table_dtype", "seq_dtype"),
    *("input_kind", "weight_kind", "slot_kind", "table_kind", "cache_kind", "seq_kind"),
)
_rows(
    "NSA007",
    "ranks",
    "Every input has the rank that the operator's documentation gives it.",
    *("input_rank", "weight_rank", "slot_rank", "table_rank", "cache_rank", "seq_rank"),
)
_rows(
    "NSA008",
    "shape of weight",
    "weight is [compress_block_size, N] with the N of input.",
    *("weight_block", "weight_heads"),
)
_rows(
    "NSA009",
    "head dimension",
    f"D is a multiple of {spec.ALIGNMENT} and at most {spec.MAX_HEAD_DIM}.",
    *("head_dim_multiple", "head_dim_max"),
)
_rows(
    "NSA010",
    "number of heads",
    "N is within the operator's bounds; decode takes fewer heads than prefill.",
    *("heads_min", "heads_max"),
)
_rows(
    "NSA011",
    "block and stride",
    "compress_block_size and compress_stride are multiples of 16 within their bounds, and stride is at most block.",
    *("block_multiple", "block_range", "stride_multiple", "stride_range"),
)
_rows(
    "NSA012",
    "pages",
    "page_block_size is 64 or 128 and input's second dim; without a block_table, the pages divide among the sequences.",
    *("page_size", "input_page", "pages_divide"),
)
_rows("NSA013", "shape of cache", "cache is [slots, N, D] with input's N and D.", "cache_heads", "cache_dim")
_rows(
    "NSA014",
    "batch",
    "slot_mapping, actual_seq_len and block_table have one row per sequence.",
    *("seq_count", "table_batch"),
)
_rows(
    "NSA015",
    "constant lengths",
    "NsaCompress takes prefix sums: positive, not decreasing, the last one equal to T. NsaCompressInfer takes\n"
    "lengths, each within what its pages hold. Giving one operator what the other takes is a common mistake.",
    *("seq_empty", "seq_decreasing", "seq_positive", "seq_last", "seq_range", "seq_negative"),
)
_rows(
    "NSA016",
    "constant slots and pages",
    "The slots of the sequences that write are in range and differ, and so are the pages that are read.",
    *("slot_range", "slot_duplicate", "table_range"),
)


@rule("NSA017", "constants are readable")
def _constants(model: Model) -> Iterator[Finding]:
    """The data of a constant index input fits its shape; external data is in the model's folder and long enough."""
    for node in model.nodes:
        for argument, problem in node.unreadable.items():
            yield _finding(node, f"{argument}: {problem}", argument)


# --------------------------------------------------------------------------------------------------
# Shapes and bodies


@rule("NSA018", "declared types and shapes are the inferred ones")
def _shapes(model: Model) -> Iterator[Finding]:
    """What the model declares of a value agrees with what its inputs make of it; T' is computed anew.

    A runtime believes declared shapes when it plans memory; a wrong one fails there, or later.
    """
    ours = {node.proto.output[0]: node for node in model.nodes if node.proto.output and node.scope.place == "graph"}
    graph = model.proto.graph
    for value in (*graph.output, *graph.value_info):
        inferred = model.inferred.get(value.name)
        difference = _difference(value.type, inferred) if inferred is not None else ""
        if difference:
            node = ours.get(value.name)
            message = f"{value.name!r} {difference}"
            yield _finding(node, message, "output") if node else Finding("", Severity.ERROR, message)
    for node in model.nodes:
        if node.scope.place != "graph" and node.proto.output:
            declared = node.scope.declared.get(node.proto.output[0])
            difference = _difference(declared, _own_output(node)) if declared is not None else ""
            if difference:
                yield _finding(node, f"{node.proto.output[0]!r} {difference}", "output")


def _own_output(node: NsaNode) -> TypeProto:
    if node.facts is None or node.violations:
        return TypeProto()
    types: dict[str, TypeProto] = {}
    for formal, name in zip(SCHEMAS[node.op_type].inputs, node.proto.input, strict=False):
        known = node.scope.type_of(name)
        if name and known is not None:
            types[formal.name] = merged_type(known, None)
    return output_type(node.facts, types)


def _difference(declared: TypeProto, inferred: TypeProto) -> str:
    """In which way two types cannot both hold; empty if they can."""
    if not declared.HasField("tensor_type") or not inferred.HasField("tensor_type"):
        return ""
    mine, other = declared.tensor_type, inferred.tensor_type
    types = dtype_name(mine.elem_type), dtype_name(other.elem_type)
    if None not in types and types[0] != types[1]:
        return f"is declared as {types[0]}, inferred is {types[1]}"
    if not mine.HasField("shape") or not other.HasField("shape"):
        return ""
    if len(mine.shape.dim) != len(other.shape.dim):
        return f"is declared with rank {len(mine.shape.dim)}, inferred with rank {len(other.shape.dim)}"
    for axis, (dim, other_dim) in enumerate(zip(mine.shape.dim, other.shape.dim, strict=True)):
        both = dim.HasField("dim_value") and other_dim.HasField("dim_value")
        if both and dim.dim_value != other_dim.dim_value:
            return f"is declared with dim {axis} = {dim.dim_value}, inferred is {other_dim.dim_value}"
    return ""


@rule("NSA019", "dims are not negative")
def _dims(model: Model) -> Iterator[Finding]:
    """A dim that is not known has a name or nothing. A negative number is no shape, though some exporters write it."""
    graph = model.proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value < 0:
                yield Finding("", Severity.ERROR, f"{value.name!r} is declared with dim {axis} = {dim.dim_value}")


@rule("NSA020", "a portable body has the model's opset")
def _body(model: Model) -> Iterator[Finding]:
    """The portable body of an operator imports the same version of the standard operators as the model.

    Runtimes put the body in the node's place, where the model's version decides what its operators mean.
    """
    wanted = standard_opset(model.proto.opset_import)
    for function in model.proto.functions:
        got = standard_opset(function.opset_import)
        if function.domain == spec.DOMAIN and function.name in SCHEMAS and got != wanted:
            message = f"the portable body of {function.name} imports opset {got}, the model imports {wanted}"
            yield Finding("", Severity.ERROR, message, place=f"function {function.domain}.{function.name}")


@rule("NSA021", "shapes can be inferred", Severity.WARNING)
def _inference(model: Model) -> Iterator[Finding]:
    """onnx can infer the model's shapes. Where it cannot, what is checked is what the model declares."""
    explained = any(True for _ in _import(model))
    if model.inference_error and model.proto.graph.node and not explained:
        yield Finding("", Severity.WARNING, f"shapes could not be inferred: {model.inference_error}")
