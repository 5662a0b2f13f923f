"""Our operators where others open the sessions: tools that quantize, optimize or compare models."""

from __future__ import annotations

import functools
import os
import runpy
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import spec
from ..eager import nsa_compress, nsa_compress_infer
from ..schema import register
from .session import onnxruntime_module, session_options

_lock = threading.Lock()
_depth = 0
_original: Callable[..., None] | None = None


@contextmanager
def everywhere() -> Iterator[None]:
    """Every ``onnxruntime.InferenceSession`` of the process that is made inside the block knows our operators.

    The ONNX schemas are registered, too (and stay). Blocks may be nested and may overlap in several threads. Session
    options that a caller shares between sessions get the library once; those of sessions made inside keep it.

    Raises:
        RuntimeError: onnxruntime is not installed, or our library is missing.
    """
    global _depth, _original
    register()
    sessions = onnxruntime_module().InferenceSession
    session_options()  # what is missing is said here, not in the middle of somebody's tool
    with _lock:
        if _depth == 0:
            _original = sessions.__init__
            sessions.__init__ = _with_library(sessions.__init__)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                sessions.__init__ = _original
                _original = None


def _with_library(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def initialise(self: Any, path_or_bytes: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        init(self, path_or_bytes, session_options(sess_options), *args, **kwargs)

    return initialise


def run_with(command: Sequence[str]) -> int:
    """Run a Python program in this process, inside `everywhere`; ``nsa-onnx with -- COMMAND...``.

    Args:
        command: ``[python] script.py ARGS``, ``[python] -m module ARGS``, ``python -c CODE ARGS``, or a console script.

    Returns:
        The program's exit status.

    Raises:
        ValueError: it is no Python program, which is all that this can reach.
        FileNotFoundError: there is no such program.
    """
    words = list(command)
    if words and Path(words[0]).name.startswith("python"):
        del words[0]
    if not words:
        raise ValueError("a program is missing: nsa-onnx with -- python tool.py model.onnx")
    program = _program(words)
    with everywhere(), _arguments_of(words):
        try:
            program()
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                return end.code or 0
            print(end.code, file=sys.stderr)  # the program's own words, as Python prints them
            return 1
        except Exception:
            traceback.print_exc()  # the program's own error, as Python prints it
            return 1
    return 0


def _program(words: list[str]) -> Callable[[], object]:
    if words[0] == "-m" and len(words) > 1:
        return lambda: runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    if words[0] == "-c" and len(words) > 1:
        code = compile(words[1], "<string>", "exec")
        return lambda: exec(code, {"__name__": "__main__"})
    if words[0].startswith("-"):
        raise ValueError(f"python {words[0]!r} is not understood: give a script, -m MODULE or -c CODE")
    script = _script(words[0])
    return lambda: runpy.run_path(script, run_name="__main__")


@contextmanager
def _arguments_of(words: list[str]) -> Iterator[None]:
    """sys.argv and sys.path[0] as the program expects them."""
    arguments, path = sys.argv[:], sys.path[:]
    flagged = words[0] in ("-m", "-c")
    sys.argv = ["-c" if words[0] == "-c" else words[0], *words[2:]] if flagged else words
    sys.path.insert(0, "" if flagged else os.path.dirname(os.path.abspath(words[0])))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = arguments, path


def _script(name: str) -> str:
    """The file of a script, or of a console script on the PATH."""
    found = name if os.path.isfile(name) else shutil.which(name)
    beside = os.path.join(os.path.dirname(sys.executable), name)
    if found is None and os.path.isfile(beside):
        found = beside
    if found is None:
        raise FileNotFoundError(2, "no such program", name)
    with open(found, "rb") as file:
        first = file.readline(200)
    is_python = found.endswith((".py", ".pyz")) or (first.startswith(b"#!") and b"python" in first)
    if not is_python and not first.startswith(b"#!/bin/sh"):  # what pip writes for long paths
        raise ValueError(f"{name} is no Python program: only the sessions of this Python process get the library")
    return found


def reference_ops() -> list[type]:
    """For ``onnx.reference.ReferenceEvaluator(model, new_ops=nsa_onnx.reference_ops())``: our nodes, the same bits.

    bfloat16 is ml_dtypes' type there, as in onnx itself. A decode node leaves its input ``cache`` as it is. The
    evaluator does not hand ``new_ops`` on to a model's functions: inline them first (``onnx.inliner``).
    """
    from onnx.reference.op_run import OpRun  # a second of imports that nobody else needs

    class NsaCompress(OpRun):
        op_domain = spec.DOMAIN

        def _run(
            self, x: Any, w: Any, seq: Any, compress_block_size: Any = None, compress_stride: Any = None
        ) -> tuple[Any]:
            return (nsa_compress(x, w, compress_block_size, compress_stride, actual_seq_len=seq.tolist()),)

    class NsaCompressInfer(OpRun):
        op_domain = spec.DOMAIN

        def _run(
            self,
            x: Any,
            w: Any,
            slots: Any,
            cache: Any,
            seq: Any,
            table: Any = None,
            compress_block_size: Any = None,
            compress_stride: Any = None,
            page_block_size: Any = None,
        ) -> tuple[Any]:
            sizes = compress_block_size, compress_stride, page_block_size
            out = cache.copy()
            nsa_compress_infer(x, w, slots, *sizes, block_table=table, actual_seq_len=seq.tolist(), cache=out)
            return (out,)

    return [NsaCompress, NsaCompressInfer]
