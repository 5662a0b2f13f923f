"""Translations for ``torch.onnx.export(dynamo=True)``: one function per operator.

The same function serves our op and torch_npu's, both when it is registered on import (`register`) and when it is
passed explicitly (`onnx_translation_table`).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import GenericAlias
from typing import Any, Optional, TypeVar, Union
from weakref import WeakSet

import onnx
import onnxscript
import torch
from onnxscript import BFLOAT16, BOOL, FLOAT16, INT32, INT64
from torch.export import ExportedProgram
from torch.fx import Node

from nsa_onnx.operators import schema
from nsa_onnx.operators.base import T
from nsa_onnx.operators.contract import DOMAIN, OPSET_VERSION

from . import private
from .mistakes import LOST_UPDATE
from .operators import OPERATORS
from .operators.base import NAMESPACE, Op, TorchOperator, find_op

# onnxscript reads these as annotations: they are inputs, an int is an attribute. It knows Optional and Union, not their
# shorter spelling.
# ruff: noqa: UP007, UP045
Float16 = TypeVar("Float16", bound=Union[FLOAT16, BFLOAT16])
_TYPES: dict[str, Any] = {T: Float16, "tensor(int64)": INT64, "tensor(int32)": INT32, "tensor(bool)": BOOL}


def _translation(operator: TorchOperator) -> Any:
    """What torch's exporter calls with the arguments of the torch op, and gets the results of a node from.

    Constants and SymInts become inputs by themselves. In-place ops never arrive: functionalization has replaced them.
    """
    node = operator.node

    def translate(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        for name in operator.lengths:
            if given.get(name) is None:
                raise TypeError(f"{name} is missing: {node.op_type} needs it; pass it in the model")
        schema.register()
        opset = onnxscript.values.Opset(DOMAIN, OPSET_VERSION)
        op = onnxscript.values.Op(opset, node.op_type, onnx.defs.get_schema(node.op_type, OPSET_VERSION, DOMAIN))
        kinds = {one.name: float if one.is_float else int for one in node.attributes}
        attributes = {name: kind(given[name]) for name, kind in kinds.items()}  # a bool is an int in a node
        return op(*(given.get(name) for name in node.input_names), **attributes)

    signature = _signature(operator)
    return _callable(translate, operator.name, signature)


def _refusal(operator: TorchOperator, op: Op) -> Any:
    """Stands for the translation of an op that no graph can have, and says why."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(op.not_in_graphs)

    return _callable(refuse, op.name, _signature(operator))


def _callable(function: Callable[..., Any], name: str, signature: inspect.Signature) -> Any:
    function.__name__ = name
    function.__signature__ = signature  # type: ignore[attr-defined]
    hints = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    function.__annotations__ = {**hints, "return": signature.return_annotation}
    return private.translation(function, DOMAIN, OPSET_VERSION)


def _signature(operator: TorchOperator) -> inspect.Signature:
    """The arguments of the torch op, with the types of the node."""
    node = operator.node
    types: dict[str, Any] = {one.name: _TYPES[one.type] for one in node.inputs}
    types |= {one.name: float if one.is_float else int for one in node.attributes}
    parameters = []
    for name, parameter in operator.parameters.items():
        optional = parameter.default is None or name in operator.lengths  # torch_npu's schema lets lengths out
        kind, default = (Optional[types[name]], None) if optional else (types[name], parameter.default)
        parameters.append(parameter.replace(annotation=kind, default=default))
    results = tuple(_TYPES[one.type] for one in node.outputs)
    return inspect.Signature(
        parameters, return_annotation=results[0] if len(results) == 1 else GenericAlias(tuple, results)
    )


_TRANSLATIONS = {operator.name: _translation(operator) for operator in OPERATORS}


def _translations() -> dict[str, Callable[..., Any]]:
    """By each op of torch that the operator is written as, and by those that no graph can have.

    Of torch_npu's ops those of a form of their own are not here: they become ours before (`private.decompose`).
    """
    table: dict[str, Callable[..., Any]] = {}
    for operator in OPERATORS:
        names = [f"{NAMESPACE}::{name}" for name in operator.op.schemas]
        names += [operator.npu_op] if operator.npu_op and operator.npu_form is None else []
        table |= dict.fromkeys(names, _TRANSLATIONS[operator.name])
        for op in (op for op in operator.more if op.not_in_graphs):
            table |= {f"{NAMESPACE}::{name}": _refusal(operator, op) for name in op.schemas}
    return table


def onnx_translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For ``torch.onnx.export(..., custom_translation_table=...)``: every op of ours that exists.

    torch_npu's ops are in it once torch_npu has been imported. Without the table, importing
    ``nsa_onnx.exporters`` has the same effect.
    """
    found = {find_op(name): function for name, function in _translations().items()}
    return {op: function for op, function in found.items() if op is not None}


def register() -> None:
    """Make plain ``torch.onnx.export(dynamo=True)`` know the ops. Idempotent.

    Ops that do not exist are skipped there, so that torch_npu's may come later.
    """
    for name, function in _translations().items():
        private.register_translation(function, name)


# --------------------------------------------------------------------------------------------------
# Caches that would vanish

_looked_after = ContextVar("nsa_onnx_caches_looked_after", default=False)
_warned: WeakSet[ExportedProgram] = WeakSet()


@contextmanager
def caches_looked_after() -> Iterator[None]:
    """`nsa_onnx.exporters.export` makes outputs of the caches: no warning inside."""
    token = _looked_after.set(True)
    try:
        yield
    finally:
        _looked_after.reset(token)


def warn_of_lost_caches() -> None:
    """During torch.onnx.export: warn of caches that the program updates but does not return.

    Called while an op that updates a cache is functionalized; torch itself drops such an update without a word.
    """
    program = None if _looked_after.get() else private.program_being_exported()
    if program is None or program in _warned:
        return
    _warned.add(program)
    if lost := lost_caches(program):
        warnings.warn(LOST_UPDATE.format(", ".join(lost)), stacklevel=2)


def lost_caches(program: ExportedProgram) -> list[str]:
    """Arguments, buffers and parameters that a not yet functionalized program updates and does not return."""
    (output,) = program.graph.find_nodes(op="output")
    returned = {_origin(node) for node in output.all_input_nodes}
    updated = [_origin(written) for node in program.graph.nodes for written in _written(node)]
    lost = dict.fromkeys(node for node in updated if node.op == "placeholder" and node not in returned)
    signature = program.graph_signature
    names = {name: f"buffer {held}" for name, held in signature.inputs_to_buffers.items()}
    names |= {name: f"parameter {held}" for name, held in signature.inputs_to_parameters.items()}
    return [names.get(node.name, f"argument {node.name}") for node in lost]


def _written(node: Node) -> list[Node]:
    """The arguments that an op updates in place, by its schema."""
    schema = private.schema(node.target)
    if schema is None or not schema.is_mutable:
        return []
    values = [
        (a, node.args[i] if i < len(node.args) else node.kwargs.get(a.name)) for i, a in enumerate(schema.arguments)
    ]
    written = [value for a, value in values if a.alias_info is not None and a.alias_info.is_write]
    return [value for value in written if isinstance(value, Node)]


def _origin(node: Node) -> Node:
    """The node whose memory ``node`` is or shows; a copy counts as a way to return it."""
    while (source := _source(node)) is not None:
        node = source
    return node


def _source(node: Node) -> Node | None:
    """The argument that the result aliases, by the op's schema: of a view, or of an in-place op."""
    schema = private.schema(node.target)
    if schema is None or len(schema.returns) != 1:
        return None
    alias = schema.returns[0].alias_info
    for index, argument in enumerate(schema.arguments):
        aliased = alias and argument.alias_info and argument.alias_info.before_set == alias.before_set
        if aliased or (index == 0 and node.target in _COPIES):
            source = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            return source if isinstance(source, Node) else None
    return None


_COPIES = (torch.ops.aten.clone.default, private.to_copy())
