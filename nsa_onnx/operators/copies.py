"""Finds the functions of a model that are portable bodies of our operators, however they are written and named."""

from __future__ import annotations

from functools import cache

from onnx import FunctionProto, ModelProto

from ..graph.form import Form, form_of
from ..graph.walk import standard_opset
from . import OPERATORS
from .bodies import MIN_OPSET
from .contract import DOMAIN


def is_body(op_type: str, function: FunctionProto) -> bool:
    """Whether a function computes what the portable body of an operator does."""
    opset = standard_opset(function.opset_import)
    if opset is None or opset < MIN_OPSET or len(function.input) != len(OPERATORS[op_type].inputs):
        return False
    ours = _form_of_body(op_type, opset)
    theirs = form_of(function, max_nodes=2 * len(ours.nodes))
    return theirs is not None and ours.holds(theirs)


@cache
def _form_of_body(op_type: str, opset: int) -> Form:
    form = form_of(OPERATORS[op_type].body(opset), max_nodes=10_000)
    assert form is not None
    return form


def is_operator(function: FunctionProto) -> bool:
    """Whether a function has the name of an operator of ours, and so should be its body."""
    return function.domain == DOMAIN and function.name in OPERATORS


def copies(model: ModelProto) -> dict[tuple[str, str], str]:
    """Functions that are the portable body of an operator of ours under another name, and which operator that is.

    Tools that merge models rename functions and the nodes that call them (`onnx.compose`'s prefixes).
    """
    found: dict[tuple[str, str], str] = {}
    for function in model.functions:
        if not is_operator(function):
            op_type = next((one for one in OPERATORS if is_body(one, function)), None)
            if op_type is not None:
                found[(function.domain, function.name)] = op_type
    return found
