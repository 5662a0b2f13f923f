"""Measures what a decode step costs that has nothing to do, for every operator with pages. Runs in a worker process.

Such a step reads no page: all lengths are 0 and all indices -1. What is left is onnxruntime's call, the node's look at
its inputs, and the plan: the check of every index, and where the work lies. The call and the look are beside a Sum of
as many inputs, since onnxruntime itself takes its time for each. The plan is measured on the C function.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.base import Operator, dim_names
from nsa_onnx.operators.contract import DOMAIN
from nsa_onnx.runtime import native

from . import graphs

BATCHES = (1, 16, 256)
_NODES = ("node", "sum", "identity")
_CALLS = 500


def paged() -> list[Operator]:
    """The decode operators: those that read a table of pages."""
    return [one for one in OPERATORS.values() if any(port.page_size for port in one.inputs)]


def _inputs(operator: Operator, batch: int) -> dict[str, Any]:
    """A step of `batch` sequences with nothing to do, by the inputs' names: the operator's example, but for indices."""
    example, found = operator.example, {}
    for one in operator.inputs:
        shape = example.shapes[one.name] if one.name in example.shapes else example.indices[one.name].shape
        shape = tuple(batch if name == "B" else dim for name, dim in zip(dim_names(one), shape, strict=True))
        if one.name in example.shapes:
            found[one.name] = np.zeros(shape, np.float16)
        else:
            found[one.name] = np.full(shape, 0 if one.lengths else -1, example.indices[one.name].dtype)
    return found


def _node(operator: Operator, inputs: dict[str, Any], threads: int) -> Callable[[], None]:
    """The step as a node, inputs and outputs where they lie."""
    kinds = {name: (helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in inputs.items()}
    results = [one.name for one in operator.outputs]
    node = helper.make_node(operator.op_type, list(inputs), results, domain=DOMAIN, **operator.example.attributes)
    model = graphs.model([node], kinds, results[0], helper.np_dtype_to_tensor_dtype(np.dtype(np.float16)), {})
    for one in operator.outputs[1:]:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(one.dtype("float16")))
        model.graph.output.append(helper.make_tensor_value_info(one.name, kind, None))
    session = graphs.session(model, threads)
    made = session.run(results, inputs)
    arrays = {
        one.name: inputs[one.updates] if one.updates else got for one, got in zip(operator.outputs, made, strict=True)
    }
    return graphs.bound(session, inputs, arrays)


def _function(operator: Operator, inputs: dict[str, Any]) -> Callable[[], None]:
    """The C function on the step, on one thread, its arguments ready."""
    caught: list[Any] = []
    call, native.call = native.call, lambda *arguments: caught.append(arguments)
    try:
        operator.call(list(inputs.values()), operator.example.attributes)
    finally:
        native.call = call
    ((name, *arguments),) = caught
    *arguments, _ = arguments  # threads
    own = {array.ctypes.data for array in inputs.values()}
    results = [np.zeros(one.shape, np.int32) for one in arguments if _is_result(one, own)]  # the call's are gone
    fresh = (native.Buffer(array.ctypes.data, array.shape) for array in results)
    arguments = [next(fresh) if _is_result(one, own) else one for one in arguments]
    error = ctypes.create_string_buffer(512)
    converted = [part for one in (*arguments, 1) for part in native._converted(one)]
    function = getattr(native._library(), name)
    size = ctypes.c_int64(512)

    def run() -> None:
        assert inputs and results is not None  # kept alive
        assert function(*converted, error, size) == 0, error.value

    run()
    return run


def _is_result(argument: Any, own: set[int]) -> bool:
    """An array of the call's own: memory for a result, large enough as int32 for each of their types."""
    return isinstance(argument, native.Buffer) and argument.address not in own


def _microseconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    for _ in range(_CALLS):
        call()
    return 1e6 * (time.perf_counter() - begin) / _CALLS


def idle(threads: int, rounds: int) -> list[dict[str, Any]]:
    """Each operator and batch: the node beside an Identity and a Sum of as many inputs, and the plan alone."""
    x, y = np.ones(16, np.float32), np.zeros(16, np.float32)
    identity = graphs.bound(graphs.session(graphs.identity(), threads), {"x": x}, {"y": y})
    rows = []
    for operator in paged():
        names = operator.input_names
        total = graphs.bound(graphs.session(graphs.sum_of(names), threads), dict.fromkeys(names, x), {"y": y})
        nothing = _function(operator, _inputs(operator, 0))  # Python's own call, and the checks of shapes
        for batch in BATCHES:
            inputs = _inputs(operator, batch)
            calls = {
                "node": _node(operator, inputs, threads),
                "identity": identity,
                "sum": total,
                "function": _function(operator, inputs),
                "nothing": nothing,
            }
            times = [{name: _microseconds(call) for name, call in calls.items()} for _ in range(rounds + 1)][1:]
            rows.append(
                {
                    "operator": operator.op_type,
                    "inputs": len(names),
                    "threads": threads,
                    "sequences": batch,
                    **{f"{name}_us": statistics.median(of[name] for of in times) for name in _NODES},
                    "over_sum_us": statistics.median(of["node"] - of["sum"] for of in times),
                    "plan_us": statistics.median(of["function"] - of["nothing"] for of in times),
                }
            )
    return rows
