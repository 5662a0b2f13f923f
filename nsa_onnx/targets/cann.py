"""Target ``cann``: onnxruntime's CANN provider with our own kernels, and what the provider itself computes wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto, NodeProto, helper

from ..analysis import Analysis
from ..graph.scopes import Scope
from ..graph.tensors import tensor_facts
from ..graph.walk import is_standard
from ..operators.contract import Shape
from ..operators.model_text import model
from ..rulebook.finding import Finding
from ..rulebook.rule import of_node, rule
from . import vendor, vendor_attention_rules
from .base import Limits, Target
from .preparing import Prefixes, PrepareResult, Work, insert, label
from .windows import Sizes, size_limits

# What ascend_kernels has been run with (tests/test_ascend_kernels.py): its tiling divides larger sizes, too, but nobody
# has seen it do so.
_OURS = "our Ascend kernels"
_PREFILL = Sizes(("float16", "bfloat16"), 16, 256, 128, 16, 128)
_DECODE = Sizes(("float16", "bfloat16"), 16, 256, 63, 16, 127, pages=(64, 128))
LIMITS = {
    # What we have no kernel for, the vendor's operators compute.
    **vendor.LIMITS,
    "NsaCompress": size_limits(_PREFILL, 3, _OURS),
    "NsaCompressInfer": size_limits(_DECODE, 4, _OURS),
}

# --------------------------------------------------------------------------------------------------
# The provider

_BROADCASTING = ("Add", "Sub", "Mul", "Div")


def _broadcast(full: bool) -> str:
    a = "2, 3" if full else "2, 1"
    return model([f"float[{a}] a", "float[1, 3] b"], ["float[2, 3] y"], ["y = Sub (a, b)"], imports="")


@rule(
    "NSA038",
    "the CANN provider: no node broadcasts both inputs",
    example=_broadcast(full=False),
    accepted=_broadcast(full=True),
    hint="give one side its full shape first, with an Expand: nsa-onnx prepare --target cann does it",
)
def _both_broadcast(model: Analysis) -> Iterator[Finding]:
    """Add, Sub, Mul and Div of onnxruntime's CANN provider (1.24.4) compute a wrong result, silently, where both
    inputs are broadcast, as in [T, 1] - [1, N]: both operands are put into one piece of memory.

    Looked at where both shapes are known; a named dim is taken to differ from 1.
    """
    for scope in model.scopes:
        for index, node in enumerate(scope.nodes):
            if (shapes := _two_broadcast(scope, node)) is not None:
                yield of_node(scope, index, node, f"broadcasts both of its inputs, {' and '.join(map(_shape, shapes))}")


def _two_broadcast(scope: Scope, node: NodeProto) -> tuple[Shape, Shape] | None:
    """The shapes of both inputs if the provider computes something wrong from them."""
    if node.op_type not in _BROADCASTING or not is_standard(node) or len(node.input) != 2:
        return None
    first, second = (tensor_facts(scope.type_of(name)).shape for name in node.input)
    if first is None or second is None or not _grows(first, second) or not _grows(second, first):
        return None
    return first, second


def _grows(shape: Shape, other: Shape) -> bool:
    """Whether a shape is broadcast along some axis of the other: it is 1 or missing there, and the other is not 1."""
    padded = (*([1] * (len(other) - len(shape))), *shape)[-len(other) :] if other else ()
    return any(mine == 1 and dim != 1 for mine, dim in zip(padded, other, strict=True))


def _shape(shape: Shape) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"


PROVIDER_RULES = (_both_broadcast,)

# --------------------------------------------------------------------------------------------------
# The way out

MIN_EXPAND_OPSET = 8


def prepare(
    model: str | os.PathLike[str] | ModelProto, *, folder: Path | None = None, limits: Limits = LIMITS
) -> PrepareResult:
    """A copy of the model that the provider computes right: no node broadcasts both of its inputs.

    The first input gets its full shape from an Expand before the node. That changes no value, on no runtime.
    Preparing a prepared model changes nothing.

    Args:
        model: path of an ONNX file, or the model itself, which is not changed.
        folder: where the model's external data is; the file's own for a path.
        limits: of the target.

    Raises:
        PrepareError: the target does not have an operator, or the model's version of the standard operators no Expand.
        UnreadableModelError: the file cannot be read, or the model holds text that is not UTF-8, or no graph.
    """
    work = Work.of(model, folder)
    seen = work.read(limits)
    prefixes = Prefixes(seen)
    for scope in seen.scopes:
        found = [place for place in enumerate(scope.nodes) if _two_broadcast(scope, place[1]) is not None]
        opset = scope.imports.get("", MIN_EXPAND_OPSET)
        for position, node in reversed(found):
            if opset < MIN_EXPAND_OPSET:
                work.reasons.append(
                    f"{label(node)}: broadcasts both of its inputs; Expand needs version >= {MIN_EXPAND_OPSET} of the "
                    f"standard operators, got {opset}: export the model with a newer one"
                )
                continue
            insert(scope.nodes, position, _expanded(node, prefixes.next()))
        work.changed(len(found), f"{scope.place}: gave an input its full shape before nodes that broadcast both")
    work.stop_if_refused()
    return work.result()


def _expanded(node: NodeProto, prefix: str) -> list[NodeProto]:
    """Nodes that broadcast the first input to the shape of the second; the node then reads their result."""
    first, second = node.input
    shape, full = f"{prefix}shape", f"{prefix}full"
    node.input[0] = full
    return [
        helper.make_node("Shape", [second], [shape], name=shape, domain=node.domain),
        helper.make_node("Expand", [first, shape], [full], name=full, domain=node.domain),
    ]


TARGET = Target(
    "cann",
    "onnxruntime's CANN provider with our own kernels, and the vendor's where we have none.",
    LIMITS,
    (*vendor_attention_rules.RULES, *PROVIDER_RULES),
    prepare,
)
