"""export(): ``torch.onnx.export`` with what it lacks for models that update caches.

A cache that the model updates but does not return becomes a graph output; torch alone would drop the update. The
schemas are registered. Before the file takes its name it is checked, and with ``verify`` compared with the model.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from torch import Tensor, nn
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from nsa_onnx.checker import Report, Severity, check
from nsa_onnx.operators import schema
from nsa_onnx.operators.contract import DOMAIN, OPSET_VERSION
from nsa_onnx.operators.expand import expand

from . import dynamo as dynamo_exporter
from . import torch_npu
from .mistakes import told_plainly
from .observe import Args, Attributes, Kwargs, Run, State, UnexportableError, apart, copies, leaf_names, observe
from .private import leaves, untraced
from .publish import draft_of, name_weights, publish
from .verify import Example, require_onnxruntime
from .verify import verify as compare

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportResult:
    """What `export` has written.

    Attributes:
        path: the model file; weights in external data lie beside it.
        mutated: for each graph output that is an updated cache, the argument or buffer that it updates.
        report: the report of `nsa_onnx.check`; it holds no error.
        lost_inputs: tensors among the example's arguments which the graph has no input for (legacy only: the dynamo
            exporter keeps those that the model does not use).
    """

    path: Path
    mutated: Mapping[str, str]
    report: Report
    lost_inputs: tuple[str, ...] = ()


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
    verify: bool | Sequence[tuple[Any, ...]] | None = None,
    **options: Any,
) -> ExportResult:
    """Export a model that calls the operators, its updated caches included.

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
        external_data: write the weights to ``<path>.<hash of them>.data``; from 2 GB on that is always done.
        verify: run the graph in onnxruntime on the example, and refuse it if an output or an updated cache differs
            from the model's. Tuples of arguments, of other sizes say, are compared as well as the example. If None,
            done with ``dynamo=False``, whose exporter loses writes without a word.

    Returns:
        Where the file is, which of its outputs are updated caches of what, and the checker's report.

    Raises:
        TypeError, ValueError, FileNotFoundError: an argument of this function is wrong, or the model updates what no
            graph can hand out.
        RuntimeError: the graph breaks the operators' contract, or differs from the model; it is to be verified and
            onnxruntime is missing. Or what torch.onnx.export raises. What the model itself raises names its line;
            NSA_ONNX_DEBUG=1 in the environment shows torch's trace.
    """
    path = Path(path)
    _check_arguments(model, args, path, dynamo, dynamic_shapes)
    others = _other_arguments(verify)
    verified = bool(others) or (not dynamo if verify is None else bool(verify))
    if verified:
        require_onnxruntime()
    schema.register()
    options |= {"opset_version": opset_version, "input_names": input_names, "dynamic_shapes": dynamic_shapes}
    call = _Call(
        model, args, _in_signature_order(model, dict(kwargs or {})), options, list(output_names or ()), verified
    )
    with told_plainly(torch_npu.lengths_hint, call.diagnose), draft_of(path) as draft:
        written = call.write_dynamo(draft, external_data) if dynamo else call.write_legacy(draft)
        mutated = _finish(draft, written.states, call.output_names, portable, external_data)
        report = _check(draft, path)
        lost = call.verify(draft, written, others)
        publish(draft, path)
    if lost:
        warnings.warn(f"{path} has no input for {', '.join(lost)}: nothing in the graph depends on it", stacklevel=2)
    for name, source in mutated.items():
        logger.info("%s: output %r is %r after the update", path, name, source)
    return ExportResult(path, mutated, report, lost)


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


def _other_arguments(verify: Any) -> tuple[Args, ...]:
    if verify is None or isinstance(verify, bool):
        return ()
    if not isinstance(verify, (list, tuple)) or not all(isinstance(args, tuple) for args in verify):
        raise TypeError(f"verify must be True, False or a list of tuples of arguments, got {verify!r:.80}")
    return tuple(verify)


def _in_signature_order(model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Leaves are counted in this order, which is torch.export's."""
    if not kwargs or isinstance(model, torch.export.ExportedProgram):
        return kwargs
    known = [name for name in inspect.signature(model.forward).parameters if name in kwargs]
    return {name: kwargs[name] for name in [*known, *kwargs]}


# --------------------------------------------------------------------------------------------------
# The two exporters of torch


@dataclass(frozen=True)
class _Written:
    """What one of the exporters has written.

    Attributes:
        states: what the model updates; those that it does not return are the last outputs, in this order.
        inputs: for each input of the graph its leaf of (args, kwargs); with the legacy exporter also those it lost.
        run: the model's run on the example, where there was one.
    """

    states: list[State]
    inputs: dict[str, int]
    run: Run | None = None


@dataclass(frozen=True)
class _Call:
    """One call of torch.onnx.export, repeated with the caches as outputs where there are any to add."""

    model: nn.Module | torch.export.ExportedProgram
    args: Args
    kwargs: Kwargs
    options: dict[str, Any]
    output_names: list[str]
    verified: bool

    def write_dynamo(self, draft: Path, external_data: bool) -> _Written:
        """Write the graph through torch.export."""
        with dynamo_exporter.caches_looked_after():
            options = self.options | {"dynamo": True}
            program = self._torch_export(self.model, None, options)
            states = _states_of_program(program.exported_program)
            if any(state.output is None for state in states):
                program = self._torch_export(self._returning(states), None, options)
        program.save(draft, external_data=external_data)
        specs = program.exported_program.graph_signature.input_specs
        arguments = [spec.arg for spec in specs if spec.kind == InputKind.USER_INPUT]
        given = [leaf for leaf, argument in enumerate(arguments) if not isinstance(argument, ConstantArgument)]
        names = [str(value.name) for value in program.model.graph.inputs]
        return _Written(states, dict(zip(names, given, strict=True)))

    def write_legacy(self, draft: Path) -> _Written:
        """Write the graph through the legacy exporter, which runs the model anyway: so may we."""
        assert isinstance(self.model, nn.Module)
        run = observe(self.model, self.args, self.kwargs, training=self._training)
        given = [index for index, leaf in enumerate(leaves((self.args, self.kwargs))) if isinstance(leaf, Tensor)]
        all_names = leaf_names(self.model, self.args, self.kwargs)
        chosen = list(self.options.get("input_names") or ())
        names = chosen + [all_names[index] for index in given[len(chosen) :]]
        options = {"custom_opsets": {DOMAIN: OPSET_VERSION}}
        options |= {name: value for name, value in self.options.items() if value is not None}
        args, kwargs = copies(self.args, self.kwargs)
        self._torch_export(
            _returning(self.model, [state for state in run.states if state.output is None], run.states),
            draft,
            options | {"dynamo": False, "input_names": names},
            args,
            kwargs,
        )
        return _Written(run.states, dict(zip(names, given, strict=False)), run)

    @property
    def _training(self) -> bool | None:
        """The mode that the legacy exporter puts the model into."""
        mode = self.options.get("training") or torch.onnx.TrainingMode.EVAL
        return None if mode == torch.onnx.TrainingMode.PRESERVE else mode == torch.onnx.TrainingMode.TRAINING

    def diagnose(self) -> Exception | None:
        """What keeps the model from being exported, where torch does not say it: updates that no graph can have."""
        try:
            if isinstance(self.model, nn.Module):
                observe(self.model, self.args, self.kwargs, tied=False)
        except UnexportableError as error:
            return error
        except Exception:  # torch's error says it better
            return None
        return None

    def verify(self, draft: Path, written: _Written, others: Sequence[Args]) -> tuple[str, ...]:
        """Compare the file with the model, if that is wanted; returns the inputs that the graph lacks."""
        if not self.verified:
            inputs = {value.name for value in onnx.load(draft, load_external_data=False).graph.input}
            return tuple(name for name in written.inputs if name not in inputs)
        legacy = written.run is not None
        model, args, kwargs = self.model, self.args, self.kwargs
        if isinstance(model, torch.export.ExportedProgram):
            if not args and not kwargs and model.example_inputs is not None:
                args, kwargs = model.example_inputs
            model = model.module()
        advice = _LEGACY_ADVICE if legacy else ""
        example = Example(model, args, kwargs, written.inputs, self._training if legacy else None, advice)
        return compare(draft, example, written.states, written.run or example.observe(), others)

    def _torch_export(
        self,
        model: Any,
        path: Path | None,
        options: dict[str, Any],
        args: Args | None = None,
        kwargs: Kwargs | None = None,
    ) -> Any:
        if args is None or kwargs is None:
            args, kwargs = apart(self.args, self.kwargs)
        options = {"verbose": False, "kwargs": kwargs or None, "output_names": self.output_names or None} | options
        # torch takes a dict at the end of args for kwargs.
        args = (*args, {}) if args and isinstance(args[-1], dict) and not kwargs else args
        return torch.onnx.export(model, args, path, **options)

    def _returning(self, states: list[State]) -> nn.Module:
        added = [state for state in states if state.output is None]
        if not isinstance(self.model, nn.Module):
            names = ", ".join(state.name for state in added)
            raise TypeError(f"model is an ExportedProgram that updates {names} without returning it: pass the module")
        return _returning(self.model, added)


_LEGACY_ADVICE = (
    "The legacy exporter loses writes into views (x.view(...)[i] = t, index_copy_ on a view) and freezes Python's "
    "branches and numbers. Write into the whole tensor (x[page, offset] = t), or take dynamo=True; "
)


def _returning(model: nn.Module, added: list[State], undone: Sequence[State] | None = None) -> nn.Module:
    """A module that shares everything with ``model`` and returns the states ``added``, too.

    A copy with another class, not a wrapper: parameters and buffers keep their names.

    Args:
        undone: states to reset at the end of each run, with all attributes: the legacy exporter really runs the model,
            and takes the buffers' values afterwards.
    """
    twin = copy.copy(model)
    forward = cast(
        Callable[..., Any], twin.__dict__.pop("forward", None) or functools.partial(type(model).forward, twin)
    )
    held = [state.value(model) for state in undone or () if state.leaf is None]
    before = [tensor.detach().clone() for tensor in held]
    attributes = None if undone is None else Attributes(model)

    @functools.wraps(type(model).forward)
    def returning(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = leaves((args, kwargs))
        output = forward(*args, **kwargs)
        values = [state.value(self, given) for state in added]
        if attributes is not None:
            with untraced(), torch.no_grad():
                attributes.put_back()
                for tensor, value in zip(held, before, strict=True):
                    tensor.copy_(value)
        return (output, values) if values else output

    twin.__class__ = type(type(model).__name__, (type(model),), {"forward": returning})
    return twin


def _states_of_program(program: torch.export.ExportedProgram) -> list[State]:
    """What functionalization has found the model to update."""
    signature = program.graph_signature
    inputs = [spec.arg.name for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT]
    returned = [spec.arg for spec in signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    outputs = [argument.name for argument in returned if not isinstance(argument, ConstantArgument)]
    mutations = OutputKind.USER_INPUT_MUTATION, OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION
    states = []
    for output in signature.output_specs:
        if output.kind in mutations:
            assert output.target is not None
            leaf = inputs.index(output.target) if output.kind == OutputKind.USER_INPUT_MUTATION else None
            place = outputs.index(output.arg.name) if output.arg.name in outputs else None
            states.append(State(output.target, leaf, place))
    return states


# --------------------------------------------------------------------------------------------------
# The draft


def _finish(
    draft: Path, states: list[State], output_names: list[str], portable: bool, external_data: bool
) -> dict[str, str]:
    """Name the added outputs, add the portable bodies, put weights aside; returns the updated state of each output."""
    try:
        model = onnx_ir.load(draft)
    except Exception as error:  # onnx_ir has several
        raise RuntimeError(
            "the exported graph is not valid ONNX, nothing is written. Is one of input_names and output_names the name "
            f"of a weight, or there twice? {_innermost(error)}"
        ) from error
    LiftConstantsToInitializersPass(size_limit=1)(model)  # the legacy exporter leaves lengths in Constant nodes
    outputs = model.graph.outputs
    added = [state for state in states if state.output is None]
    first = len(outputs) - len(added)
    for index, state in enumerate(added, first):
        if index >= len(output_names):
            outputs[index].name = _unused(f"{state.name}_out", model)
    places = {state.output: state for state in states if state.output is not None} | dict(enumerate(added, first))
    mutated = {str(outputs[place].name): state.name for place, state in sorted(places.items())}
    _save(model, draft, portable, external_data)
    return mutated


def _innermost(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _innermost(error.__cause__)


def _save(model: onnx_ir.Model, draft: Path, portable: bool, external_data: bool) -> None:
    """Replace what torch has written: one file, and one of weights where they are wanted or were put aside."""
    from_torch = [file for file in draft.parent.iterdir() if file != draft]
    weights = draft.with_name("weights")
    if external_data or from_torch:  # torch puts them aside beyond 2 GB
        onnx_ir.save(model, draft, external_data=weights.name, size_threshold_bytes=_SMALL)
        proto = onnx.load(draft, load_external_data=False)
        for file in from_torch:
            file.unlink()
    else:
        proto = onnx_ir.to_proto(model)
    onnx.save(expand(proto) if portable else proto, draft)
    if weights.exists():
        name_weights(draft, weights)


_SMALL = 256  # bytes; lengths and the like stay in the model, where shape inference sees them


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
