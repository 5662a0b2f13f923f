"""Checks that an exported graph computes what the model does: runs both on the example and compares.

How values are compared:

- What only our operators and operators that move data have computed: bit for bit. So are integers, unless they depend
  on rounded floats. (Without the native library, our operators are computed by their portable bodies, whose bits need
  not be those of the kernels in NumPy: they are operators like others then.)
- Other floats: within a bound, because onnxruntime and torch sum in different orders and may fuse operations.
- Integers that depend on rounded floats (an argmax): a difference is a warning, because a tie may fall either way.
- Floats that depend on such integers (attention to selected blocks): a difference is a warning where the model itself
  changes about as much when its arguments are rounded otherwise.
- An input that the graph has lost: the model must not depend on it in a single bit.

Where all floats of an example have one value (an empty cache), a lost write of that value could not be seen. So the
comparison is repeated with random values there.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx.shape_inference
import torch
from onnx import TensorProto
from torch import Tensor, nn

from nsa_onnx.graph.inference import without_weights
from nsa_onnx.operators.contract import DOMAIN
from nsa_onnx.runtime import native
from nsa_onnx.runtime import session as runtime
from nsa_onnx.runtime.values import from_ortvalue, to_ortvalue

from .observe import Args, Kwargs, Run, State, leaf_names, observe
from .private import leaves, with_leaves

# Largest difference over the largest value of the same row, by the coarsest type in the graph. One rounding is
# 2**-24, 2**-11 and 2**-8 of a value. Deep models add up some tens of roundings of the 16-bit types, and some
# thousands of float32's in sums over long rows. A write that is lost is a difference of the order of 1.
_BOUNDS = {torch.float64: 2.0**-30, torch.float32: 2.0**-10, torch.float16: 2.0**-6, torch.bfloat16: 2.0**-4}
_ROUNDINGS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_FLOATS: dict[int, torch.dtype] = {
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}

_TRIALS = 3  # runs on arguments that are rounded otherwise

# Standard operators that leave every element as it is, or round it once in the one way that IEEE knows (Cast).
_MOVES = frozenset(
    """
    Cast Compress Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements GatherND
    Identity OneHot Pad Range Reshape ReverseSequence ScatterElements ScatterND Shape Size Slice SpaceToDepth Split
    Squeeze Tile Transpose Trilu Unsqueeze Where
    """.split()  # noqa: SIM905, a list of names in quotes is three times as long
)

WAY_OUT = "verify=False writes the graph as it is"


@dataclass(frozen=True)
class Example:
    """What was exported, and how.

    Attributes:
        model: a module.
        inputs: for each input of the graph its leaf of (args, kwargs), in order, those included that it lost.
        training: the mode in which the model was exported; None for the one that it is in.
        advice: what to do about a graph that differs.
    """

    model: nn.Module
    args: Args
    kwargs: Kwargs
    inputs: dict[str, int]
    training: bool | None
    advice: str

    def with_leaves(self, changed: list[Any]) -> tuple[Args, Kwargs]:
        args, kwargs = with_leaves((self.args, self.kwargs), changed)
        return args, kwargs

    def observe(self, changed: list[Any] | None = None, seed: int | None = None) -> Run:
        args, kwargs = (self.args, self.kwargs) if changed is None else self.with_leaves(changed)
        return observe(self.model, args, kwargs, training=self.training, seed=seed)


def require_onnxruntime() -> None:
    """Before anything is exported: RuntimeError if a graph could not be verified."""
    try:
        runtime.require_trial_sessions()
    except RuntimeError as error:
        raise RuntimeError(f"the exported graph cannot be verified: {error}; or {WAY_OUT}, unverified") from error


def verify(
    path: Path, example: Example, states: Sequence[State], run: Run, others: Sequence[Args] = ()
) -> tuple[str, ...]:
    """Compare the graph in ``path`` with the model.

    Args:
        states: what the graph's outputs hand out, those that the model does not return as last outputs.
        run: the model's run on the example.
        others: further arguments to compare on.

    Returns:
        The inputs that the graph lacks; the model does not depend on them, as far as could be tried.

    Raises:
        RuntimeError: the graph differs, or cannot be run. Nothing has been written.
    """
    graph = _Graph(path)
    _refuse_missing(states, run)
    _compare(graph, example, states, run, leaves((example.args, example.kwargs)), "the example")
    changed, names = _with_random_values(example)
    again = _observe_if_legal(example, changed) if names else None
    if again is not None:
        _compare(graph, example, states, again, changed, f"the example with random values in {', '.join(names)}")
    for index, args in enumerate(others):
        other = replace(example, args=args)
        arguments = leaves((args, example.kwargs))
        _compare(graph, other, states, other.observe(), arguments, f"arguments {index} of verify")
    lost = tuple(name for name in example.inputs if name not in graph.inputs)
    for name in lost:
        _refuse_dependence(example, run, name)
    return lost


def _observe_if_legal(example: Example, arguments: list[Any]) -> Run | None:
    """The model's run on arguments that it may not be made for."""
    try:
        return example.observe(arguments)
    except Exception:
        return None


# --------------------------------------------------------------------------------------------------
# The graph


class _Graph:
    """A model file in onnxruntime, and what must hold of its outputs."""

    def __init__(self, path: Path) -> None:
        onnxruntime = runtime.onnxruntime_module()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is told by the exception
        # The file is compared, not what an optimizer makes of it; nor is a second copy of the weights of use.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            self.session = runtime.session_for_trial(path, options)
        except Exception as error:  # onnxruntime has many classes of them
            raise _cannot_run(error) from error
        model = onnx.load(path, load_external_data=False)
        self.types = _types(model)
        self.exact = _exact_values(model, self.types)
        self.chosen = _chosen_values(model, self.types, self.exact)
        floats = [_FLOATS[t] for t in self.types.values() if t in _FLOATS]
        self.coarsest = max(floats, key=lambda dtype: _ROUNDINGS[dtype], default=torch.float32)
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, feeds: dict[str, Tensor]) -> list[Tensor]:
        values = {name: to_ortvalue(feeds[name]) for name in self.inputs}
        try:
            results = self.session.run_with_ort_values(self.outputs, values)
        except Exception as error:
            raise _cannot_run(error) from error
        return [_to_torch(value) for value in results]


def _cannot_run(error: Exception) -> RuntimeError:
    message = (str(error).splitlines() or [""])[0]
    return RuntimeError(
        f"the exported graph cannot be verified, nothing is written: onnxruntime does not run it ({message}). "
        f"{WAY_OUT}, unverified"
    )


def _to_torch(value: Any) -> Tensor:
    array = from_ortvalue(value)
    if array.dtype.name == "bfloat16":  # torch takes no NumPy type of that name
        return torch.from_numpy(array.view("uint16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types by name; the legacy exporter declares those of inputs and outputs alone."""
    graph = model.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    with contextlib.suppress(Exception):  # whatever makes onnx raise; fewer types are known then
        values += onnx.shape_inference.infer_shapes(without_weights(model, None)).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in reversed(values)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _exact_values(model: onnx.ModelProto, types: dict[str, int]) -> set[str]:
    """Values without a rounding of their own: the same bits in every runtime."""
    exact = {""} | {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        moves = (node.domain == DOMAIN and native.is_here()) or (node.domain == "" and node.op_type in _MOVES)
        reduces = any(attribute.name == "reduction" and attribute.s != b"none" for attribute in node.attribute)
        whole = all(types.get(name, TensorProto.FLOAT) not in _FLOATS for name in node.output)
        if exact.issuperset(node.input) and ((moves and not reduces) or whole) and not _has_subgraph(node):
            exact.update(node.output)
    return exact


def _chosen_values(model: onnx.ModelProto, types: dict[str, int], exact: set[str]) -> set[str]:
    """Values that hang on integers which were computed from rounded numbers: what the highest of some scores leads to.

    Where two scores nearly tie, either may be chosen, and these values are others altogether.
    """
    whole = {name for name, dtype in types.items() if dtype not in _FLOATS}
    sizes, chosen = set(exact), set[str]()
    for node in model.graph.node:
        computed = sizes.issuperset(node.input) and whole.issuperset(node.output)
        if computed or (node.domain == "" and node.op_type in ("Shape", "Size")):
            sizes.update(node.output)
        elif not chosen.isdisjoint(node.input) or not sizes.issuperset(whole.intersection(node.input)):
            chosen.update(node.output)
    return chosen


def _has_subgraph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


# --------------------------------------------------------------------------------------------------
# Comparing


def _compare(
    graph: _Graph, example: Example, states: Sequence[State], run: Run, arguments: list[Any], circumstance: str
) -> None:
    on_cpu = all(leaf.device.type == "cpu" for leaf in arguments if isinstance(leaf, Tensor))
    got = graph.run({name: torch.as_tensor(arguments[leaf]) for name, leaf in example.inputs.items()})
    added = [state for state in states if state.output is None]
    wanted = list(run.outputs)
    if len(wanted) + len(added) != len(got):  # numbers are no outputs of a graph
        wanted = [leaf for leaf in wanted if isinstance(leaf, Tensor)]
    if len(wanted) + len(added) != len(got):
        raise RuntimeError(
            f"the exported graph has {len(got)} outputs where the model has {len(wanted)} and updates {len(added)} "
            "that it does not return: nothing is written"
        )
    wanted += [
        run.after[state.place] if state.place in run.after else state.value(example.model, arguments) for state in added
    ]
    updated = {state.output: state.name for state in states if state.output is not None}
    updated |= {len(wanted) - len(added) + index: state.name for index, state in enumerate(added)}
    for index, (name, value) in enumerate(zip(graph.outputs, wanted, strict=True)):
        want = torch.as_tensor(value)
        difference = _difference(got[index], want, graph, name in graph.exact and on_cpu)
        if difference is None:
            continue
        what = f"output {name!r}" + (f" ({updated[index]} after its update)" if index in updated else "")
        if not want.dtype.is_floating_point and name not in graph.exact:
            warnings.warn(f"{what} of the graph depends on rounded values and {difference}", stacklevel=2)
            continue
        if name in graph.chosen and _is_sensitive(example, arguments, run, got[index], want, graph):
            warnings.warn(
                f"{what} of the graph depends on what is selected by rounded scores and {difference}. The model itself "
                "changes as much when its arguments are rounded otherwise",
                stacklevel=2,
            )
            continue
        _refuse_changing(example, arguments)
        raise RuntimeError(
            f"the exported graph does not compute what the model does, nothing is written: on {circumstance}, {what} "
            f"{difference}. {example.advice}{WAY_OUT}"
        )


def _difference(got: Tensor, want: Tensor, graph: _Graph, exact: bool) -> str | None:
    """How the graph's output differs by more than it may; None if it does not."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"is {_kind(got)} instead of {_kind(want)}"
    apart, wrong = _distance(got, want, graph, exact)
    if not bool(wrong.any()):
        return None
    worst = int(torch.where(wrong, apart, -1.0).argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(worst), want.shape)]
    return (
        f"differs in {int(wrong.sum())} of {want.numel()} elements, by up to {float(apart.flatten()[worst]):.3g}: at "
        f"{place} it is {got.flatten()[worst].item():.6g} instead of {want.flatten()[worst].item():.6g}"
    )


def _distance(got: Tensor, want: Tensor, graph: _Graph, exact: bool) -> tuple[Tensor, Tensor]:
    """How far the elements are apart, and where that is more than it may be."""
    if exact or not want.dtype.is_floating_point or not want.numel():
        bound = torch.zeros((), dtype=torch.float64)
    else:
        bound = _BOUNDS[graph.coarsest] * _scale(want) + _ROUNDINGS[graph.coarsest]
    apart = (got.double() - want.double()).abs().nan_to_num(nan=math.inf)
    apart[(got == want) | ((got != got) & (want != want))] = 0
    return apart, apart > bound


def _is_sensitive(example: Example, arguments: list[Any], run: Run, got: Tensor, want: Tensor, graph: _Graph) -> bool:
    """Whether the model's own output changes about as much if its float arguments are rounded otherwise.

    A model without such arguments gets the benefit of the doubt. Four times as many elements may differ in the graph,
    which rounds at each node.
    """
    place = next((i for i, value in enumerate(run.outputs) if value is want), None)
    floats = [i for i, leaf in enumerate(arguments) if isinstance(leaf, Tensor) and leaf.dtype in _FLOATS.values()]
    if got.shape != want.shape or place is None or not floats:
        return got.shape == want.shape and not floats
    wrong, changed = int(_distance(got, want, graph, False)[1].sum()), 0
    generator = torch.Generator().manual_seed(2)
    for _ in range(_TRIALS):
        rounded = list(arguments)
        for index in floats:
            leaf = arguments[index]
            noise = 1 + (2 * torch.rand(leaf.shape, generator=generator) - 1) * 2 * _ROUNDINGS[graph.coarsest]
            rounded[index] = (leaf.double() * noise.to(leaf.device).double()).to(leaf.dtype)
        other = example.observe(rounded).outputs[place]
        changed = max(changed, int(_distance(other, want, graph, False)[1].sum()))
    return wrong <= 4 * changed


def _scale(want: Tensor) -> Tensor:
    """For each element the largest of its row, but not less than 1/32 of the largest of all."""
    size = want.double().abs().nan_to_num(nan=0.0, posinf=0.0)
    largest = size.max()
    rows = size.amax(-1, keepdim=True) if size.dim() else size
    return torch.maximum(rows, largest / 32)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _refuse_missing(states: Sequence[State], run: Run) -> None:
    known = {state.place for state in states}
    for state in run.states:
        if state.place not in known:
            raise RuntimeError(
                f"the exported graph lacks the update of {state.name}, nothing is written. Return it from forward(); "
                f"or {WAY_OUT}"
            )


def _refuse_changing(example: Example, arguments: list[Any]) -> None:
    """A model that does not even agree with itself cannot be compared with anything."""
    if not _same(example.observe(arguments, seed=0), example.observe(arguments, seed=1)):
        raise RuntimeError(
            "the model gives another result each time it is run on the same arguments (random numbers, dropout in "
            "training mode, a counter): its graph cannot be verified, nothing is written. Call model.eval(), or pass "
            "the random numbers as an argument; verify=False writes the graph unverified"
        )


def _same(one: Run, other: Run) -> bool:
    values, others = ([*map(torch.as_tensor, run.outputs), *run.after.values()] for run in (one, other))
    return len(values) == len(others) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(values, others, strict=True)
    )


# --------------------------------------------------------------------------------------------------
# Other arguments than the example's


def _with_random_values(example: Example) -> tuple[list[Any], list[str]]:
    """The leaves, constant float tensors among them replaced by random ones, and the names of those."""
    generator = torch.Generator().manual_seed(0)
    changed = list(leaves((example.args, example.kwargs)))
    names = []
    for name, index in zip(_names(example), range(len(changed)), strict=True):
        leaf = changed[index]
        if isinstance(leaf, Tensor) and leaf.dtype in _FLOATS.values() and leaf.numel() > 1 and _is_constant(leaf):
            changed[index] = torch.randn(leaf.shape, generator=generator).to(leaf.device, leaf.dtype)
            names.append(name)
    return changed, names


def _names(example: Example) -> Iterable[str]:
    return leaf_names(example.model, example.args, example.kwargs)


def _is_constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def _refuse_dependence(example: Example, run: Run, name: str) -> None:
    """The graph has lost an input: refuse it if another value there changes anything in the model."""
    changed = list(leaves((example.args, example.kwargs)))
    leaf = changed[example.inputs[name]]
    if leaf.dtype.is_floating_point:
        generator = torch.Generator().manual_seed(1)
        others = [torch.randn(leaf.shape, generator=generator).to(leaf.device, leaf.dtype)]
    else:  # values that the example has are the likeliest to be legal
        flat = leaf.flatten()
        others = [other.reshape(leaf.shape) for other in (flat.flip(0), flat.roll(1), flat[:1].expand(flat.shape))]
    for other in others:
        changed[example.inputs[name]] = other
        again = _observe_if_legal(example, changed)
        if again is not None and not _same(run, again):
            _refuse_changing(example, leaves((example.args, example.kwargs)))
            raise RuntimeError(
                f"the exported graph has lost the input {name!r} on which the model's results depend, nothing is "
                f"written. {example.advice}{WAY_OUT}"
            )
