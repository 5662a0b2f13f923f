"""Makes a model ready for ATC, CANN's converter, and for our parser plugin (ascend_kernels/onnx_plugin).

What the converter's ONNX parser does is known from its public source (Ascend/parser, 2021 to 2023, and the graph
engine's repository, 2025); what the vendor's operators take is in `vendor`. The result has not been tried with a real
ATC.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx.inliner
from onnx import ModelProto, NodeProto, helper

from ..analysis import Analysis, NsaNode
from ..graph.bounds import MAX_FUNCTION_CALLS, function_calls
from ..graph.outline import Outline
from ..graph.walk import standard_opset, subgraphs
from ..operators import OPERATORS
from ..operators.contract import DOMAIN, OPSET_VERSION, Violations, plural
from ..operators.expand import DEFAULT_OPSET
from . import vendor
from .atc_constants import plain_constants, raw_tensors
from .atc_table import INSERTED, insert_tables
from .base import violations
from .preparing import PrepareResult, Work, label
from .vendor_operator import KERNELS_OR_CPU

# The name of the standard operators' domain that the parser looks up; elsewhere it is the same as "".
STANDARD = "ai.onnx"
# The newest version of the standard operators for which public plugins of the converter are registered throughout.
NEWEST_OPSET = 18

_WRONG_EVERYWHERE = "no runtime takes it, see nsa-onnx check"


@dataclass
class _Work(Work):
    """Also: whether onnxruntime need not load the result, and how many standard nodes had a domain from the start."""

    converter_only: bool = False
    named: int = 0


def prepare_atc(
    model: str | os.PathLike[str] | ModelProto, *, folder: Path | None = None, converter_only: bool = False
) -> PrepareResult:
    """A copy of the model that ATC's parser is known to accept as far as NSA nodes and domains go.

    - The portable bodies of our operators are dropped, since the parser plugin handles the nodes; other local
      functions, which the parser does not read, are inlined.
    - A node without a ``block_table`` that the vendor's operator needs gets the table that this stands for: a constant
      where the shapes are known, else computed from them.
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
        PrepareError: what the converter or the vendor's operators are known not to do.
        UnreadableModelError: the file cannot be read, or the model holds text that is not UTF-8, or no graph.
    """
    work = _Work.of(model, folder)
    work.converter_only = converter_only
    for step in (_require_one_version, _unname_domains, _drop_bodies, _inline, _require_readable):
        step(work)
        work.stop_if_refused()
    seen = work.read(vendor.GRAPH_LIMITS, vendor.NO_GRAPH)
    _require_vendor(work, seen)
    work.stop_if_refused()
    insert_tables(work, seen)
    work.stop_if_refused()
    plain_constants(work)
    raw_tensors(work)
    work.stop_if_refused()
    _name_nodes(work)
    _add_notes(work, seen)
    _name_domains(work)
    work.stop_if_refused()
    return work.result()


# --------------------------------------------------------------------------------------------------
# Functions


def _drop_bodies(work: _Work) -> None:
    kept = [f for f in work.model.functions if f.domain != DOMAIN or f.name not in OPERATORS]
    work.changed(len(work.model.functions) - len(kept), "dropped the portable bodies of our operators")
    del work.model.functions[:]
    work.model.functions.extend(kept)


def _inline(work: _Work) -> None:
    model = work.model
    if not model.functions:
        return
    if function_calls(Outline.of(model)) > MAX_FUNCTION_CALLS:
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
    work.replace_model(inlined)
    for node in work.nodes():
        if (node.domain, node.op_type) in functions:
            work.reasons.append(f"{label(node)}: the function cannot be inlined: export the model without it")
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
    has_subgraphs = len(work.graphs) > 1
    for node in work.nodes():
        if node.domain not in imports:
            work.reasons.append(
                f"{label(node)}: domain {node.domain or STANDARD!r} is not imported: import its version"
            )
        if has_subgraphs and (node.domain, node.op_type) != ("", "If") and subgraphs(node):
            work.reasons.append(
                f"{label(node)}: of subgraphs, the converter's parser reads the branches of If only: unroll it, or "
                f"{KERNELS_OR_CPU}"
            )
        if node.domain == DOMAIN and node.op_type not in OPERATORS:
            work.reasons.append(f"{label(node)}: domain {DOMAIN} has no such operator, only {', '.join(OPERATORS)}")
        if node.domain == DOMAIN and imports.get(DOMAIN, OPSET_VERSION) != OPSET_VERSION:
            work.reasons.append(
                f"{label(node)}: domain {DOMAIN}: the parser plugin knows version {OPSET_VERSION}, the "
                f"model imports {imports[DOMAIN]}: export it anew"
            )


def _require_vendor(work: _Work, seen: Analysis) -> None:
    """What the contract forbids, for the device checks nothing, and what the vendor's operators cannot do."""
    for node in seen.nodes:
        for argument, problem in node.unreadable.items():
            work.reasons.append(f"{label(node.proto)}: {argument}: {problem}: {_WRONG_EVERYWHERE}")
        for violation in node.violations:
            work.reasons.append(f"{label(node.proto)}: {violation.message}: {_WRONG_EVERYWHERE}")
        for violation in _vendor_violations(node):
            one = vendor.vendors(node.op_type)
            way_out = one.ways_out.get(violation.row.id, one.otherwise)
            work.reasons.append(f"{label(node.proto)}: {violation.message}: {way_out}")
    known = "\n".join(work.reasons)
    for name, op_type, violation in seen.observed:
        if violation.message not in known:  # found by computing constants
            work.reasons.append(f"node {name!r} ({op_type}): {violation.message}: {_WRONG_EVERYWHERE}")


def _vendor_violations(node: NsaNode) -> Violations:
    if not node.violations and not node.unreadable:
        for violation in violations(vendor.GRAPH_LIMITS, node):
            if violation.row.id not in INSERTED:
                yield violation


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
    for index, graph in enumerate(work.graphs):
        branch = index > 0
        for node in graph.node:
            if node.domain or (branch and node.op_type == "Constant" and not work.converter_only):
                continue
            if branch and not work.converter_only:
                work.reasons.append(
                    f"{label(node)}: in a branch of If, the converter needs the domain {STANDARD!r} (E16005) and "
                    "onnxruntime does not load it: move it out of the branch, or prepare for the converter only"
                )
            node.domain = STANDARD
            count += 1
    return count


def _name_nodes(work: _Work) -> None:
    """Unique names, within each graph: the parser makes nodes of inputs and initializers, too (E19009)."""
    count = 0
    for graph in work.graphs:
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


def _add_notes(work: _Work, seen: Analysis) -> None:
    opset = standard_opset(work.model.opset_import)
    if opset is not None and opset > NEWEST_OPSET and any(not node.domain for node in work.nodes()):
        work.notes.append(
            f"the model imports version {opset} of the standard operators; the converter's public plugins know up to "
            f"{NEWEST_OPSET}: if it rejects them, export with opset_version={NEWEST_OPSET}"
        )
    steps = [step for scope in seen.scopes for step in scope.steps]
    if any(step.op == ("", "Shape") and step.node.attribute for step in steps):
        work.notes.append("plugins of older converters pass over start and end of Shape: results would differ")
    for domain in sorted({step.op[0] for step in steps} - {"", DOMAIN}):
        work.notes.append(f"the converter needs a parser plugin for domain {domain!r}")
    variable: dict[str, list[NodeProto]] = {}
    for node in seen.nodes:
        if node.facts is None:
            continue
        operator = OPERATORS[node.op_type]
        if any(node.facts.tensor(name).dtype == "bfloat16" for name in operator.float_inputs):
            work.notes.append("the parser of older converters knows no bfloat16")
        for name in vendor.vendors(node.op_type).valued:
            if name not in node.facts.constants:
                variable.setdefault(name, []).append(node.proto)
        if operator.ascend_note:
            work.notes.append(operator.ascend_note)
    for name, (first, *others) in variable.items():
        more = f" and {plural(len(others), 'more node')}" if others else ""
        work.notes.append(
            f"{label(first)}{more}: {name} is not constant; the vendor's shape inference fails without its "
            "values: if the converter rejects it, export with constant lengths"
        )
