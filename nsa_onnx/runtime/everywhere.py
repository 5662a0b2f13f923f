"""Our operators in sessions that other programs open: tools that quantize, optimize or compare models."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..operators import OPERATORS
from ..operators.base import Operator
from ..operators.contract import DOMAIN
from ..operators.schema import register
from .session import onnxruntime_module, session_options

_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a fork in the middle of another thread's change would hold the lock for ever
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
_depth = 0
_ours: Callable[..., None] | None = None  # what stands in the place of InferenceSession.__init__
_theirs: Callable[..., None] | None = None


@contextmanager
def everywhere() -> Iterator[None]:
    """Every ``onnxruntime.InferenceSession`` of the process that is made inside the block knows our operators.

    The ONNX schemas are registered, too (and stay). Blocks may be nested and may overlap in several threads. Session
    options that a caller shares between sessions get the library once; those of sessions made inside keep it.
    Processes that are started inside are not reached: ``nsa-onnx with`` reaches those.

    Raises:
        RuntimeError: onnxruntime is not installed, or our library is missing.
    """
    begin()
    try:
        yield
    finally:
        _end()


def begin() -> None:
    """What `everywhere` does on entry; the process may stay so until it ends."""
    global _depth, _ours, _theirs
    register()
    session_options()  # what is missing is said here, not in the middle of somebody's tool
    sessions = onnxruntime_module().InferenceSession
    with _lock:
        _depth += 1
        if _ours is None:
            _theirs = sessions.__init__
            sessions.__init__ = _ours = _with_library(_theirs)


def _end() -> None:
    global _depth, _ours, _theirs
    sessions = onnxruntime_module().InferenceSession
    with _lock:
        _depth -= 1
        # Whoever has put a function over ours since calls ours, which then stays and changes nothing.
        if not _depth and sessions.__init__ is _ours:
            sessions.__init__ = _theirs
            _ours = _theirs = None


def _with_library(init: Callable[..., None]) -> Callable[..., None]:
    known = (type(None), onnxruntime_module().SessionOptions)

    @functools.wraps(init)
    def initialise(self: Any, path_or_bytes: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        if _depth and isinstance(sess_options, known):  # what is neither is for onnxruntime to refuse
            sess_options = session_options(sess_options)
        init(self, path_or_bytes, sess_options, *args, **kwargs)

    return initialise


HOOK = Path(__file__).parent / "hook"
"""The folder that makes every Python process `begin`, if it is on PYTHONPATH; see its one file."""


def command_with(words: Sequence[str], environment: Mapping[str, str]) -> tuple[str, list[str], dict[str, str]]:
    """What to start for ``nsa-onnx with -- WORDS``: the program, its words, its environment.

    Args:
        words: a program and its arguments. A program beside our own Python comes before those on the PATH, and a file
            that ends in .py and cannot be executed is run by our Python.
        environment: of this process.

    Raises:
        ValueError: there is no word.
        FileNotFoundError: there is no such program.
    """
    if not words:
        raise ValueError("a program is missing: nsa-onnx with -- python tool.py model.onnx")
    folders = [str(HOOK), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    hooked = {**environment, "PYTHONPATH": os.pathsep.join(dict.fromkeys(folders))}
    beside = os.path.dirname(sys.executable)
    found = shutil.which(words[0], path=os.pathsep.join([beside, environment.get("PATH", os.defpath)]))
    if found is None and words[0].endswith(".py") and os.path.isfile(words[0]):
        return sys.executable, [sys.executable, *words], hooked
    if found is None:
        raise FileNotFoundError(2, "no such program", words[0])
    return found, [found, *words[1:]], hooked  # Python finds its environment by the first word


def reference_ops() -> list[type]:
    """For ``onnx.reference.ReferenceEvaluator(model, new_ops=nsa_onnx.reference_ops())``: our nodes, the same bits.

    bfloat16 is ml_dtypes' type there, as in onnx itself. Inputs stay as they are, a cache too. The
    evaluator does not hand ``new_ops`` on to a model's functions: inline them first (``onnx.inliner``).
    """
    from onnx.reference.op_run import OpRun  # a second of imports that nobody else needs

    def op_run(operator: Operator) -> type:
        def run(self: object, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
            left_out = len(operator.inputs) - len(inputs)
            return operator.call((*inputs, *(None,) * left_out), attributes)

        return type(operator.op_type, (OpRun,), {"op_domain": DOMAIN, "_run": run})

    return [op_run(operator) for operator in OPERATORS.values()]
