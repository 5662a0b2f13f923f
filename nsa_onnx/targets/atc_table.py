"""Writes the block table into a model where an operator of the vendor needs it and ours can do without."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from ..analysis import Analysis, NsaNode
from ..graph.walk import standard_opset
from ..operators import OPERATORS
from . import vendor
from .preparing import Prefixes, Work, insert, label

_TABLE = "block_table"
# What the vendor's limits say of an input that is missing, and `insert_tables` gives.
INSERTED = ("vendor_table",)
# A table of more pages is computed by the model instead of written into it.
MAX_CONSTANT_PAGES = 2**16
# Max of integers, which the computed table needs, came with this version.
MIN_TABLE_OPSET = 12


def insert_tables(work: Work, seen: Analysis) -> None:
    """Give every node without a block_table that it needs one: sequence b owns the pages b * P .. (b + 1) * P - 1."""
    prefixes = Prefixes(seen)
    tables: list[tuple[NsaNode, list[NodeProto]]] = []
    for node in seen.nodes:
        if node.facts is None or _TABLE not in vendor.vendors(node.op_type).required or _TABLE in node.facts.inputs:
            continue
        pages, sequences = node.facts.tensor("input").dim(0), vendor.batch(node.facts)
        prefix = prefixes.next()
        if pages is not None and sequences and pages % sequences == 0 and pages <= MAX_CONSTANT_PAGES:
            values = np.arange(pages, dtype="<i4").reshape(sequences, pages // sequences)
            made = [_constant(prefix + "block_table", values)]
            kind = f"a constant block_table [{sequences}, {pages // sequences}]"
        else:
            made = _table_nodes(node.proto, prefix)
            kind = "a block_table computed from its inputs' shapes"
            if not _can_compute(work, node.proto):
                continue
        tables.append((node, made))
        work.changes.append(f"{label(node.proto)}: inserted {kind}")
    for node, made in reversed(tables):
        del node.proto.input[OPERATORS[node.op_type].input_names.index(_TABLE) :]
        node.proto.input.append(made[-1].output[0])
        insert(node.scope.nodes, node.position, made)


def _can_compute(work: Work, node: NodeProto) -> bool:
    opset = standard_opset(work.model.opset_import)
    if opset is not None and opset < MIN_TABLE_OPSET:
        work.reasons.append(
            f"{label(node)}: block_table is absent and its shape not known; computing it needs version >= "
            f"{MIN_TABLE_OPSET} of the standard operators, got {opset}: give input and slot_mapping static shapes"
        )
        return False
    return True


def _constant(name: str, values: np.typing.NDArray[Any]) -> NodeProto:
    elem_type = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = helper.make_tensor(name, elem_type, values.shape, values.tobytes(), raw=True)
    return helper.make_node("Constant", [], [name], name=name, value=tensor)


def _table_nodes(node: NodeProto, prefix: str) -> list[NodeProto]:
    """Standard nodes that compute the default table of ``node`` under ``prefix + "block_table"``.

    Without attributes that older plugins of the converter pass over: start and end of Shape, allowzero of Reshape.
    """
    names = dict(zip(OPERATORS[node.op_type].input_names, node.input, strict=False))

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
