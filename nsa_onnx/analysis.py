"""Reads a model once for everybody: scopes, types, NSA nodes and compressions. Trusts nothing in the file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from .graph.external import SMALL_BYTES, external_bytes, inside
from .graph.folding import MAX_ELEMENTS, Array, Folder
from .graph.inference import computed, infer, with_constants, without_weights
from .graph.outline import Outline
from .graph.reading import UnreadableModelError, load
from .graph.scopes import Scope
from .graph.scopes import scopes as find_scopes
from .graph.tensors import Integers, Mask, TensorFacts, attribute_value, integer_values, mask_values, tensor_facts
from .graph.walk import node_name, text
from .operators import OPERATORS
from .operators.base import T
from .operators.contract import DOMAIN, Violation
from .operators.facts import NodeFacts
from .operators.schema import OUTPUT_RANKS, observing, violations
from .recognise.search import Candidate, Search, candidate, search

# Of one kind of mistake, as many are reported per node, then their number: a batch has thousands of lengths.
MAX_ALIKE = 8
# Inputs that are no data: lengths, slots, tables.
_INDEX_INPUTS = frozenset(one.name for operator in OPERATORS.values() for one in operator.inputs if one.type != T)


@dataclass(frozen=True)
class NsaNode:
    """A node of our domain.

    Attributes:
        position: among the nodes of its graph.
        facts: what is known of it; None if its operator is none of ours.
        violations: what is certainly wrong with it, as far as the error table goes.
        unreadable: constant index inputs that cannot be read, with the reason.
    """

    proto: NodeProto
    name: str
    scope: Scope
    position: int
    facts: NodeFacts | None = None
    violations: tuple[Violation, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def op_type(self) -> str:
        return text(self.proto.op_type)


@dataclass(frozen=True)
class Analysis:
    """A model, and what there is to know of it. Made once, by `analyse`, and passed on to all who look at the model.

    Attributes:
        proto: the model, as it is in the file.
        path: of the file; empty for a model that is in memory only.
        folder: where its external data may be; without it, none is read.
        target: what the rules look at it for.
        outline, scopes: its nodes; all graphs and functions, the main graph first.
        nodes: the nodes of our domain, in all of them.
        inferred: what onnx infers for the values of the main graph when nothing but its inputs is declared.
        observed: (node's name, operator, what is wrong) of our nodes as onnx met them, in functions once per call.
        inference_error: why onnx could not infer; empty if it could.
        values: what its small integer nodes compute from constants.
    """

    proto: ModelProto
    path: str
    folder: Path | None
    target: str
    outline: Outline
    scopes: tuple[Scope, ...]
    nodes: tuple[NsaNode, ...]
    inferred: Mapping[str, TypeProto]
    observed: Sequence[tuple[str, str, Violation]]
    inference_error: str
    values: Folder
    _search: list[Search] = field(default_factory=list, repr=False, compare=False)

    def meant_for(self, target: str) -> Analysis:
        """The same, for a target's rules."""
        return replace(self, target=target)

    def search(self) -> Search:
        """The compressions that are written in standard operators. They are looked for once.

        Raises:
            UnicodeError: names are no text.
        """
        if not self._search:
            self._search.append(search(self.scopes, self.folder))
        return self._search[0]

    def candidates(self, *, allow_rounding: bool = False) -> tuple[Candidate, ...]:
        """What looks like the compression, as people are told of it; nothing if names are no text."""
        try:
            return tuple(candidate(found, allow_rounding) for found in self.search().found)
        except UnicodeError:  # others say so
            return ()


# What can be looked at: the path of an ONNX file, a model, or what is known of one already.
Source = str | os.PathLike[str] | ModelProto | Analysis


def analyse(model: Source, *, folder: str | os.PathLike[str] | None = None, target: str = "cpu") -> Analysis:
    """Look at a model, without its weights.

    Args:
        model: as `Source` says; what is known already stays as it is, but for the target.
        folder: of its external data; a file's own if none is given. Without one, none is read.
        target: what the rules look at it for.

    Raises:
        UnreadableModelError: (a ValueError) the file cannot be read as a model, or names in it are no text.
    """
    if isinstance(model, Analysis):
        return model.meant_for(target)
    path = "" if isinstance(model, ModelProto) else os.fspath(model)
    proto = model if isinstance(model, ModelProto) else load(Path(path))
    if path and folder is None:
        folder = Path(path).parent
    try:
        return _analyse(proto, path, None if folder is None else Path(folder), target)
    except UnicodeError as error:
        raise UnreadableModelError(f"{path or 'model'}: holds text that is not UTF-8") from error


def analyse_graph(path: str) -> Analysis:
    """Of a file; UnreadableModelError as well for a model without a graph."""
    seen = analyse(path)
    if not seen.proto.HasField("graph"):
        raise UnreadableModelError(f"{path}: the model has no graph")
    return seen


def _analyse(proto: ModelProto, path: str, folder: Path | None, target: str) -> Analysis:
    outline, light = Outline.of(proto), without_weights(proto, folder)
    inferred, seen, error = infer(light, outline, OUTPUT_RANKS, observing)
    scopes = tuple(find_scopes(proto, outline))
    scopes[0].add_inferred(inferred)
    values = _folder_of(folder)
    constants = {} if error else computed(scopes[0], values)
    if constants:
        # Once more, with what nodes compute from constants as constants: T' and shapes then follow from them.
        known = with_constants(light, constants)
        again, seen_again, error_again = infer(known, outline.without(constants), OUTPUT_RANKS, observing)
        if not error_again:
            inferred, seen = {**inferred, **again}, seen_again
            scopes[0].add_inferred(again)
    observed = [(name, facts.op_type, violation) for name, facts in seen for violation in _without_flood(facts)]
    nodes = tuple(_nodes_of(scopes, folder, values))
    return Analysis(proto, path, folder, target, outline, scopes, nodes, inferred, observed, error, values)


# --------------------------------------------------------------------------------------------------
# Nodes


def _without_flood(facts: NodeFacts) -> list[Violation]:
    """The violations, those alike summed up beyond the first few."""
    counts: Counter[str] = Counter()
    kept: list[Violation] = []
    for violation in violations(facts):
        counts[violation.row.id] += 1
        if counts[violation.row.id] <= MAX_ALIKE:
            kept.append(violation)
    rows = {violation.row.id: violation.row for violation in kept}
    for row_id, count in counts.items():
        if count > MAX_ALIKE:
            row = replace(rows[row_id], message=f"{rows[row_id].argument}: {{}} more like these")
            kept.append(Violation(row, (count - MAX_ALIKE,)))
    return kept


def nodes_of(scopes: Iterable[Scope], folder: Path | None) -> Iterator[NsaNode]:
    """The nodes of our domain in some scopes, with what is known of them there."""
    return _nodes_of(scopes, folder, _folder_of(folder))


def _nodes_of(scopes: Iterable[Scope], folder: Path | None, values: Folder) -> Iterator[NsaNode]:
    for scope in scopes:
        for index, step in enumerate(scope.steps):
            if step.op[0] == DOMAIN:
                yield _nsa_node(step.node, index, scope, folder, values)


def _folder_of(folder: Path | None) -> Folder:
    return Folder(lambda tensor: _constant_array(tensor, folder))


def _nsa_node(node: NodeProto, index: int, scope: Scope, folder: Path | None, values: Folder) -> NsaNode:
    name = node_name(node, index)
    if node.op_type not in OPERATORS:
        return NsaNode(node, name, scope, index)
    inputs: dict[str, TensorFacts] = {}
    constants: dict[str, Integers] = {}
    masks: dict[str, Mask] = {}
    unreadable: dict[str, str] = {}
    for formal, value in zip(OPERATORS[node.op_type].input_names, node.input, strict=False):
        if not value:
            continue
        inputs[formal] = tensor_facts(scope.type_of(value))
        tensor = scope.constant(value)
        if tensor is None:
            _fold(formal, values.value(scope, value), inputs, constants)
        else:
            _read_constant(formal, value, tensor, folder, inputs, constants, masks, unreadable)
    attributes = {attribute.name: attribute_value(attribute) for attribute in node.attribute}
    facts = NodeFacts(node.op_type, attributes, inputs, constants, masks)
    return NsaNode(node, name, scope, index, facts, tuple(_without_flood(facts)), unreadable)


def _read_constant(
    formal: str,
    name: str,
    tensor: TensorProto,
    folder: Path | None,
    inputs: Mapping[str, TensorFacts],
    constants: dict[str, Integers],
    masks: dict[str, Mask],
    unreadable: dict[str, str],
) -> None:
    """Add the values of a constant index input or mask, or why there are none."""
    dtype = inputs[formal].dtype
    if dtype is None:
        unreadable[formal] = f"{name!r} has no element type"
    elif dtype in ("int32", "int64", "bool"):
        try:
            data = external_bytes(tensor, folder)
        except ValueError as error:
            unreadable[formal] = str(error)
            return
        if dtype == "bool" and (mask := mask_values(tensor, data)) is not None:
            masks[formal] = mask
        elif (values := integer_values(tensor, data)) is not None:
            constants[formal] = values
        elif tensor.data_location != TensorProto.EXTERNAL:
            unreadable[formal] = f"the data of {name!r} does not fit its shape {list(tensor.dims)}"


def _fold(formal: str, value: Array | None, inputs: dict[str, TensorFacts], constants: dict[str, Integers]) -> None:
    """Add what nodes make of constants for an index input, and its type and shape where the model leaves them open."""
    if value is None or formal not in _INDEX_INPUTS:
        return
    known = inputs[formal]
    inputs[formal] = TensorFacts(known.dtype or str(value.dtype), value.shape if known.shape is None else known.shape)
    if inputs[formal].dtype == str(value.dtype) and value.dtype.name in ("int32", "int64"):
        constants[formal] = value.astype(np.int64)


def _constant_array(tensor: TensorProto, folder: Path | None) -> Array | None:
    """The values of a constant in their own type; None for large ones, other types and those that cannot be read."""
    constant = inside(tensor, folder, SMALL_BYTES)
    if len(constant.int32_data) > MAX_ELEMENTS or len(constant.int64_data) > MAX_ELEMENTS:
        return None
    if constant.HasField("raw_data") and len(constant.raw_data) > 8 * MAX_ELEMENTS:
        return None
    values = integer_values(constant)
    return values.astype(np.int32) if values is not None and constant.data_type == TensorProto.INT32 else values
