"""Make a model ready for ATC, CANN's converter, and its parser plugin (ascend_kernels/onnx_plugin).

What the converter's ONNX parser is known to do comes from its public source (Ascend/parser, 2021 to 2023, and the
graph engine's repository, 2025), what the vendor's operators can do from ``nsa_onnx.spec``. No ATC runs where this
project is tested.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx.inliner
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from .. import spec
from ..checker.model import NsaNode, read
from ..checker.rules.targets import batch, vendor_violations
from ..functions import DEFAULT_OPSET
from ..graph.bounds import MAX_FUNCTION_CALLS, function_calls
from ..graph.reading import UnreadableModelError, load
from ..graph.tensors import elements
from ..graph.walk import standard_opset, subgraphs
from ..schema import INPUT_NAMES, SCHEMAS

# The name of the standard operators' domain that the parser looks up; elsewhere it is the same as "".
STANDARD = "ai.onnx"
# The newest version of the standard operators for which public plugins of the converter are registered throughout.
NEWEST_OPSET = 18
# A table of more pages is computed by the model instead of written into it.
MAX_CONSTANT_PAGES = 2**16
# Max of integers, which the computed table needs, came with this version.
MIN_TABLE_OPSET = 12

_ELSEWHERE = "serve it with onnxruntime-cann and the ascend_kernels backend, or on the CPU"
_WAYS_OUT = {
    "vendor_block": f"use a shorter window, or {_ELSEWHERE}",
    "vendor_odd_heads": f"pad to an even number of heads, or {_ELSEWHERE}",
    "vendor_elements": f"split the batch, or {_ELSEWHERE}",
    "vendor_cache_elements": f"use a smaller cache, or {_ELSEWHERE}",
    "vendor_no_rows": "leave the node out, its result is empty",
    "vendor_batch_min": "convert it for at least one sequence",
    "vendor_batch_max": f"split the batch, or {_ELSEWHERE}",
    "vendor_pages_min": "convert it with at least one page",
}
_WRONG_EVERYWHERE = "no runtime takes it, see nsa-onnx check"


class AtcError(ValueError):
    """The converter cannot express the model.

    Attributes:
        reasons: one line each, with node, argument, value, bound and the way out.
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = tuple(reasons)


@dataclass(frozen=True)
class PrepareResult:
    """A model that has none of the things for which ATC is known to reject a model with NSA nodes.

    Attributes:
        model: the changed copy. Any runtime that takes the original takes it, except that portable bodies are gone.
        changes: what was changed, one line each; empty if nothing had to be.
        notes: what may still stop the converter or matters on the device, one line each.
    """

    model: ModelProto
    changes: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Work:
    """The copy that is being changed, and what there is to say about it."""

    model: ModelProto
    folder: Path | None
    converter_only: bool
    named: int = 0  # standard nodes that have had the domain "ai.onnx" from the start
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def graphs(self) -> Iterator[GraphProto]:
        """The main graph, then all graphs within. Not those in functions."""
        pending = [self.model.graph]
        while pending:
            graph = pending.pop()
            yield graph
            for node in graph.node:
                pending.extend(subgraphs(node))

    def nodes(self) -> Iterator[NodeProto]:
        for graph in self.graphs():
            yield from graph.node

    def changed(self, count: int, what: str) -> None:
        if count:
            self.changes.append(f"{what} ({count})")

    def stop_if_refused(self) -> None:
        if self.reasons:
            raise AtcError(tuple(dict.fromkeys(self.reasons)))


def prepare_atc(
    model: str | os.PathLike[str] | ModelProto, *, folder: Path | None = None, converter_only: bool = False
) -> PrepareResult:
    """A copy of the model that ATC's parser is known to accept as far as NSA nodes and domains go.

    - The portable bodies of our operators are dropped, since the parser plugin handles the nodes; other local
      functions, which the parser does not read, are inlined.
    - A decode node without ``block_table`` gets the table that this stands for: a constant where the shapes are
      known, else computed from them.
    - Imports that no node uses are dropped. If several are left, standard nodes and their import get the domain
      ``ai.onnx``: the parser then rejects nodes without one (E16005). onnxruntime reads that like no domain, except in
      branches of If: standard nodes there, other than Constant, which the parser takes either way, are refused.
    - Nodes get unique names (E19009).
    - Constants get the one form that the parser reads: a tensor in ``value``, 8- and 16-bit data as raw bytes.

    Preparing a prepared model changes nothing.

    Args:
        model: path of an ONNX file, or the model itself, which is not changed.
        folder: where the model's external data is; the file's own for a path. Without it, index constants in external
            files are not read.
        converter_only: write the domain in branches, too. onnxruntime does not load the result.

    Raises:
        AtcError: what the converter or the vendor's operators are known not to do.
        UnreadableModelError: the file cannot be read, or the model holds text that is not UTF-8, or no graph.
    """
    if not isinstance(model, ModelProto):
        folder = Path(model).parent if folder is None else folder
        model = load(Path(model))
    if not model.HasField("graph"):
        raise UnreadableModelError("the model has no graph")
    if _holds_bad_text(model):
        raise UnreadableModelError("the model holds text that is not UTF-8")
    work = _Work(ModelProto(), folder, converter_only)
    work.model.CopyFrom(model)
    for step in (
        _require_one_version,
        _unname_domains,
        _drop_bodies,
        _inline,
        _require_readable,
        _require_vendor,
        _insert_tables,
        _plain_constants,
        _raw_tensors,
        _name_nodes,
        _add_notes,
        _name_domains,
    ):
        step(work)
        work.stop_if_refused()
    return PrepareResult(work.model, tuple(work.changes), tuple(dict.fromkeys(work.notes)))


def _holds_bad_text(message: Any) -> bool:
    """Whether a string of the protobuf message, at any depth, is not UTF-8: protobuf then gives bytes."""
    for descriptor, value in message.ListFields():
        if descriptor.type not in (descriptor.TYPE_STRING, descriptor.TYPE_MESSAGE):
            continue
        single = isinstance(value, (str, bytes)) or hasattr(value, "ListFields")
        for one in [value] if single else value:
            if isinstance(one, bytes) or (hasattr(one, "ListFields") and _holds_bad_text(one)):
                return True
    return False


def _label(node: NodeProto) -> str:
    return f"node {node.name or next(iter(node.output), '')!r} ({node.op_type})"


# --------------------------------------------------------------------------------------------------
# Functions


def _drop_bodies(work: _Work) -> None:
    kept = [f for f in work.model.functions if f.domain != spec.DOMAIN or f.name not in SCHEMAS]
    work.changed(len(work.model.functions) - len(kept), "dropped the portable bodies of our operators")
    del work.model.functions[:]
    work.model.functions.extend(kept)


def _inline(work: _Work) -> None:
    model = work.model
    if not model.functions:
        return
    if function_calls(model) > MAX_FUNCTION_CALLS:
        work.reasons.append(f"functions call one another more than {MAX_FUNCTION_CALLS} times: they cannot be inlined")
        return
    functions = {(function.domain, function.name) for function in model.functions}
    called = sum((node.domain, node.op_type) in functions for node in work.nodes())
    _import_for_functions(work)
    if work.reasons:
        return
    try:
        inlined = onnx.inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:  # onnx raises classes of its own, protobuf too
        first = (str(error).splitlines() or [type(error).__name__])[0]
        work.reasons.append(f"functions cannot be inlined: {first}: export the model without them")
        return
    model.CopyFrom(inlined)
    for node in work.nodes():
        if (node.domain, node.op_type) in functions:
            work.reasons.append(f"{_label(node)}: the function cannot be inlined: export the model without it")
    work.changed(called, f"inlined {len(functions)} local functions, calls in the graphs")
    del model.functions[:]


def _import_for_functions(work: _Work) -> None:
    """Import in the model what its functions import."""
    imports = {entry.domain: entry.version for entry in work.model.opset_import}
    own = {function.domain for function in work.model.functions}
    for function in work.model.functions:
        for entry in function.opset_import:
            if not entry.domain:
                missing = standard_opset(work.model.opset_import) is None
            else:
                missing = entry.domain not in imports and entry.domain not in own
                if imports.get(entry.domain, entry.version) != entry.version:
                    work.reasons.append(
                        f"function {function.name!r} imports version {entry.version} of domain {entry.domain!r}, the "
                        f"model {imports[entry.domain]}: export the model with one version"
                    )
            if missing:
                work.model.opset_import.add(domain=entry.domain, version=entry.version)
                imports[entry.domain] = entry.version


# --------------------------------------------------------------------------------------------------
# What cannot be expressed


def _require_one_version(work: _Work) -> None:
    imports: dict[str, int] = {}
    for entry in work.model.opset_import:
        domain = entry.domain or STANDARD
        if imports.setdefault(domain, entry.version) != entry.version:
            work.reasons.append(
                f"domain {domain!r} is imported with versions {imports[domain]} and {entry.version}: import one"
            )


def _require_readable(work: _Work) -> None:
    """What the parser does not take, whatever the operators."""
    for kind, values in (("input", work.model.graph.input), ("output", work.model.graph.output)):
        if not values:
            work.reasons.append(f"the graph has 0 {kind}s, the converter needs >= 1 (E16001): add an {kind}")
    imports = {entry.domain: entry.version for entry in work.model.opset_import}
    for node in work.nodes():
        if node.domain not in imports:
            work.reasons.append(
                f"{_label(node)}: domain {node.domain or STANDARD!r} is not imported: import its version"
            )
        if subgraphs(node) and (node.domain, node.op_type) != ("", "If"):
            work.reasons.append(
                f"{_label(node)}: of subgraphs, the converter's parser reads the branches of If only: unroll it, or "
                f"{_ELSEWHERE}"
            )
        if node.domain == spec.DOMAIN and node.op_type not in SCHEMAS:
            work.reasons.append(f"{_label(node)}: domain {spec.DOMAIN} has no such operator, only {', '.join(SCHEMAS)}")
        if node.domain == spec.DOMAIN and imports.get(spec.DOMAIN, spec.OPSET_VERSION) != spec.OPSET_VERSION:
            work.reasons.append(
                f"{_label(node)}: domain {spec.DOMAIN}: the parser plugin knows version {spec.OPSET_VERSION}, the "
                f"model imports {imports[spec.DOMAIN]}: export it anew"
            )


def _require_vendor(work: _Work) -> None:
    """What the contract forbids, for the device checks nothing, and what the vendor's operators cannot do."""
    seen = read(work.model, work.folder)
    names = set()
    for node in seen.nodes:
        names.add(node.name)
        for argument, problem in node.unreadable.items():
            work.reasons.append(f"{_label(node.proto)}: {argument}: {problem}: {_WRONG_EVERYWHERE}")
        for violation in (*node.violations, *_vendor_violations(node)):
            way_out = _WAYS_OUT.get(violation.row.id, _WRONG_EVERYWHERE)
            work.reasons.append(f"{_label(node.proto)}: {violation.message}: {way_out}")
    known = "\n".join(work.reasons)
    for name, op_type, violation in seen.observed:
        if violation.message not in known:  # found by computing constants
            work.reasons.append(f"node {name!r} ({op_type}): {violation.message}: {_WRONG_EVERYWHERE}")


def _vendor_violations(node: NsaNode) -> spec.Violations:
    if node.facts is not None and not node.violations:
        found = vendor_violations(node, direct=True)
        yield from (violation for violation in found if violation.row.id != "vendor_table")  # it gets one


# --------------------------------------------------------------------------------------------------
# The block table


def _insert_tables(work: _Work) -> None:
    """Give every decode node without a block_table one: sequence b owns the pages b * P .. (b + 1) * P - 1."""
    table = INPUT_NAMES[spec.INFER_OP].index("block_table")
    names = _Names(work)
    for node in read(work.model, work.folder).nodes:
        if node.op_type != spec.INFER_OP or any(node.proto.input[table:]):
            continue
        assert node.facts is not None
        pages, sequences = node.facts.tensor("input").dim(0), batch(node)
        prefix = names.prefix()
        if pages is not None and sequences and pages % sequences == 0 and pages <= MAX_CONSTANT_PAGES:
            values = np.arange(pages, dtype="<i4").reshape(sequences, pages // sequences)
            made = [_constant(prefix + "block_table", values)]
            kind = f"a constant block_table [{sequences}, {pages // sequences}]"
        else:
            made = _table_nodes(node.proto, prefix)
            kind = "a block_table computed from its inputs' shapes"
            if not _can_compute(work, node.proto):
                continue
        nodes: Any = node.scope.nodes  # protobuf's container, of the copy
        at = next(index for index, other in enumerate(nodes) if other is node.proto or other == node.proto)
        target = nodes[at]
        del target.input[table:]
        target.input.append(prefix + "block_table")
        for offset, one in enumerate(made):
            nodes.insert(at + offset, one)
        work.changes.append(f"{_label(node.proto)}: inserted {kind}")


def _can_compute(work: _Work, node: NodeProto) -> bool:
    opset = standard_opset(work.model.opset_import)
    if opset is not None and opset < MIN_TABLE_OPSET:
        work.reasons.append(
            f"{_label(node)}: block_table is absent and its shape not known; computing it needs version >= "
            f"{MIN_TABLE_OPSET} of the standard operators, got {opset}: give input and slot_mapping static shapes"
        )
        return False
    return True


class _Names:
    """Prefixes that no name in the model begins with."""

    def __init__(self, work: _Work) -> None:
        self._taken: set[str] = set()
        for graph in work.graphs():
            self._taken.update(value.name for value in (*graph.input, *graph.initializer, *graph.output))
            for node in graph.node:
                self._taken.update((*node.output, *node.input, node.name))
        self._number = 0

    def prefix(self) -> str:
        while True:
            prefix = f"nsa_onnx_{self._number}_"
            self._number += 1
            if not any(name.startswith(prefix) for name in self._taken):
                return prefix


def _constant(name: str, values: np.typing.NDArray[Any]) -> NodeProto:
    elem_type = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = helper.make_tensor(name, elem_type, values.shape, values.tobytes(), raw=True)
    return helper.make_node("Constant", [], [name], name=name, value=tensor)


def _table_nodes(node: NodeProto, prefix: str) -> list[NodeProto]:
    """Standard nodes that compute the default table of ``node`` under ``prefix + "block_table"``.

    Without attributes that older plugins of the converter pass over: start and end of Shape, allowzero of Reshape.
    """
    names = dict(zip(INPUT_NAMES[spec.INFER_OP], node.input, strict=False))

    def one(op_type: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
        read_names = [names.get(name, prefix + name) for name in inputs.split()]
        output = prefix + output
        return helper.make_node(op_type, read_names, [output], name=output, **attributes)

    integers = {"zero": 0, "one": 1, "zero_row": [0], "one_row": [1], "column_shape": [-1, 1]}
    return [
        *(_constant(prefix + name, np.array(value, "<i8")) for name, value in integers.items()),
        one("Shape", "input", "input_shape"),
        one("Gather", "input_shape zero_row", "block_num"),
        one("Shape", "slot_mapping", "batch"),
        one("Max", "batch one_row", "batch_positive"),
        one("Mod", "block_num batch_positive", "left_over"),
        # Out of range, hence an error, where the pages do not divide.
        one("Gather", "zero_row left_over", "check_block_num"),
        one("Div", "block_num batch_positive", "pages_each_unchecked"),
        one("Add", "pages_each_unchecked check_block_num", "pages_each"),
        one("Squeeze", "pages_each", "pages_each_scalar"),
        one("Squeeze", "batch", "batch_scalar"),
        one("Range", "zero batch_scalar one", "sequences"),
        one("Mul", "sequences pages_each", "first_pages"),
        one("Reshape", "first_pages column_shape", "first_pages_column"),
        one("Range", "zero pages_each_scalar one", "logical_pages"),
        one("Add", "first_pages_column logical_pages", "pages"),
        one("Cast", "pages", "block_table", to=TensorProto.INT32),
    ]


# --------------------------------------------------------------------------------------------------
# Constants

_CONSTANT_FORMS = {
    "value_int": (TensorProto.INT64, "i"),
    "value_ints": (TensorProto.INT64, "ints"),
    "value_float": (TensorProto.FLOAT, "f"),
    "value_floats": (TensorProto.FLOAT, "floats"),
    "value_string": (TensorProto.STRING, "s"),
    "value_strings": (TensorProto.STRING, "strings"),
}


def _plain_constants(work: _Work) -> None:
    """The parser reads nothing of a Constant but ``value``, and takes the constant for empty otherwise."""
    count = 0
    for node in work.nodes():
        if node.op_type != "Constant" or node.domain:
            continue
        for attribute in node.attribute:
            if attribute.name == "sparse_value":
                work.reasons.append(
                    f"{_label(node)}: sparse_value: the converter does not read this form of Constant: make it dense"
                )
            if attribute.name in _CONSTANT_FORMS:
                elem_type, source = _CONSTANT_FORMS[attribute.name]
                value = getattr(attribute, source)
                single = source in ("i", "f", "s")
                values = [value] if single else list(value)
                tensor = helper.make_tensor(attribute.name, elem_type, [] if single else [len(values)], values)
                attribute.CopyFrom(AttributeProto(name="value", type=AttributeProto.TENSOR, t=tensor))
                count += 1
    work.changed(count, "wrote constants as a tensor in 'value', the only form that the converter reads")


# Element types whose data the parser reads from raw_data alone: (field of TensorProto, NumPy's type of the bytes).
_RAW_ONLY: dict[int, tuple[str, str]] = {
    TensorProto.FLOAT16: ("int32_data", "<u2"),
    TensorProto.BFLOAT16: ("int32_data", "<u2"),
    TensorProto.INT16: ("int32_data", "<u2"),
    TensorProto.UINT16: ("int32_data", "<u2"),
    TensorProto.INT8: ("int32_data", "u1"),
    TensorProto.UINT8: ("int32_data", "u1"),
    TensorProto.BOOL: ("int32_data", "u1"),
    TensorProto.UINT32: ("uint64_data", "<u4"),
}


def _raw_tensors(work: _Work) -> None:
    count = 0
    for graph in work.graphs():
        tensors = list(graph.initializer)
        for node in graph.node:
            tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        for tensor in tensors:
            count += _make_raw(tensor)
    work.changed(count, "wrote 8- and 16-bit tensors as raw bytes, the only form that the converter reads")


def _make_raw(tensor: TensorProto) -> bool:
    """Whether the tensor's data was moved into raw_data. Malformed tensors are left to the runtimes."""
    if tensor.data_type not in _RAW_ONLY or tensor.HasField("raw_data"):
        return False
    source, layout = _RAW_ONLY[tensor.data_type]
    data = getattr(tensor, source)
    if not len(data) or len(data) != elements(tensor.dims):
        return False
    tensor.raw_data = np.array(data, np.int64).astype(layout).tobytes()
    tensor.ClearField(source)
    return True


# --------------------------------------------------------------------------------------------------
# Domains and names


def _unname_domains(work: _Work) -> None:
    """The usual way to write standard operators, for everything that looks at the model in between."""
    for function in work.model.functions:
        _unname(function)
    _unname(work.model)
    for node in [*work.nodes(), *_function_nodes(work.model)]:
        if node.domain == STANDARD:
            node.domain = ""
            work.named += 1


def _function_nodes(model: ModelProto) -> Iterator[NodeProto]:
    pending = [node for function in model.functions for node in function.node]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(inner for graph in subgraphs(node) for inner in graph.node)


def _unname(owner: Any) -> None:
    """In the imports of a model or function, "" for "ai.onnx", and none of them twice."""
    imports = {"" if entry.domain == STANDARD else entry.domain: entry.version for entry in owner.opset_import}
    del owner.opset_import[:]
    owner.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in imports.items())


def _name_domains(work: _Work) -> None:
    used = {node.domain for node in work.nodes()} | {""}
    imports = {entry.domain: entry.version for entry in work.model.opset_import}
    if "" not in imports:
        # Of a model of nothing but our nodes. Without it, runtimes assume their newest version, and warn.
        imports[""] = DEFAULT_OPSET
        work.changes.append(f"imported version {DEFAULT_OPSET} of {STANDARD!r}")
    for domain in [domain for domain in imports if domain not in used]:
        del imports[domain]
        work.changes.append(f"dropped the import of domain {domain!r}, which no node uses")
    several = len(imports) > 1
    domain = STANDARD if several or work.named else ""
    del work.model.opset_import[:]
    work.model.opset_import.extend(helper.make_opsetid(key or domain, version) for key, version in imports.items())
    if domain:
        work.changed(_write_domain(work) - work.named, f"wrote {domain!r} into the domain of standard nodes (E16005)")


def _write_domain(work: _Work) -> int:
    """Name the standard nodes' domain; returns how many there are."""
    count = 0
    for index, graph in enumerate(work.graphs()):
        branch = index > 0
        for node in graph.node:
            if node.domain or (branch and node.op_type == "Constant" and not work.converter_only):
                continue
            if branch and not work.converter_only:
                work.reasons.append(
                    f"{_label(node)}: in a branch of If, the converter needs the domain {STANDARD!r} (E16005) and "
                    "onnxruntime does not load it: move it out of the branch, or prepare for the converter only"
                )
            node.domain = STANDARD
            count += 1
    return count


def _name_nodes(work: _Work) -> None:
    """Unique names, within each graph: the parser makes nodes of inputs and initializers, too (E19009)."""
    count = 0
    for graph in work.graphs():
        inputs = {value.name for value in graph.input}
        tensors = {tensor.name for tensor in graph.initializer}
        taken = inputs | {node.name for node in graph.node}
        seen: set[str] = set()
        number = 0
        for node in graph.node:
            stem, _, suffix = node.name.rpartition("_")
            like_initializer = suffix.isdecimal() and stem in tensors
            if not node.name or node.name in seen or node.name in inputs or like_initializer:
                while (name := f"{node.op_type}_nsa{number}") in taken:
                    number += 1
                taken.add(name)
                node.name = name
                count += 1
            seen.add(node.name)
    work.changed(count, "gave nodes names of their own (E19009)")


# --------------------------------------------------------------------------------------------------
# What else the user should know


def _add_notes(work: _Work) -> None:
    opset = standard_opset(work.model.opset_import)
    if opset is not None and opset > NEWEST_OPSET and any(not node.domain for node in work.nodes()):
        work.notes.append(
            f"the model imports version {opset} of the standard operators; the converter's public plugins know up to "
            f"{NEWEST_OPSET}: if it rejects them, export with opset_version={NEWEST_OPSET}"
        )
    if any(node.op_type == "Shape" and not node.domain and node.attribute for node in work.nodes()):
        work.notes.append("plugins of older converters pass over start and end of Shape: results would differ")
    for domain in sorted({node.domain for node in work.nodes()} - {"", spec.DOMAIN}):
        work.notes.append(f"the converter needs a parser plugin for domain {domain!r}")
    for node in read(work.model, work.folder).nodes:
        if node.facts is None:
            continue
        if node.facts.tensor("input").dtype == "bfloat16":
            work.notes.append("the parser of older converters knows no bfloat16")
        if node.op_type == spec.COMPRESS_OP and "actual_seq_len" not in node.facts.constants:
            work.notes.append(
                f"{_label(node.proto)}: actual_seq_len is not constant; the vendor's shape inference fails without its "
                "values: if the converter rejects it, export with constant lengths"
            )
        if node.op_type == spec.INFER_OP:
            work.notes.append("the device checks no length, slot or page: a wrong one reads or writes elsewhere")
