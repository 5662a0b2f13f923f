"""``check --run``: each NSA node of a model computes what the contract says, shown on generated input.

A node is taken out of its model and run in onnxruntime, with our library, on the CPU. What is known of its inputs is
kept: types, shapes, constant lengths and indices; the rest is generated so that it is valid. The result is compared
with sums in float64, written here from the contract alone, so that a mistake of the kernels is not repeated.

How far off may it be? The contract wants float32 sums in order, then one rounding. A sum of n float32 terms is off by
at most ``gamma * sum(|terms|)``, gamma = n u / (1 - n u), u = 2^-24 (N. Higham, Accuracy and Stability of Numerical
Algorithms, 4.2; the products are exact). Rounding is monotonic: the result lies between both ends of that interval,
rounded. A kernel that sums in another order, in float32 at least, passes as well.

onnxruntime is imported when the first node is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper

from .. import spec
from ..analysis import Model
from ..rulebook.finding import Finding, Severity
from ..schema import INPUT_NAMES, NodeFacts
from .report import NodeRun, plural
from .rules import RULES
from .rules.running import COMPUTES

# Generated tensors are at most this large (16 MiB in float32): one window of 128 tokens of the most heads and channels.
MAX_ELEMENTS = 2**22
# Sequences of a batch, where their number is free.
MAX_BATCH = 64
# Sequences of a batch whose lengths or indices are constant.
MAX_SEQUENCES = 4096
# Different nodes of one model that are run; a real model repeats a few.
MAX_NODES = 256

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class RunUnavailableError(RuntimeError):
    """Nodes cannot be run on this machine; the message says what is missing."""


class _NotRunError(Exception):
    """A node for which there is no input; the message says why."""


@dataclass(frozen=True)
class _Input:
    """What a node is run on: values by the schema's input names, floats as float64 that the node's type can hold."""

    dtype: str
    values: Mapping[str, npt.NDArray[Any]]
    note: str


@dataclass(frozen=True)
class _Outcome:
    """Of one run: distance from the reference and what is wrong, or None and why it was not run."""

    ulps: int | None
    note: str
    problem: str = ""


def require_onnxruntime() -> None:
    """Raise RunUnavailableError if nodes cannot be run here."""
    from ..runtime.session import session_options

    try:
        session_options()
    except RuntimeError as error:
        raise RunUnavailableError(str(error)) from error


def run_nodes(model: Model, found: Sequence[Finding]) -> tuple[tuple[NodeRun, ...], tuple[Finding, ...]]:
    """Run each NSA node that has no error.

    Args:
        found: what the rules have found.

    Returns:
        What came of each node, and findings of rule NSA100.

    Raises:
        RunUnavailableError: onnxruntime or our library is missing.
    """
    require_onnxruntime()
    errors = {(finding.node, finding.place) for finding in found if finding.severity is Severity.ERROR}
    runs: list[NodeRun] = []
    findings: list[Finding] = []
    known: dict[object, _Outcome] = {}
    for node in model.nodes:
        if {(node.name, node.scope.place), (node.name, "")} & errors or node.facts is None:
            outcome = _Outcome(None, "it has errors")
        else:
            key = _identity(node.facts)
            if key not in known and len(known) < MAX_NODES:
                known[key] = _run(node.facts)
            outcome = known.get(key) or _Outcome(None, f"{MAX_NODES} other nodes were run")
        runs.append(NodeRun(node.name, node.op_type, node.scope.place, outcome.ulps, outcome.note))
        if outcome.problem:
            message = f"{outcome.problem} ({outcome.note})"
            rule = RULES[COMPUTES]
            place = node.scope.place
            findings.append(Finding(rule.id, rule.severity, message, node.name, node.op_type, "", place, rule.hint))
    return tuple(runs), tuple(findings)


def _identity(facts: NodeFacts) -> object:
    """Nodes that are alike are run once."""
    constants = tuple((name, value.shape, value.tobytes()) for name, value in sorted(facts.constants.items()))
    inputs = tuple(sorted(facts.inputs.items(), key=lambda item: item[0]))
    return facts.op_type, tuple(facts.integer(name) for name in _ATTRIBUTES[facts.op_type]), inputs, constants


_WINDOW = ("compress_block_size", "compress_stride")
_ATTRIBUTES = {spec.COMPRESS_OP: _WINDOW, spec.INFER_OP: (*_WINDOW, "page_block_size")}


def _run(facts: NodeFacts) -> _Outcome:
    try:
        attributes = {name: _attribute(facts, name) for name in _ATTRIBUTES[facts.op_type]}
        made = {spec.COMPRESS_OP: _compress_input, spec.INFER_OP: _infer_input}[facts.op_type](facts, attributes)
    except _NotRunError as error:
        return _Outcome(None, str(error))
    exact, slack = {spec.COMPRESS_OP: _compress, spec.INFER_OP: _infer}[facts.op_type](made.values, attributes)
    try:
        got = _compute(_model(facts, attributes, made), made.values)
    except Exception as error:  # onnxruntime has classes of its own
        return _Outcome(None, made.note, f"onnxruntime does not run it: {(str(error).splitlines() or ['?'])[0]}")
    return _compared(got, exact, slack, made)


def _attribute(facts: NodeFacts, name: str) -> int:
    value = facts.integer(name)
    if value is None:
        raise _NotRunError(f"{name} is set by the caller of its function")
    return value


def _compared(got: Floats, exact: Floats, slack: Floats, made: _Input) -> _Outcome:
    wanted = _rounded(exact, made.dtype)
    if got.shape != wanted.shape:
        return _Outcome(None, made.note, f"the result has shape {list(got.shape)}, expected {list(wanted.shape)}")
    low, high = _rounded(exact - slack, made.dtype), _rounded(exact + slack, made.dtype)
    distance = _ulps(got, wanted, made.dtype)
    worst = int(distance.max(initial=0))
    outside = ~((got >= low) & (got <= high))  # NaN is outside
    if not outside.any():
        return _Outcome(worst, made.note)
    at = tuple(map(int, np.unravel_index(int(np.argmax(np.where(outside, distance, -1))), got.shape)))
    problem = (
        f"output{list(at)} is {got[at]:.6g}, the float64 reference says {wanted[at]:.6g} and float32 sums may give "
        f"{low[at]:.6g} to {high[at]:.6g}; {int(outside.sum())} of {got.size} elements are off, by up to {worst} ulp"
    )
    return _Outcome(worst, made.note, problem)


# --------------------------------------------------------------------------------------------------
# onnxruntime

_ELEMENT_TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_FLOAT_INPUTS = ("input", "weight", "cache")


def _model(facts: NodeFacts, attributes: Mapping[str, int], made: _Input) -> ModelProto:
    """The node alone. Its floats come and go as float32, which holds them exactly: NumPy has no bfloat16."""
    nodes, inputs, names = [], [], []
    for name in INPUT_NAMES[facts.op_type]:
        if name not in made.values:
            names.append("")
            continue
        value = made.values[name]
        element = TensorProto.FLOAT if name in _FLOAT_INPUTS else helper.np_dtype_to_tensor_dtype(value.dtype)
        inputs.append(helper.make_tensor_value_info(name, element, value.shape))
        names.append(name)
        if name in _FLOAT_INPUTS:
            names[-1] = f"{name}_16"
            nodes.append(helper.make_node("Cast", [name], [names[-1]], to=_ELEMENT_TYPES[made.dtype]))
    while names[-1] == "":
        names.pop()
    nodes.append(_nsa_node(facts.op_type, names, attributes))
    nodes.append(helper.make_node("Cast", ["output_16"], ["output"], to=TensorProto.FLOAT))
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "node", inputs, [output])
    # Old enough for every onnxruntime that we support.
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(spec.DOMAIN, spec.OPSET_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _nsa_node(op_type: str, inputs: Sequence[str], attributes: Mapping[str, int]) -> NodeProto:
    node = helper.make_node(op_type, inputs, ["output_16"], domain=spec.DOMAIN)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return node


def _compute(model: ModelProto, values: Mapping[str, npt.NDArray[Any]]) -> Floats:
    import onnxruntime

    from ..runtime.session import create_session

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is told by the exception
    session = create_session(model, device="cpu", options=options)
    feeds = {name: value.astype(np.float32) if name in _FLOAT_INPUTS else value for name, value in values.items()}
    output: Floats = np.asarray(session.run(None, feeds)[0]).astype(np.float64)
    return output


# --------------------------------------------------------------------------------------------------
# 16-bit floats as float64


def _rounded(values: Floats, dtype: str) -> Floats:
    """To the nearest number of the type, ties to even.

    bfloat16 has float64's layout with a shorter fraction (7 of 52 bits), so that its numbers are found by rounding the
    bits; subnormal ones, which generated input does not come near, are not rounded as far as they should be.
    """
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float64)
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    dropped = np.uint64(45)
    odd = (bits >> dropped) & np.uint64(1)
    rounded = (bits + ((np.uint64(1) << np.uint64(44)) - np.uint64(1)) + odd) >> dropped << dropped
    with np.errstate(over="ignore"):
        result: Floats = rounded.view(np.float64).astype(np.float32).astype(np.float64)
    return result


def _ulps(first: Floats, second: Floats, dtype: str) -> Integers:
    """Distance in units in the last place. NaN is as far as can be from all but NaN."""
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


# --------------------------------------------------------------------------------------------------
# The reference


def _gamma(terms: int) -> float:
    unit = 2.0**-24
    return terms * unit / (1 - terms * unit)


def _weighted(windows: Iterable[Floats], weight: Floats, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Sum over j of windows[j] * weight[j] in float64, and by how much a float32 sum may be off.

    Args:
        windows: for each token of a window ``[rows, N, D]``, that token of all windows.
        weight: ``[compress_block_size, N]``.
        shape: ``(rows, N, D)``.
    """
    total, size = np.zeros(shape), np.zeros(shape)
    for tokens, factors in zip(windows, weight, strict=True):
        product = tokens * factors[:, None]
        total += product
        size += np.abs(product)
    return total, _gamma(len(weight)) * size


def _compress(values: Mapping[str, npt.NDArray[Any]], attributes: Mapping[str, int]) -> tuple[Floats, Floats]:
    block, stride = (attributes[name] for name in _WINDOW)
    tokens, weight = values["input"], values["weight"]
    starts: list[int] = []
    begin = 0
    for end in values["actual_seq_len"].tolist():
        starts.extend(range(begin, end - block + 1, stride))
        begin = end
    first = np.array(starts, np.int64)
    return _weighted((tokens[first + j] for j in range(block)), weight, (len(starts), *tokens.shape[1:]))


def _infer(values: Mapping[str, npt.NDArray[Any]], attributes: Mapping[str, int]) -> tuple[Floats, Floats]:
    block, stride = (attributes[name] for name in _WINDOW)
    pages, weight, slots = values["input"], values["weight"], values["slot_mapping"]
    page = pages.shape[1]
    exact = values["cache"].astype(np.float64)
    slack = np.zeros(exact.shape)
    table = values.get("block_table")
    each = pages.shape[0] // max(len(slots), 1)
    for b, length in enumerate(values["actual_seq_len"].tolist()):
        if length < block or (length - block) % stride:
            continue
        where = range(length - block, length)
        window = [pages[b * each + t // page if table is None else table[b, t // page], t % page] for t in where]
        total, off = _weighted((token[None] for token in window), weight, (1, *exact.shape[1:]))
        exact[slots[b]], slack[slots[b]] = total[0], off[0]
    return exact, slack


# --------------------------------------------------------------------------------------------------
# Valid input


def _first(*dims: spec.Dim, default: int) -> int:
    return next((dim for dim in dims if dim is not None), default)


def _dtype(facts: NodeFacts) -> str:
    names = [facts.tensor(name).dtype for name in _FLOAT_INPUTS]
    return next((name for name in names if name), spec.DTYPES[0])


def _floats(shapes: Mapping[str, Sequence[int]], dtype: str) -> dict[str, Floats]:
    """Both signs, but one per channel: where nothing cancels out, an ulp of the result says how good the sum is."""
    generator = np.random.default_rng(0)
    values = {}
    for name, shape in shapes.items():
        made = np.abs(generator.standard_normal(tuple(shape)))
        if name == "weight":
            made *= 0.25
        else:
            made[..., ::2] *= -1
        values[name] = _rounded(made, dtype)
    return values


def _heads_and_dim(facts: NodeFacts, rank: int) -> tuple[int, int]:
    tokens, weight, cache = facts.tensor("input").dims(rank), facts.tensor("weight").dims(2), facts.tensor("cache")
    return (
        _first(tokens[-2], weight[1], cache.dim(1), default=3),
        _first(tokens[-1], cache.dim(2), default=32),
    )


def _compress_input(facts: NodeFacts, attributes: Mapping[str, int]) -> _Input:
    block, stride = (attributes[name] for name in _WINDOW)
    heads, dim = _heads_and_dim(facts, 3)
    most = max(block, MAX_ELEMENTS // max(1, heads * dim))
    lengths = facts.constants.get("actual_seq_len")
    if lengths is not None:
        if len(lengths) > MAX_SEQUENCES:
            raise _NotRunError(f"{len(lengths)} sequences, at most {MAX_SEQUENCES} are run")
        declared = int(lengths[-1])
        lengths = np.minimum(lengths, most)
    else:
        declared = _first(facts.tensor("input").dim(0), default=6 * block + stride // 2)
        batch = min(_first(facts.tensor("actual_seq_len").dim(0), default=4), MAX_BATCH)
        lengths = _prefix_sums(min(declared, most), batch, block)
    tokens = int(lengths[-1])
    dtype = _dtype(facts)
    values: dict[str, npt.NDArray[Any]] = dict(
        _floats({"input": (tokens, heads, dim), "weight": (block, heads)}, dtype)
    )
    values["actual_seq_len"] = lengths.astype(np.int64)
    return _Input(dtype, values, _note(f"input {[tokens, heads, dim]} {dtype}", declared, tokens, "T"))


def _note(text: str, declared: int, used: int, name: str) -> str:
    return text if declared == used else f"{text}, {name} cut from {declared}"


def _prefix_sums(tokens: int, batch: int, block: int) -> Integers:
    """Segments of one batch: the first has half of the tokens, or all where that is less than a window."""
    if tokens < 1:
        raise _NotRunError("no input is valid: T is 0, and the lengths must be positive and end in T")
    first = tokens // 2 if tokens // 2 >= block else tokens
    rest = np.arange(1, batch, dtype=np.int64)
    sums: Integers = np.concatenate(([first], first + rest * (tokens - first) // max(batch - 1, 1)))
    sums[-1] = tokens
    return sums


@dataclass(frozen=True)
class _Paged:
    """The sizes of a decode step: pages in all, pages of a sequence at most, sequences, slots."""

    pages: int
    each: int
    batch: int
    slots: int


def _infer_input(facts: NodeFacts, attributes: Mapping[str, int]) -> _Input:
    block, stride, page = (attributes[name] for name in _ATTRIBUTES[spec.INFER_OP])
    heads, dim = _heads_and_dim(facts, 4)
    row = max(1, heads * dim)  # D may be 0
    most = max(1, MAX_ELEMENTS // (page * row)), max(1, MAX_ELEMENTS // row)
    sizes = _sizes(facts, block, page, *most)
    table = _table(facts, sizes)
    lengths, slots = facts.constants.get("actual_seq_len"), facts.constants.get("slot_mapping")
    wanted = _lengths(sizes, block, stride, page) if lengths is None else lengths
    slots = _slots(wanted, sizes, block, stride) if slots is None else slots
    if lengths is None:
        # Constant slots and tables may serve some of the sequences only.
        bad = {violation.values[0] for violation in _problems(slots, table, wanted, attributes, sizes)}
        wanted = np.array([0 if b in bad else length for b, length in enumerate(wanted.tolist())], np.int64)
    for violation in _problems(slots, table, wanted, attributes, sizes):
        raise _NotRunError(f"no input of at most {MAX_ELEMENTS} elements is valid: {violation.message}")
    dtype = _dtype(facts)
    shapes = {"input": (sizes.pages, page, heads, dim), "weight": (block, heads), "cache": (sizes.slots, heads, dim)}
    values: dict[str, npt.NDArray[Any]] = dict(_floats(shapes, dtype))
    values["slot_mapping"], values["actual_seq_len"] = slots.astype(np.int32), wanted.astype(np.int64)
    if table is not None:
        values["block_table"] = table.astype(np.int32)
    writing = sum(spec.triggers(length, block, stride) for length in wanted.tolist())
    text = f"input {list(shapes['input'])} {dtype}, {writing} of {plural(sizes.batch, 'sequence')} written"
    declared = facts.tensor("input").dim(0)
    return _Input(dtype, values, _note(text, declared or sizes.pages, sizes.pages, "block_num"))


def _sizes(facts: NodeFacts, block: int, page: int, most_pages: int, most_slots: int) -> _Paged:
    """What is declared, as far as it is not too much; little where nothing is."""
    names = ("actual_seq_len", "slot_mapping", "block_table")
    constants = [facts.constants[name] for name in names if name in facts.constants]
    pages, slots = facts.tensor("input").dim(0), facts.tensor("cache").dim(0)
    has_table = "block_table" in facts.inputs
    batch = _first(
        *(len(value) for value in constants),
        *(facts.tensor(name).dim(0) for name in ("slot_mapping", "actual_seq_len", "block_table")),
        default=4 if has_table or pages is None else math.gcd(pages, 4),
    )
    if constants and batch > MAX_SEQUENCES:
        raise _NotRunError(f"{batch} sequences, at most {MAX_SEQUENCES} are run")
    longest = int(facts.constants["actual_seq_len"].max(initial=0)) if "actual_seq_len" in facts.constants else 0
    # A window, wherever it lies, and a page more; or what constant lengths need.
    each = max(-(-block // page) + 2, -(-longest // page))
    if has_table:
        table = facts.constants.get("block_table")
        batch = batch if constants else min(batch, MAX_BATCH)
        each = min(_first(facts.tensor("block_table").dim(1), default=each), each) if table is None else table.shape[1]
        pages = min(_first(pages, default=8), most_pages)
    else:
        each = pages // max(batch, 1) if pages is not None else each
        batch = batch if constants else min(batch, MAX_BATCH, most_pages)
        each = min(each, most_pages // max(batch, 1))
        pages = each * batch
    if each * batch > MAX_ELEMENTS:
        raise _NotRunError(f"{plural(batch, 'sequence')} of {each} pages, at most {MAX_ELEMENTS} pages are run")
    return _Paged(pages, each, batch, min(_first(slots, default=batch + 2), most_slots))


def _table(facts: NodeFacts, sizes: _Paged) -> Integers | None:
    if "block_table" not in facts.inputs:
        return None
    if "block_table" in facts.constants:
        return facts.constants["block_table"]
    table: Integers = np.random.default_rng(1).integers(0, max(sizes.pages, 1), (sizes.batch, sizes.each))
    return table


def _lengths(sizes: _Paged, block: int, stride: int, page: int) -> Integers:
    """Sequences that have just completed their last possible window, their first one, and one that has not."""
    most = sizes.each * page
    last = block + (most - block) // stride * stride
    wanted = [last, block, min(block + 1, most), min(block + stride, last)] if most >= block else [most]
    return np.resize(np.array(wanted, np.int64), sizes.batch)


def _slots(lengths: Integers, sizes: _Paged, block: int, stride: int) -> Integers:
    """Different slots for the sequences that write, while there are any; -1 for the others, as is common."""
    free = iter(np.random.default_rng(2).permutation(sizes.slots).tolist())
    slots = [next(free, -1) if spec.triggers(length, block, stride) else -1 for length in lengths.tolist()]
    return np.array(slots, np.int64)


def _problems(
    slots: Integers, table: Integers | None, lengths: Integers, attributes: Mapping[str, int], sizes: _Paged
) -> list[spec.Violation]:
    rows = None if table is None else table.tolist()
    block, stride, page = (attributes[name] for name in _ATTRIBUTES[spec.INFER_OP])
    return list(
        spec.infer_index_violations(
            slots.tolist(), rows, lengths.tolist(), block, stride, page, sizes.pages, sizes.each, sizes.slots
        )
    )
