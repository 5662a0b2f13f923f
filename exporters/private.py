"""Wraps the private parts of torch and onnxscript that the exporters need, one function for each.

No other module of the exporters uses a private name. Each docstring, or the comment above a group, says why nothing
public does the same. tests/test_export_private.py calls every function, so that a release of torch or onnxscript which
lacks one fails there, under the function's name.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any, TypeVar, cast

import onnxscript
import torch
from onnxscript.function_libs.torch_lib import registration
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.export import ExportedProgram
from torch.onnx import symbolic_helper
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Function = TypeVar("Function", bound=Callable[..., Any])

# --------------------------------------------------------------------------------------------------
# Ops and their kernels


def not_compiled(kernel: Function) -> Function:
    """A kernel that torch.compile runs and does not look into: where it cannot capture an op, it would compile it.

    torch.compiler.disable is public, and imports the compiler at once: seconds for everybody who only imports us.
    """
    return cast(Function, _disable_dynamo(kernel))


def has_kernel(op: str, *keys: str) -> bool:
    """Whether ``namespace::op.overload`` has a kernel of its own for one of the dispatch keys.

    torch.library registers kernels, and cannot tell which there are; fallbacks do not count here.
    """
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(op, key) for key in keys)


def schema(op: Any) -> Any:
    """The schema of an op in a graph or a dispatch mode, with what it writes and aliases; None for other callables.

    torch.library writes schemas as text, and nothing public reads them.
    """
    return getattr(op, "_schema", None)


def require(condition: Any, message: Callable[[], str]) -> None:
    """RuntimeError unless the condition holds; where it is symbolic, the exported program is bound to it.

    torch documents this function as the way to do that; its name alone is private.
    """
    torch._check(condition, message)


def to_copy() -> Any:
    """The op that ``tensor.to(...)`` becomes in a graph; torch has no public name for it."""
    return torch.ops.aten._to_copy.default


class DispatchMode(TorchDispatchMode):
    """While active, ``__torch_dispatch__`` gets every op that is run.

    The public TorchFunctionMode gets what Python calls, not the ops that come of it.
    """


# --------------------------------------------------------------------------------------------------
# Gradients. torch.library.register_autograd refuses tensors among keyword arguments and in-place ops.


def below_autograd(op: Any, keyset: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the kernel that comes after the autograd kernel which we have registered ``with_keyset``.

    Only register_autograd, which does not take our ops, has a public way on.
    """
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)


def below_version_counter(op: Any, keyset: Any, *args: Any, **kwargs: Any) -> Any:
    """The same after a kernel for ``ADInplaceOrView``, the key under which in-place ops count versions."""
    return op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs)


def shown_by(tensor: Tensor) -> Tensor:
    """The tensor that this one is a view of, or itself. torch shows only whether two share their storage."""
    return tensor if tensor._base is None else tensor._base


# --------------------------------------------------------------------------------------------------
# Functionalization. It makes in-place ops functional by their schema; ours have kernels that do it, because the tag
# ``out`` of torch_npu's op makes torch forget the cache's old contents. Nothing public writes such a kernel.


def functional_value(value: Any) -> Any:
    """What a tensor under functionalization stands for, all updates done; anything else as it is."""
    if isinstance(value, Tensor) and torch._is_functional_tensor(value):
        torch._sync(value)  # type: ignore[attr-defined,no-untyped-call]
        return torch._from_functional_tensor(value)
    return value


@contextmanager
def below_functionalization() -> Iterator[None]:
    """What is called inside is not functionalized once more."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)):
        yield


def update_functional(tensor: Tensor, new: Tensor) -> None:
    """Let a tensor under functionalization, and all that it is a view of, have new contents."""
    torch._functionalize_replace(tensor, new)
    torch._functionalize_commit_update(tensor)
    torch._functionalize_sync(tensor)


# --------------------------------------------------------------------------------------------------
# Symbolic sizes. Public are arithmetic on them and what a finished program says.


def declared_dynamic(size: Any) -> bool:
    """Whether a size hangs on a dim that the user has declared dynamic, while torch.export runs the model.

    Not: on one that may be dynamic. torch.compile compiles again for another size and is not asked.
    """
    if not torch.compiler.is_exporting():
        return False
    symbols: set[Any] = getattr(_declared(size), "free_symbols", set())
    shapes = getattr(getattr(size, "node", None), "shape_env", None)
    for tracked in getattr(shapes, "tracked_fakes", None) or ():
        constraints = getattr(tracked.symbolic_context, "constraint_sizes", None) or ()
        for dim, constraint in zip(getattr(tracked.fake, "shape", ()), constraints, strict=False):
            if constraint is not None and _declared(dim) in symbols:
                return True
    return False


def made_constant(size: Any) -> bool:
    """Whether tracing has pinned a symbolic size to the example's."""
    if not isinstance(size, torch.SymInt):
        return False
    bounds = size.node.shape_env.bound_sympy(_declared(size))
    return bool(bounds.is_singleton()) or size.node.maybe_as_int() is not None


def _declared(size: Any) -> Any:
    """A size in the symbols of its declaration: what has since been found to be a constant is still a symbol."""
    return getattr(getattr(size, "node", None), "_expr", None)


# --------------------------------------------------------------------------------------------------
# Who has called us: walks over the stack


def program_being_exported() -> ExportedProgram | None:
    """The program whose decomposition is running. No argument of a kernel leads to it."""
    frame = next((frame for frame in _callers() if frame.f_code is _RUN_DECOMPOSITIONS), None)
    return None if frame is None else cast(ExportedProgram, frame.f_locals["self"])


_RUN_DECOMPOSITIONS = inspect.unwrap(ExportedProgram.run_decompositions).__code__


def traced_model() -> Any:
    """The function that runs the model for the legacy exporter; it dies when the trace is done. None outside of it.

    The exporter deletes what it finds unused before it asks for any symbolic: this is the only sign before that.
    """
    code = torch.jit._trace.ONNXTracedModule.forward.__code__
    frame = next((frame for frame in _callers() if frame.f_code is code), None)
    return None if frame is None else frame.f_locals.get("wrapper")


def calls_in_module() -> list[FrameType]:
    """The frames from here to the innermost call of a module, the latest first; none outside of any module.

    A forward hook would tell of a module's call as well, and would have to be put on everybody's models.
    """
    code, frames = torch.nn.Module._call_impl.__code__, []
    for frame in _callers():
        frames.append(frame)
        if frame.f_code is code:
            return frames
    return []


def _callers() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def loggers_of(package: str) -> list[logging.Logger]:
    """The loggers of a package that there are. Logger.getChildren() is public from Python 3.12 on."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == package]
    return [logging.getLogger(name) for name in names]


# --------------------------------------------------------------------------------------------------
# The legacy exporter's trace. Of it, public is symbolic_helper.parse_args alone, which refuses what is no constant.


def is_tracing() -> bool:
    """Whether a graph is being recorded. torch.jit.is_tracing says so, too; torch does not list it as public."""
    return torch._C._get_tracing_state() is not None


def plain_size(size: Any) -> Any:
    """A size, which is a tensor in a trace, as the number that it is in the example; others as they are.

    torch warns of it, and does not list the warning's class as public.
    """
    if not isinstance(size, Tensor):
        return size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
        return int(size)


def trace_graph() -> Any:
    """The graph that is being recorded."""
    return torch._C._get_tracing_state().graph()


@contextmanager
def untraced() -> Iterator[None]:
    """What is done inside is done, and not recorded."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def traced_value(tensor: Tensor) -> Any:
    """What a tensor is in the graph."""
    return torch._C._get_value_trace(tensor)  # type: ignore[attr-defined]


def set_traced_value(tensor: Tensor, value: Any) -> None:
    """From now on the tensor is another value of the graph."""
    torch._C._set_value_trace(tensor, value)  # type: ignore[attr-defined]


def is_left_out(value: Any) -> bool:
    """Whether an optional argument of a recorded op is None."""
    return bool(symbolic_helper._is_none(value))


def constant_argument(value: Any, name: str, kind: str) -> Any:
    """A constant argument of a recorded op: kind "i" an int, "f" a float. The error names the argument."""
    return symbolic_helper._get_const(value, kind, name)


def constant_ints(value: Any) -> list[int] | None:
    """A list of ints among the arguments of a recorded op, if the trace holds it as a constant."""
    if not symbolic_helper._is_onnx_constant(value):
        return None
    return list(symbolic_helper._parse_arg(value, "is"))


# --------------------------------------------------------------------------------------------------
# The dynamo exporter's table. torch.onnx.export takes one as an argument; a table that is there without one, so that a
# plain call works, is onnxscript's registry alone.


class _Translation(onnxscript.values.TracedOnnxFunction):
    """A translation that is not written out as onnxscript's parser wants it, which the registry asks for a domain."""

    @property
    def function_ir(self) -> Any:
        return SimpleNamespace(domain=self.opset.domain)


def translation(function: Callable[..., Any], domain: str, version: int) -> Any:
    """What the exporter can call: arguments as the torch op's, onnxscript values as results.

    Args:
        function: with annotations of onnxscript's types, from which it reads what is an input and what an attribute.
    """
    return _Translation(onnxscript.values.Opset(domain, version), function)


def register_translation(translated: Any, op: str) -> None:
    """Put a translation of ``namespace::op.overload`` into the table, once. The op need not exist yet."""
    if op not in registration.default_registry:
        registration.default_registry.register(translated, op)


def decompose(op: Any, function: Callable[..., Any]) -> None:
    """Have ONNX exports replace an op by what ``function`` computes with other ops. torch.compile does not.

    The public tables (torch.export.default_decompositions) are copies: torch.onnx.export takes none of the caller's.
    """
    torch._decomp.decomposition_table[op] = function


# --------------------------------------------------------------------------------------------------
# Trees: nested containers with tensors as leaves. torch.export counts a model's arguments as the leaves of one, and
# has no public name for taking it apart.


def leaves(tree: Any) -> list[Any]:
    """The leaves in torch's order. None is one."""
    return pytree.tree_leaves(tree)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree of the same structure."""
    return pytree.tree_map(function, tree)


def with_leaves(tree: Any, changed: Sequence[Any]) -> Any:
    """A tree of the same structure with these leaves."""
    return pytree.tree_unflatten(changed, pytree.tree_flatten(tree)[1])


def leaf_paths(arguments: Mapping[str, Any]) -> list[str]:
    """For each leaf of named trees how Python reaches it: ``name[0]['key']``."""
    return [
        name + pytree.keystr(path)
        for name, tree in arguments.items()
        for path, _ in pytree.tree_flatten_with_path(tree)[0]
    ]
