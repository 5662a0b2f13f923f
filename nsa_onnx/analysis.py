"""A model as the rules see it: its scopes, its NSA nodes and what is known of them. Trusts nothing in the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from . import spec
from .graph.external import SMALL_BYTES, external_bytes, inside
from .graph.folding import MAX_ELEMENTS, Array, Folder
from .graph.inference import computed, infer, with_constants, without_weights
from .graph.scopes import Scope, add_types
from .graph.scopes import scopes as find_scopes
from .graph.tensors import Integers, TensorFacts, attribute_value, integer_values, tensor_facts
from .graph.walk import node_name, text
from .operators.facts import NodeFacts
from .operators.schema import INPUT_NAMES, OUTPUT_RANKS, observing, violations

# Of one kind of mistake, as many are reported per node, then their number: a batch has thousands of lengths.
MAX_ALIKE = 8


_INDEX_INPUTS = frozenset({"actual_seq_len", "slot_mapping", "block_table"})


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
    violations: tuple[spec.Violation, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def op_type(self) -> str:
        return text(self.proto.op_type)


@dataclass(frozen=True)
class Model:
    """What the rules look at.

    Attributes:
        proto: the model, as it is in the file.
        scopes: all graphs and functions, the main graph first.
        nodes: the nodes of our domain, in all of them.
        inferred: what onnx infers for the values of the main graph when nothing but its inputs is declared.
        observed: (node's name, operator, what is wrong) of our nodes as onnx met them, in functions once per call.
        inference_error: why onnx could not infer; empty if it could.
        target: what the model is meant for.
        folder: of its external data.
        values: what its small integer nodes compute from constants.
    """

    proto: ModelProto
    scopes: tuple[Scope, ...]
    nodes: tuple[NsaNode, ...]
    inferred: Mapping[str, TypeProto]
    observed: Sequence[tuple[str, str, spec.Violation]]
    inference_error: str
    target: str
    folder: Path | None
    values: Folder


def read(proto: ModelProto, folder: Path | None, target: str = "cpu") -> Model:
    """Look at a model. ``folder`` is where its external data may be; without it, none is read."""
    light = without_weights(proto, folder)
    inferred, seen, error = infer(light, OUTPUT_RANKS, observing)
    scopes = tuple(find_scopes(proto, inferred))
    values = Folder(lambda tensor: _constant_array(tensor, folder))
    constants = {} if error else computed(scopes[0], values)
    if constants:
        # Once more, with what nodes compute from constants as constants: T' and shapes then follow from them.
        again, seen_again, error_again = infer(with_constants(light, constants), OUTPUT_RANKS, observing)
        if not error_again:
            inferred, seen = {**inferred, **again}, seen_again
            add_types(scopes[0], again)
    observed = [(name, facts.op_type, violation) for name, facts in seen for violation in _without_flood(facts)]
    nodes: list[NsaNode] = []
    for scope in scopes:
        for index, node in enumerate(scope.nodes):
            if node.domain == spec.DOMAIN:
                nodes.append(_nsa_node(node, index, scope, folder, values))
    return Model(proto, scopes, tuple(nodes), inferred, observed, error, target, folder, values)


# --------------------------------------------------------------------------------------------------
# Nodes


def _without_flood(facts: NodeFacts) -> list[spec.Violation]:
    """The violations, those alike summed up beyond the first few."""
    counts: Counter[str] = Counter()
    kept: list[spec.Violation] = []
    for violation in violations(facts):
        counts[violation.row.id] += 1
        if counts[violation.row.id] <= MAX_ALIKE:
            kept.append(violation)
    rows = {violation.row.id: violation.row for violation in kept}
    for row_id, count in counts.items():
        if count > MAX_ALIKE:
            row = replace(rows[row_id], message=f"{rows[row_id].argument}: {{}} more like these")
            kept.append(spec.Violation(row, (count - MAX_ALIKE,)))
    return kept


def _nsa_node(node: NodeProto, index: int, scope: Scope, folder: Path | None, values: Folder) -> NsaNode:
    name = node_name(node, index)
    if node.op_type not in INPUT_NAMES:
        return NsaNode(node, name, scope, index)
    inputs: dict[str, TensorFacts] = {}
    constants: dict[str, Integers] = {}
    unreadable: dict[str, str] = {}
    for formal, value in zip(INPUT_NAMES[node.op_type], node.input, strict=False):
        if not value:
            continue
        inputs[formal] = tensor_facts(scope.type_of(value))
        tensor = scope.constant(value)
        if tensor is None:
            _fold(formal, values.value(scope, value), inputs, constants)
        else:
            _read_constant(formal, value, tensor, folder, inputs, constants, unreadable)
    attributes = {attribute.name: attribute_value(attribute) for attribute in node.attribute}
    facts = NodeFacts(node.op_type, attributes, inputs, constants)
    return NsaNode(node, name, scope, index, facts, tuple(_without_flood(facts)), unreadable)


def _read_constant(
    formal: str,
    name: str,
    tensor: TensorProto,
    folder: Path | None,
    inputs: Mapping[str, TensorFacts],
    constants: dict[str, Integers],
    unreadable: dict[str, str],
) -> None:
    """Add the values of a constant index input, or why there are none."""
    if inputs[formal].dtype is None:
        unreadable[formal] = f"{name!r} has no element type"
    elif inputs[formal].dtype in ("int32", "int64"):
        try:
            values = integer_values(tensor, external_bytes(tensor, folder))
        except ValueError as error:
            unreadable[formal] = str(error)
            return
        if values is not None:
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


# --------------------------------------------------------------------------------------------------
# Inference
