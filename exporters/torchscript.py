"""The legacy exporter, ``torch.onnx.export(..., dynamo=False)``: how our ops are traced and translated.

The legacy exporter runs the model once and records the ops. For each recorded op it calls a function that is
registered under the op's name (overloads share one), which writes ONNX nodes.

A trace has no functionalization (torch's step that replaces in-place ops). So the ops that update a cache do it
themselves: the functional op is recorded, and from then on its result stands for the cache. The cache itself keeps its
contents, so that a buffer is exported as it was before the trace.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.onnx import utils

from nsa_onnx.operators.base import Operator, T
from nsa_onnx.operators.contract import DOMAIN
from nsa_onnx.operators.facts import NodeFacts

from . import ops, private
from .mistakes import LOST_UPDATE
from .operators import OPERATORS
from .operators.base import NAMESPACE, TorchOperator

# Lowest opset that the legacy exporter writes; a symbolic serves all later ones.
_OPSET = 9

# --------------------------------------------------------------------------------------------------
# Tracing

# The functional ops that stand for an update, as the trace names them.
_UPDATES = {f"{NAMESPACE}::{operator.op.name}": operator for operator in OPERATORS if operator.in_place}
# An op with side effects, as far as the trace knows: it keeps an unused update in the graph until the end
# of the trace. The exporter deletes it afterwards.
_MARKER = "_updated_in_trace"
ops.LIBRARY.define(f"{_MARKER}(Tensor cache) -> ()", alias_analysis="CONSERVATIVE")
ops.LIBRARY.impl(_MARKER, lambda cache: None, "CompositeExplicitAutograd")


def install_tracer(library: torch.library.Library, name: str, operator: TorchOperator) -> None:
    """Have traces record the in-place op ``name`` ("op" or "op.overload") as a function.

    Outside of an ONNX export (torch.jit.trace) the trace writes the result back into the cache.
    """

    def trace(*args: Any, cache: Tensor, **kwargs: Any) -> Tensor:
        operator.check_lengths(kwargs)
        old = private.traced_value(cache)
        new = cast(Tensor, operator.overload(operator.op, kwargs)(*args, cache=cache, **kwargs))
        if not torch.onnx.is_in_onnx_export():
            return cache.copy_(new)
        _refuse_view(old, operator)
        if library.ns == "npu" and _has_unused_int():
            _warn_of_frozen_lengths(operator, kwargs)
        private.set_traced_value(cache, private.traced_value(new))
        getattr(getattr(torch.ops, NAMESPACE), _MARKER)(new)
        _check_after_trace()
        return cache

    library.impl(name, trace, "Tracer")


def install_converter(library: torch.library.Library, name: str, operator: TorchOperator, run: Any) -> None:
    """Have traces record what torch_npu's op ``name`` is made of, by ``run``."""

    def trace(*args: Any, **kwargs: Any) -> Any:
        operator.check_lengths(kwargs)
        if torch.onnx.is_in_onnx_export() and _has_unused_int():
            _warn_of_frozen_lengths(operator, kwargs)
        return run(*args, **kwargs)

    library.impl(name, trace, "Tracer")


def _cache_operand(update: Any) -> Any:
    return list(update.inputs())[-1]


def _refuse_view(value: Any, operator: TorchOperator) -> None:
    node = value.node()
    if node.kind() not in (*_UPDATES, "prim::Param") and "Tensor(a)" in node.schema():
        raise RuntimeError(
            f"cache is a view ({node.kind()}) of another tensor, which would not see the update: the legacy exporter "
            f"does not follow views. Use dynamo=True, or give {operator.name} the whole tensor"
        )


def _warn_of_frozen_lengths(operator: TorchOperator, arguments: dict[str, Any]) -> None:
    """``int[]`` in torch_npu's schema carries constants only."""
    names, npu = " and ".join(operator.lengths), operator.npu_function
    example = ", ".join(str(list(arguments[name])) for name in operator.lengths)
    warnings.warn(
        f"the trace computes integers that it does not use: if they are the {names} of {npu} (int[] in its schema), "
        f"the graph has the example's, {example}, for every run. Call nsa_onnx.exporters.{operator.name}, which takes "
        "lengths computed from shapes and int64 tensors",
        stacklevel=3,
    )


def _has_unused_int() -> bool:
    """Whether the trace so far ends in integer arithmetic: what is left of ``[2 * x.shape[0]]`` in an ``int[]``.

    A size that is only looked at does not count: ``x.shape`` records all of them.
    """
    values = (
        value
        for node in _all_nodes(private.trace_graph())
        for value in node.outputs()
        if node.kind().startswith("aten::") and not value.uses() and value.type().kind() == "TensorType"
    )
    return any(value.type().scalarType() == "Long" and value.type().dim() == 0 for value in values)


def _all_nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _all_nodes(inner)


def _check_after_trace() -> None:
    """Have `_warn_of_lost_updates` called once the model has run.

    The exporter deletes an unused update before it asks for any symbolic, so the end of the trace is the
    only moment to look: when the function that runs the model dies.
    """
    model = private.traced_model()
    if model is not None and model not in _watched:
        _watched.add(model)
        weakref.finalize(model, _warn_of_lost_updates, private.trace_graph())


_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_RETURNS = ("prim::Return", "prim::TupleConstruct", "prim::ListConstruct", "prim::DictConstruct")


def _warn_of_lost_updates(graph: Any) -> None:
    """Warn of an update of the model's inputs or buffers that is neither returned nor updated again."""
    for node in graph.nodes():
        if node.kind() != f"{NAMESPACE}::{_MARKER}":
            continue
        (updated,) = node.inputs()
        users = [use.user for use in updated.uses()]
        kept = any(user.kind() in _RETURNS for user in users)
        updated_again = any(user.kind() in _UPDATES and _cache_operand(user) == updated for user in users)
        if _is_state(updated.node()) and not kept and not updated_again:
            operator = _UPDATES[updated.node().kind()]
            warnings.warn(LOST_UPDATE.format(f"a cache of {operator.name}"), stacklevel=2)


def _is_state(update: Any) -> bool:
    """Whether what a traced op updates is, at the root, an input or buffer of the model."""
    while update.kind() in _UPDATES:
        update = _cache_operand(update).node()
    return bool(update.kind() == "prim::Param")


for _operator in _UPDATES.values():
    for _name in _operator.in_place.schemas if _operator.in_place else ():
        install_tracer(ops.LIBRARY, _name, _operator)


# --------------------------------------------------------------------------------------------------
# Writing nodes


def register() -> None:
    """Make ``torch.onnx.export(dynamo=False)`` know our ops and torch_npu's. Idempotent."""
    for operator in OPERATORS:
        npu = [f"npu::{operator.npu_function}"] if operator.npu_op and operator.npu_form is None else []
        for op in (f"{NAMESPACE}::{operator.name}", *npu):
            utils.register_custom_op_symbolic(op, _symbolic(operator), _OPSET)
        for one in (one for one in operator.more if one.not_in_graphs):
            utils.register_custom_op_symbolic(f"{NAMESPACE}::{one.name}", _refusal(one.not_in_graphs), _OPSET)


def _refusal(message: str) -> Any:
    def refuse(g: Any, *arguments: Any) -> Any:
        raise RuntimeError(message)

    return refuse


def _symbolic(operator: TorchOperator) -> Any:
    """What the exporter calls with the recorded arguments of the torch op, and gets the results of a node from."""
    node = operator.node

    def write(g: Any, *arguments: Any) -> Any:
        given = dict(zip(operator.parameters, arguments, strict=True))
        attributes, suffixed = {}, {}  # the suffix says the attribute's type
        for one in node.attributes:
            kind = "f" if one.is_float else "i"
            attributes[one.name] = private.constant_argument(given[one.name], one.name, kind)
            suffixed[f"{one.name}_{kind}"] = attributes[one.name]
        constants = {}
        for name in operator.lengths:
            if (values := private.constant_ints(given[name])) is not None:
                constants[name] = np.array(values, dtype=np.int64)
        _refuse_dynamic(operator, given, constants)
        operands = [given[name] for name in node.input_names]
        while private.is_left_out(operands[-1]):
            operands.pop()
        known = node.known_dims(NodeFacts(node.op_type, attributes, {}, constants))
        for name, array in constants.items():
            operands[node.input_names.index(name)] = g.op("Constant", value_t=torch.from_numpy(array))
        made = g.op(f"{DOMAIN}::{node.op_type}", *operands, outputs=len(node.outputs), **suffixed)
        for number, value in enumerate(made if len(node.outputs) > 1 else [made]):
            value.setType(_output_type(node, number, given, known))
        return made

    return write


def _output_type(node: Operator, number: int, given: Mapping[str, Any], known: Mapping[tuple[int, int], int]) -> Any:
    """Of an output of a node, from the types of its inputs and the dims that follow from constants."""
    output, shapes = node.outputs[number], {name: given[name].type().varyingSizes() for name in node.float_inputs}
    kind = given[output.updates or node.float_inputs[0]].type()
    if output.type != T:
        kind = kind.with_dtype(getattr(torch, output.type.removeprefix("tensor(").removesuffix(")")))
    sizes = []
    for axis, sources in enumerate(output.dims):
        sizes_of_sources = (shapes[name][index] for name, index in sources if shapes.get(name) is not None)
        size = next((size for size in sizes_of_sources if size is not None), None)
        sizes.append(known.get((number, axis), size))
    return kind.with_sizes(sizes)


def _refuse_dynamic(operator: TorchOperator, given: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
    """A trace has made constants of lengths computed from a shape: they hold for one size only."""
    for tie in operator.ties:
        shape = given[tie.input].type().varyingSizes()
        if tie.lengths in constants and shape is not None and shape[0] is None:
            raise RuntimeError(
                f"{tie.dim} is dynamic, but {tie.constant} is a constant in the trace "
                f"({constants[tie.lengths].tolist()}): the graph would hold for one size only. Pass {tie.lengths} as "
                f"an int64 tensor (nsa_onnx.exporters.{operator.name}), or make the dim static"
            )
