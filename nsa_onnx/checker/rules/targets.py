"""NSA030 to NSA041: what the contract allows and an Ascend target does not. See docs/ascend.md, also for sources.

Targets: ``cann``, onnxruntime's CANN provider with our kernels; ``cann-aclnn``, the same with the vendor's operators;
``atc``, CANN's converter with our parser plugin, and so the vendor's operators, called directly. The vendor's limits
are `nsa_onnx.spec`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from onnx import NodeProto

from ... import spec
from ...graph.scopes import Scope
from ...graph.tensors import tensor_facts
from ...graph.walk import is_standard, node_name, subgraphs, text
from ..model import Model, NsaNode
from ..report import Finding, Severity
from .examples import compress, infer, model
from .registry import COMPRESS, RULE_OF_ROW, connected, finding, note, of_type, rule, sound

_VENDOR = ("cann-aclnn", "atc")
_PREPARE = "nsa-onnx prepare-atc does it"


_ELSEWHERE = "serve the model with onnxruntime-cann and our ascend_kernels, which have no such limit"


def batch(node: NsaNode) -> spec.Dim:
    """How many sequences a decode node has, from whichever input tells."""
    assert node.facts is not None
    names = ("actual_seq_len", "slot_mapping", "block_table")
    dims = [node.facts.tensor(name).dim(0) for name in names]
    return next((dim for dim in dims if dim is not None), None)


def vendor_violations(node: NsaNode, *, direct: bool) -> spec.Violations:
    """The rows of `spec.VENDOR_ROWS` that a node of ours breaks.

    Args:
        direct: it becomes a call of the vendor's operator as it stands (target ``atc``), which nothing works around.
    """
    facts = node.facts
    assert facts is not None
    tokens, block = facts.tensor("input"), facts.integer("compress_block_size")
    if node.op_type == COMPRESS:
        yield from spec.vendor_compress_violations(tokens.dims(3))
        if direct:
            constant, most = facts.constants.get("actual_seq_len"), tokens.dim(0)
            ends = None if constant is None else constant.tolist()
            if ends is None and most is not None and block is not None and most < block:
                ends = [most]  # however they are cut, no segment is longer
            yield from spec.direct_compress_violations(ends, block, facts.integer("compress_stride"))
        return
    yield from spec.vendor_infer_violations(tokens.dims(4), facts.tensor("cache").dims(3), block)
    if direct:
        table = connected(node, "block_table")
        yield from spec.direct_infer_violations(batch(node), table, tokens.dim(0))


def _vendor_rule(
    rule_id: str,
    title: str,
    documentation: str,
    rows: Sequence[str],
    *,
    example: str,
    accepted: str,
    hint: str,
    targets: tuple[str, ...] = _VENDOR,
) -> None:
    """Register a rule that reports rows of the vendor's limits."""

    def check(model: Model) -> Iterator[Finding]:
        for node in sound(node for node in model.nodes if node.facts is not None):
            for violation in vendor_violations(node, direct=model.target == "atc"):
                if violation.row.id in rows:
                    yield finding(node, violation.message, violation.row.argument)

    check.__doc__ = documentation
    rule(rule_id, title, example=example, accepted=accepted, hint=hint, targets=targets)(check)
    RULE_OF_ROW.update(dict.fromkeys(rows, rule_id))


def _block(block: int) -> str:
    return infer(w=f"{block}, 4", block=block)


_vendor_rule(
    "NSA030",
    f"the vendor's decode: block <= {spec.VENDOR_MAX_DECODE_BLOCK}",
    f"The vendor's decode operator takes windows of at most {spec.VENDOR_MAX_DECODE_BLOCK} tokens.",
    ("vendor_block",),
    example=_block(spec.VENDOR_MAX_DECODE_BLOCK + spec.ALIGNMENT),
    accepted=_block(spec.VENDOR_MAX_DECODE_BLOCK),
    hint=f"use a shorter window, or {_ELSEWHERE}",
)


def _heads(n: int) -> str:
    return infer(x=f"12, 64, {n}, 16", w=f"32, {n}", cache=f"9, {n}, 16")


_vendor_rule(
    "NSA031",
    f"the vendor's decode: an even number of heads above {spec.VENDOR_MAX_ODD_HEADS}",
    f"Above {spec.VENDOR_MAX_ODD_HEADS} heads, the vendor's decode operator takes even numbers of them only.",
    ("vendor_odd_heads",),
    example=_heads(spec.VENDOR_MAX_ODD_HEADS + 1),
    accepted=_heads(spec.VENDOR_MAX_ODD_HEADS + 2),
    hint=f"pad to an even number of heads, or {_ELSEWHERE}",
)


_vendor_rule(
    "NSA032",
    "the vendor's decode: a block_table",
    "The vendor's decode operator needs a block_table. onnxruntime's backend makes one; a converted graph cannot.",
    ("vendor_table",),
    example=infer(table=None),
    accepted=infer(),
    hint=_PREPARE,
    targets=("atc",),
)
_vendor_rule(
    "NSA033",
    f"the vendor's decode: 1 to {spec.VENDOR_MAX_BATCH} sequences",
    f"A call of the vendor's decode operator takes 1 to {spec.VENDOR_MAX_BATCH} sequences and at least one page.\n"
    "onnxruntime's backend makes several calls; a converted graph has one.",
    ("vendor_batch_min", "vendor_batch_max", "vendor_pages_min"),
    example=infer(batch=f"{spec.VENDOR_MAX_BATCH + 1}", table=f"{spec.VENDOR_MAX_BATCH + 1}, 4"),
    accepted=infer(batch=f"{spec.VENDOR_MAX_BATCH}", table=f"{spec.VENDOR_MAX_BATCH}, 4"),
    hint=f"split the batch among several nodes, or {_ELSEWHERE}",
    targets=("atc",),
)
_MOST_HEADS, _MOST_DIM = spec.COMPRESS_LIMITS.max_heads, spec.MAX_HEAD_DIM
_MOST_ROWS = spec.VENDOR_MAX_ELEMENTS // (_MOST_HEADS * _MOST_DIM)


def _tokens(count: int) -> str:
    row = f"{_MOST_HEADS}, {_MOST_DIM}"
    return compress(x=f"{count}, {row}", w=f"32, {_MOST_HEADS}", y=f"R, {row}")


_vendor_rule(
    "NSA034",
    "the vendor's operators: elements counted in 32 bits",
    "The vendor's operators count elements in 32 bits, in the input of prefill and in the cache of decode.",
    ("vendor_elements", "vendor_cache_elements"),
    example=_tokens(_MOST_ROWS + 1),
    accepted=_tokens(_MOST_ROWS),
    hint=f"split the batch among several nodes, or the cache among several inputs, or {_ELSEWHERE}",
)
_vendor_rule(
    "NSA036",
    "the vendor's prefill: T' is not 0",
    "The vendor's prefill operator reads beyond an array on the host where no segment has a window, T' = 0.\n"
    "onnxruntime's backend then makes no call; a converted graph does.",
    ("vendor_no_rows",),
    example=compress(x="31, 4, 16", y="0, 4, 16", seq=[31]),
    accepted=compress(x="32, 4, 16", y="1, 4, 16", seq=[32]),
    hint="leave the node out, its result is empty",
    targets=("atc",),
)


@rule(
    "NSA035",
    "the vendor's prefill: on Atlas A2 products",
    severity=Severity.WARNING,
    example=compress(),
    accepted=infer(),
    hint="know the device: on other products use our ascend_kernels (target cann), or the CPU",
    targets=_VENDOR,
)
def _product(model: Model) -> Iterator[Finding]:
    """The vendor's prefill operator is documented for Atlas A2 only, until CANN of mid-2026 for its training products.

    Of Atlas A3 the vendor's documents say both.

    No model can show where it will run; the finding says what to see to. The table of products is in docs/ascend.md.
    """
    nodes = list(of_type(model, COMPRESS))
    if nodes:
        more = f" (and {len(nodes) - 1} more)" if len(nodes) > 1 else ""
        products = "Atlas A2 only, before CANN of mid-2026 for training products"
        yield finding(nodes[0], f"the vendor's operator{more} is documented for {products}")


# --------------------------------------------------------------------------------------------------
# The provider

_BROADCASTING = ("Add", "Sub", "Mul", "Div")


def _broadcast(full: bool) -> str:
    a = "2, 3" if full else "2, 1"
    return model([f"float[{a}] a", "float[1, 3] b"], ["float[2, 3] y"], ["y = Sub (a, b)"], imports="")


@rule(
    "NSA038",
    "the CANN provider: no node broadcasts both inputs",
    example=_broadcast(full=False),
    accepted=_broadcast(full=True),
    hint="give one side its full shape first, with an Expand",
    targets=("cann", "cann-aclnn"),
)
def _both_broadcast(model: Model) -> Iterator[Finding]:
    """Add, Sub, Mul and Div of onnxruntime's CANN provider (1.24.4) compute a wrong result, silently, where both
    inputs are broadcast, as in [T, 1] - [1, N]: both operands are put into one piece of memory.

    Looked at where both shapes are known; a named dim is taken to differ from 1.
    """
    for scope in model.scopes:
        for index, node in enumerate(scope.nodes):
            if node.op_type not in _BROADCASTING or not is_standard(node) or len(node.input) != 2:
                continue
            first, second = (tensor_facts(scope.type_of(name)).shape for name in node.input)
            if first is not None and second is not None and _grows(first, second) and _grows(second, first):
                message = f"broadcasts both of its inputs, {_shape(first)} and {_shape(second)}"
                yield _of_node(scope, index, node, message)


def _grows(shape: spec.Shape, other: spec.Shape) -> bool:
    """Whether a shape is broadcast along some axis of the other: it is 1 or missing there, and the other is not 1."""
    padded = (*([1] * (len(other) - len(shape))), *shape)[-len(other) :] if other else ()
    return any(mine == 1 and dim != 1 for mine, dim in zip(padded, other, strict=True))


def _shape(shape: spec.Shape) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"


def _of_node(scope: Scope, index: int, node: NodeProto, message: str) -> Finding:
    return note(message, node=node_name(node, index), op_type=text(node.op_type), place=scope.place)


# --------------------------------------------------------------------------------------------------
# The converter


def _after(domain: str) -> str:
    return compress(after=[f"z = {domain}Neg (y)"]).replace('["" :', '["ai.onnx" :' if domain else '["" :')


@rule(
    "NSA037",
    "ATC: every node has a domain",
    example=_after(""),
    accepted=_after("ai.onnx."),
    hint=f"write ai.onnx into the standard nodes' domain: {_PREPARE}",
    targets=("atc",),
)
def _domains(model: Model) -> Iterator[Finding]:
    """ATC rejects nodes without a domain in a model that imports several domains, E16005: every model with our nodes.

    A Constant is taken either way.
    """
    imported = {entry.domain or "ai.onnx" for entry in model.proto.opset_import}
    if len(imported) < 2:
        return
    without = [
        (scope, index, node)
        for scope in model.scopes
        if not scope.in_function()
        for index, node in enumerate(scope.nodes)
        if not node.domain and node.op_type != "Constant"
    ]
    if without:
        message = f"has no domain in a model that imports {len(imported)} (E16005)"
        more = f"; {len(without) - 1} more nodes like it" if len(without) > 1 else ""
        yield _of_node(*without[0], message + more)


_FUNCTION = '<domain: "f", opset_import: ["" : 18]>\nF (a) => (b)\n{\n    b = Neg (a)\n}\n'


@rule(
    "NSA039",
    "ATC: no local functions",
    example=compress() + _FUNCTION,
    accepted=compress(),
    hint=f"inline them, and drop the portable bodies of our operators: {_PREPARE}",
    targets=("atc",),
)
def _functions(model: Model) -> Iterator[Finding]:
    """ATC's parser does not read model-local functions. Our operators need no body there, the plugin knows them."""
    if model.proto.functions:
        names = [f"{text(function.domain)}.{text(function.name)}" for function in model.proto.functions[:8]]
        more = ", ..." if len(model.proto.functions) > len(names) else ""
        yield note(f"the model holds local functions: {', '.join(names)}{more}")


def _inner(loop: bool) -> str:
    if loop:
        body = "body = g (int64 i, bool c) => (bool d, float16[2] r) { d = Identity (c) r = Neg (x) }"
        node = f'y = Loop (trips, "") <{body}>'
        return model(["float16[2] x", "int64 trips"], ["float16[trips, 2] y"], [node], imports="")
    branch = "{}_branch = g{} () => (float16[2] {}) {{ {} = Neg (x) }}"
    branches = ",\n      ".join(branch.format(kind, kind, kind, kind) for kind in ("then", "else"))
    return model(["float16[2] x", "bool go"], ["float16[2] y"], [f"y = If (go) <{branches}>"], imports="")


@rule(
    "NSA040",
    "ATC: no subgraphs but the branches of If",
    example=_inner(loop=True),
    accepted=_inner(loop=False),
    hint="unroll it, or serve the model with onnxruntime-cann",
    targets=("atc",),
)
def _subgraphs(model: Model) -> Iterator[Finding]:
    """Of the operators with subgraphs (Loop, Scan, ...), ATC's parser reads If only."""
    for scope in model.scopes:
        for index, node in enumerate(scope.nodes):
            if not scope.in_function() and node.op_type != "If" and subgraphs(node):
                yield _of_node(scope, index, node, "holds a graph, which ATC's parser does not read")


def _two(second: str) -> str:
    return model(["float16[2] x"], ["float16[2] y"], ["[a] t = Neg (x)", f"[{second}] y = Neg (t)"], imports="")


@rule(
    "NSA041",
    "ATC: nodes have names of their own",
    example=_two("a"),
    accepted=_two("b"),
    hint=_PREPARE,
    targets=("atc",),
)
def _names(model: Model) -> Iterator[Finding]:
    """In one graph, ATC refuses two nodes of one name, and a node with the name of an input (E19009)."""
    for scope in model.scopes:
        if scope.in_function():
            continue
        counts = Counter(text(node.name) for node in scope.nodes if node.name)
        counts.update(text(name) for name in scope.inputs)
        for index, node in enumerate(scope.nodes):
            count = counts.pop(text(node.name), 0)
            if count > 1:
                yield _of_node(scope, index, node, f"{count} nodes or inputs have this name (E19009)")
