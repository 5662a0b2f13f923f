"""NSA022, NSA023, NSA027, NSA029: what each node allows, and what the model cannot mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx import NodeProto

from ... import spec
from ...analysis import Analysis, NsaNode
from ...operators.schema import INPUT_NAMES, output_rows
from ...rulebook.examples import compress, infer, integers, model
from ...rulebook.finding import Finding, Severity
from ...rulebook.rule import COMPRESS, INFER, connected, finding, note, of_type, sound
from .registry import general

_SEQ = "actual_seq_len"
# Constants that are compared: as many elements.
_SEEN = 4096


@general(
    "NSA022",
    "some window is complete",
    severity=Severity.WARNING,
    example=compress(x="31, 4, 16", y="0, 4, 16", seq=[31]),
    accepted=compress(x="32, 4, 16", y="1, 4, 16", seq=[32]),
    hint="pad the segments, or leave the node out for such short ones; check the block's size",
)
def _no_rows(model: Analysis) -> Iterator[Finding]:
    """T' of NsaCompress is not 0: some segment is at least as long as a window.

    An empty result is legal, and [0, N, D] is what it then is, but as a constant it is rarely meant.
    """
    for node in sound(of_type(model, COMPRESS)):
        assert node.facts is not None
        tokens, block = node.facts.tensor("input").dim(0), node.facts.integer("compress_block_size")
        if output_rows(node.facts) == 0:
            yield finding(node, f"T' = 0: no segment has compress_block_size = {block} tokens", _SEQ)
        elif tokens is not None and block is not None and tokens < block:
            yield finding(node, f"T' = 0: T = {tokens} is less than compress_block_size = {block}", "input")


# --------------------------------------------------------------------------------------------------
# Lengths and prefix sums

_BOTH = model(
    [
        *("float16[100, 4, 16] x", "float16[32, 4] w", "float16[12, 64, 4, 16] pages", "int32[2] slots"),
        *("float16[9, 4, 16] cache", "int32[2, 4] table"),
    ],
    ["float16[3, 4, 16] y", "float16[9, 4, 16] cache_out"],
    [
        f"[prefill] y = {spec.DOMAIN}.{COMPRESS} <compress_block_size = 32, compress_stride = 16> (x, w, ends)",
        f"[decode] cache_out = {spec.DOMAIN}.{INFER}\n"
        "      <compress_block_size = 32, compress_stride = 16, page_block_size = 64>\n"
        "      (pages, w, slots, cache, ends, table)",
    ],
    [integers("ends", [40, 100])],
)


@general(
    "NSA023",
    "lengths and prefix sums are not mixed up",
    severity=Severity.WARNING,
    example=_BOTH,
    accepted=_BOTH.replace("cache, ends", "cache, lengths").replace("100}>", "100}, int64[2] lengths = {40, 60}>"),
    hint=f"{COMPRESS} takes prefix sums of the lengths, {INFER} the lengths themselves",
)
def _mixed(model: Analysis) -> Iterator[Finding]:
    """NsaCompress gets prefix sums and NsaCompressInfer gets lengths, as far as the model shows it.

    It shows otherwise where one value (or equal constants) of several sequences feeds both operators, where CumSum
    makes the lengths of NsaCompressInfer or takes what NsaCompress gets, and where constant lengths would need more
    pages than there are while their differences would not.
    """
    prefix_sums = {key: node for node in of_type(model, COMPRESS) for key in _identities(node)}
    for node in of_type(model, INFER):
        other = next((prefix_sums[key] for key in _identities(node) if key in prefix_sums), None)
        if other is not None and _several(node):
            message = f"{_SEQ} is also that of {COMPRESS} {other.name!r}, which takes it for prefix sums"
            yield finding(node, message, _SEQ)
        elif (maker := _maker(node)) is not None and maker.op_type == "CumSum":
            yield finding(node, f"{_SEQ} comes from CumSum, so it holds prefix sums and not lengths", _SEQ)
        else:
            yield from _too_many_pages(node)
    summed = _summed(model) if any(True for _ in of_type(model, COMPRESS)) else set()
    for node in of_type(model, COMPRESS):
        if _several(node) and any(key in summed for key in _identities(node)):
            yield finding(node, f"{_SEQ} is also summed up by CumSum, so it holds lengths and not prefix sums", _SEQ)


def _identities(node: NsaNode) -> Iterator[object]:
    """By what the lengths of two nodes are recognized as the same: the value, and the numbers if there are several."""
    assert node.facts is not None
    if not connected(node, _SEQ):
        return
    name = _input(node, _SEQ)
    yield id(node.scope.home(name)), name
    constant = node.facts.constants.get(_SEQ)
    if constant is not None and 1 < constant.size <= _SEEN:
        yield tuple(constant.ravel().tolist())


def _several(node: NsaNode) -> bool:
    """Whether there may be more than one sequence: the lengths of a single one are its prefix sums."""
    assert node.facts is not None
    return node.facts.tensor(_SEQ).dim(0) not in (0, 1)


def _input(node: NsaNode, formal: str) -> str:
    name: str = node.proto.input[INPUT_NAMES[node.op_type].index(formal)]
    return name


def _maker(node: NsaNode) -> NodeProto | None:
    """The node that computes the lengths, seen through those that only change type or shape."""
    if not connected(node, _SEQ):
        return None
    name, scope = _input(node, _SEQ), node.scope
    for _ in range(_SEEN):  # a cycle ends here
        home = scope.home(name)
        made = None if home is None else home.producer(name)
        if home is None or made is None or made.op_type not in ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"):
            return made
        name, scope = made.input[0] if made.input else "", home
    return None


def _summed(model: Analysis) -> set[object]:
    nodes = ((scope, node) for scope in model.scopes for node in scope.nodes if node.op_type == "CumSum" and node.input)
    return {(id(scope.home(node.input[0])), node.input[0]) for scope, node in nodes}


def _too_many_pages(node: NsaNode) -> Iterator[Finding]:
    assert node.facts is not None
    constant, page = node.facts.constants.get(_SEQ), node.facts.integer("page_block_size")
    block_num = node.facts.tensor("input").dim(0)
    if constant is None or constant.ndim != 1 or constant.size < 2 or not page or page < 0 or block_num is None:
        return
    values = constant.tolist()
    if node.violations or values != sorted(values):
        return
    differences = [end - start for start, end in zip([0, *values[:-1]], values, strict=True)]
    needed, if_differences = _pages(values, page), _pages(differences, page)
    if needed > block_num >= if_differences:
        message = f"{_SEQ} needs {needed} pages of {page} tokens and input has {block_num}; as prefix sums, it would "
        yield finding(node, f"{message}stand for lengths that need {if_differences}", _SEQ)


def _pages(lengths: Sequence[int], page: int) -> int:
    return sum(-(-length // page) for length in lengths)


# --------------------------------------------------------------------------------------------------
# The rest


@general(
    "NSA027",
    "who imports the domain uses it",
    severity=Severity.WARNING,
    example=model(["float16[2] x"], ["float16[2] y"], ["y = Neg (x)"]),
    accepted=model(["float16[2] x"], ["float16[2] y"], ["y = Neg (x)"], imports=""),
    hint="export with nsa_onnx.exporters.export, which keeps the updates of caches that the model does not return; if "
    "a tool has put the portable bodies in the nodes' places, nsa-onnx fuse takes that back",
)
def _unused(model: Analysis) -> Iterator[Finding]:
    """A model that imports domain nsa_onnx has a node of it.

    Exporters drop what no output depends on: a decode step whose cache the model updates and does not return is gone
    from the file, without a word.
    """
    imported = any(entry.domain == spec.DOMAIN for entry in model.proto.opset_import)
    if imported and not model.nodes and model.proto.graph.node:
        yield note(f"domain {spec.DOMAIN} is imported, and no node is of it")


_INDICES = [0, 1, 2, 3] + [-1] * 8


@general(
    "NSA029",
    "constant slots and pages can be used",
    severity=Severity.WARNING,
    example=infer(slots=[1, -1, 9]),
    accepted=infer(slots=[1, -1, 8], pages=_INDICES),
    hint="mark what is not used with -1",
)
def _indices(model: Analysis) -> Iterator[Finding]:
    """Constant slots are in range and differ, constant pages are in range, where lengths are not known before a run.

    Such an index is an error in the step in which its sequence writes, and legal in all others. Negative numbers are
    taken for padding. With constant lengths, NSA016 says what is wrong for certain.
    """
    for node in sound(of_type(model, INFER)):
        assert node.facts is not None
        if _SEQ in node.facts.constants:
            continue
        for name, bound in (
            ("slot_mapping", node.facts.tensor("cache").dim(0)),
            ("block_table", node.facts.tensor("input").dim(0)),
        ):
            constant = node.facts.constants.get(name)
            if constant is None:
                continue
            values = constant.ravel().tolist()
            wrong = next((i for i, value in enumerate(values) if bound is not None and value >= bound), None)
            if wrong is not None:
                index = ", ".join(map(str, _unraveled(wrong, constant.shape)))
                yield finding(node, f"{name}[{index}] should be < {bound}, got {values[wrong]}", name)
            if name == "slot_mapping":
                yield from _duplicate(node, values)


def _unraveled(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    place: list[int] = []
    for dim in reversed(shape):
        index, rest = divmod(index, dim)
        place.insert(0, rest)
    return tuple(place)


def _duplicate(node: NsaNode, slots: Sequence[int]) -> Iterator[Finding]:
    first: dict[int, int] = {}
    for b, slot in enumerate(slots):
        if slot >= 0 and slot in first:
            message = f"slot_mapping[{b}] should differ from slot_mapping[{first[slot]}], got {slot}"
            yield finding(node, message, "slot_mapping")
            return
        first.setdefault(slot, b)
