"""export(): torch.onnx.export, plus what it does not do.

A cache that the model updates but does not return becomes a graph output instead of vanishing, the
schemas are registered, and the file is checked before it takes its name.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from nsa_onnx import schema, spec
from nsa_onnx.checker import Report, Severity, check

from . import dynamo as dynamo_exporter
from . import torch_npu

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportResult:
    """What `export` has written.

    Attributes:
        path: the model file; weights in external data lie beside it.
        mutated: for each graph output that is an updated cache, the argument or buffer that it updates.
        report: the report of `nsa_onnx.check`; it holds no error.
    """

    path: Path
    mutated: Mapping[str, str]
    report: Report


@dataclass(frozen=True)
class _State:
    """A tensor that the model updates.

    Attributes:
        name: of the argument, or the buffer's dotted name.
        leaf: place among the leaves of (args, kwargs); None for a buffer.
        output: place among the model's own outputs if it is returned; None if it is not.
    """

    name: str
    leaf: int | None
    output: int | None

    def value(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.leaf is None:
            return model.get_buffer(self.name)
        return pytree.tree_leaves((args, kwargs))[self.leaf]


def export(
    model: nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamo: bool = True,
    dynamic_shapes: Any = None,
    opset_version: int | None = None,
    portable: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    external_data: bool = False,
    **options: Any,
) -> ExportResult:
    """Export a model that calls the two operators, its updated caches included.

    Args:
        model: a module, which is left as it is, its buffers too; or an ExportedProgram (dynamo only).
        args, kwargs: example arguments of ``model.forward``.
        path: the file to write. Nothing is written unless the graph passes the checks.
        dynamo: False takes the legacy exporter.
        dynamic_shapes: as `torch.onnx.export`; the legacy exporter takes ``dynamic_axes`` instead.
        opset_version, input_names, options: as `torch.onnx.export`.
        portable: add the operators' bodies in standard ONNX: the file then runs without our library, too.
        output_names: names of the model's own outputs, then of the updated caches that it does not
            return; such a cache without a name is called ``<argument or buffer>_out``.
        external_data: write the weights to ``<path>.data``; from 2 GB on that is always done.

    Returns:
        Where the file is, which of its outputs are updated caches of what, and the checker's report.

    Raises:
        TypeError, ValueError, FileNotFoundError: an argument of this function is wrong.
        RuntimeError: the graph breaks the operators' contract. Or what torch.onnx.export raises.
    """
    path = Path(path)
    _check_arguments(model, args, path, dynamo, dynamic_shapes)
    schema.register()
    options |= {"opset_version": opset_version, "input_names": input_names, "dynamic_shapes": dynamic_shapes}
    call = _Call(model, args, _in_signature_order(model, dict(kwargs or {})), options, list(output_names or ()))
    with _draft_of(path) as draft:
        states = (call.write_dynamo if dynamo else call.write_legacy)(draft, external_data)
        mutated = _finish(draft, states, call.output_names, portable)
        report = _check(draft, path)
        _publish(draft, path)
    for name, source in mutated.items():
        logger.info("%s: output %r is %r after the update", path, name, source)
    return ExportResult(path, mutated, report)


def _check_arguments(model: Any, args: Any, path: Path, dynamo: bool, dynamic_shapes: Any) -> None:
    if not isinstance(model, (nn.Module, torch.export.ExportedProgram)):
        raise TypeError(
            f"model must be a torch.nn.Module or a torch.export.ExportedProgram, got {type(model).__name__}"
        )
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple of example arguments, got {type(args).__name__}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no directory {path.parent}")
    if path.exists() and not path.is_file():
        raise ValueError(f"path must be a file's, got {path}: a directory or device")
    if dynamo:
        return
    if isinstance(model, torch.export.ExportedProgram):
        raise TypeError("model must be a torch.nn.Module with dynamo=False, got an ExportedProgram")
    if dynamic_shapes is not None:
        raise ValueError("dynamic_shapes is for dynamo=True; with dynamo=False pass dynamic_axes")


def _in_signature_order(model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Leaves are counted in this order, which is torch.export's."""
    if not kwargs or isinstance(model, torch.export.ExportedProgram):
        return kwargs
    known = [name for name in inspect.signature(model.forward).parameters if name in kwargs]
    return {name: kwargs[name] for name in [*known, *kwargs]}


# --------------------------------------------------------------------------------------------------
# The two exporters of torch


@dataclass(frozen=True)
class _Call:
    """One call of torch.onnx.export, repeated with the caches as outputs where there are any to add."""

    model: nn.Module | torch.export.ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    output_names: list[str]

    def write_dynamo(self, draft: Path, external_data: bool) -> list[_State]:
        """Write the graph; returns the model's states, those it does not return being the last outputs."""
        with dynamo_exporter.caches_looked_after():
            options = self.options | {"dynamo": True}
            program = self._torch_export(self.model, None, options)
            states = _states_of_program(program.exported_program)
            if any(state.output is None for state in states):
                program = self._torch_export(self._returning(states), None, options)
        program.save(draft, external_data=external_data)
        return states

    def write_legacy(self, draft: Path, external_data: bool) -> list[_State]:
        """As `write_dynamo`, through the legacy exporter, which runs the model anyway: so may we."""
        assert isinstance(self.model, nn.Module)
        states = _states_of_run(self.model, self.args, self.kwargs)
        model = self._returning(states) if any(state.output is None for state in states) else self.model
        leaves = enumerate(pytree.tree_leaves((self.args, self.kwargs)))
        tensors = [index for index, leaf in leaves if isinstance(leaf, Tensor)]
        names = [_leaf_name(self.model, self.args, self.kwargs, index) for index in tensors]
        options = {"custom_opsets": {spec.DOMAIN: spec.OPSET_VERSION}, "input_names": names}
        options |= {name: value for name, value in self.options.items() if value is not None}
        self._torch_export(model, draft, options | {"dynamo": False})
        if external_data:
            onnx.save(
                onnx.load(draft), draft, save_as_external_data=True, location=f"{draft.name}.data", size_threshold=0
            )
        return states

    def _torch_export(self, model: Any, path: Path | None, options: dict[str, Any]) -> Any:
        options = {"verbose": False, "kwargs": self.kwargs or None, "output_names": self.output_names or None} | options
        # torch takes a dict at the end of args for kwargs.
        args = (*self.args, {}) if self.args and isinstance(self.args[-1], dict) and not self.kwargs else self.args
        try:
            return torch.onnx.export(model, args, path, **options)
        except Exception as error:
            if hint := torch_npu.lengths_hint(error):
                raise RuntimeError(hint) from error
            raise

    def _returning(self, states: list[_State]) -> nn.Module:
        if not isinstance(self.model, nn.Module):
            names = ", ".join(state.name for state in states if state.output is None)
            raise TypeError(f"model is an ExportedProgram that updates {names} without returning it: pass the module")
        return _returning(self.model, [state for state in states if state.output is None])


def _returning(model: nn.Module, states: list[_State]) -> nn.Module:
    """A module that shares everything with ``model`` and returns the states, too.

    A copy with another class, not a wrapper: parameters and buffers keep their names.
    """
    twin = copy.copy(model)
    forward = cast(
        Callable[..., Any], twin.__dict__.pop("forward", None) or functools.partial(type(model).forward, twin)
    )

    @functools.wraps(type(model).forward)
    def returning(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return output, [state.value(self, args, kwargs) for state in states]

    twin.__class__ = type(type(model).__name__, (type(model),), {"forward": returning})
    return twin


def _states_of_program(program: torch.export.ExportedProgram) -> list[_State]:
    """What functionalization has found the model to update."""
    signature = program.graph_signature
    inputs = [spec.arg.name for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT]
    outputs = [spec.arg.name for spec in signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    states = []
    for output in signature.output_specs:
        if output.kind in (OutputKind.USER_INPUT_MUTATION, OutputKind.BUFFER_MUTATION):
            assert output.target is not None
            leaf = inputs.index(output.target) if output.kind == OutputKind.USER_INPUT_MUTATION else None
            place = outputs.index(output.arg.name) if output.arg.name in outputs else None
            states.append(_State(output.target, leaf, place))
    return states


def _states_of_run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[_State]:
    """What a run on copies of buffers and arguments is seen to update."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    leaves, structure = pytree.tree_flatten((args, kwargs))
    leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    copied_args, copied_kwargs = pytree.tree_unflatten(leaves, structure)
    candidates: list[tuple[str, int | None, Any]] = [(name, None, buffer) for name, buffer in buffers.items()]
    candidates += [(_leaf_name(model, args, kwargs, i), i, leaf) for i, leaf in enumerate(leaves)]
    versions = [getattr(tensor, "_version", 0) for _, _, tensor in candidates]
    with torch.no_grad():
        outputs = pytree.tree_leaves(torch.func.functional_call(model, buffers, copied_args, copied_kwargs))
    states = []
    for (name, leaf, tensor), version in zip(candidates, versions, strict=True):
        if isinstance(tensor, Tensor) and tensor._version != version:
            place = next((i for i, output in enumerate(outputs) if output is tensor), None)
            states.append(_State(name, leaf, place))
    return states


def _leaf_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> str:
    """The parameter that leaf ``index`` belongs to, with its path where the argument is a structure."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    paths = [
        parameter + pytree.keystr(path)
        for parameter, value in bound.arguments.items()
        for path, _ in pytree.tree_flatten_with_path(value)[0]
    ]
    return paths[index]


# --------------------------------------------------------------------------------------------------
# From draft to file


@contextmanager
def _draft_of(path: Path) -> Iterator[Path]:
    """A file of the same name in a directory of its own, on the same file system."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
        yield Path(directory) / path.name


def _finish(draft: Path, states: list[_State], output_names: list[str], portable: bool) -> dict[str, str]:
    """Name the added outputs, add the portable bodies; returns the updated state of each output."""
    model = onnx_ir.load(draft)
    LiftConstantsToInitializersPass(size_limit=1)(model)  # the legacy exporter leaves lengths in Constant nodes
    outputs = model.graph.outputs
    added = [state for state in states if state.output is None]
    first = len(outputs) - len(added)
    for index, state in enumerate(added, first):
        if index >= len(output_names):
            outputs[index].name = _unused(f"{state.name}_out", model)
    places = {state.output: state for state in states if state.output is not None} | dict(enumerate(added, first))
    proto = onnx_ir.to_proto(model)
    if portable:
        from nsa_onnx import functions

        proto = functions.expand(proto)
    onnx.save(proto, draft)
    return {str(outputs[place].name): state.name for place, state in sorted(places.items())}


def _unused(name: str, model: onnx_ir.Model) -> str:
    taken = {value.name for node in model.graph.all_nodes() for value in (*node.inputs, *node.outputs) if value}
    taken |= {value.name for value in (*model.graph.inputs, *model.graph.outputs)} | set(model.graph.initializers)
    while name in taken:
        name += "_"
    return name


def _check(draft: Path, path: Path) -> Report:
    """Refuse a graph that breaks the contract or ONNX's rules."""
    report = replace(check(draft), model=str(path))
    if report.count(Severity.ERROR):
        raise RuntimeError(f"the exported graph breaks the contract, nothing is written:\n{report.to_text()}")
    try:
        onnx.checker.check_model(str(draft), full_check=True, check_custom_domain=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RuntimeError(f"the exported graph is not valid ONNX, nothing is written: {error}") from error
    return report


def _publish(draft: Path, path: Path) -> None:
    """Move everything into place, the model last: whoever sees it sees its weights, too."""
    for file in draft.parent.iterdir():
        if file != draft:
            os.replace(file, path.parent / file.name)
    os.replace(draft, path)
