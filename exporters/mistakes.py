"""Reports a mistake in the model in one sentence, with the line of the model.

torch's exporters run the model deep inside their own code: an error of the model ends up in the middle of some two
hundred lines of trace, above a request to report a bug to PyTorch. NSA_ONNX_DEBUG=1 in the environment shows all of
that.
"""

from __future__ import annotations

import functools
import linecache
import logging
import os
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import onnx_ir
import onnxscript
import torch

from . import private

DEBUG = "NSA_ONNX_DEBUG"

LOST_UPDATE = (
    "the model updates {} without returning it: the update will not be in the ONNX graph. Return it from forward(), or "
    "use nsa_onnx.exporters.export(), which adds what is updated to the outputs"
)

_HERE = Path(__file__).resolve().parent
# Frames in these are not the user's.
_NOT_THE_MODEL = tuple(
    f"{Path(folder).resolve()}{os.sep}"
    for folder in (
        *(Path(str(package.__file__)).parent for package in (torch, onnxscript, onnx_ir)),
        _HERE,
        Path(sys.modules["nsa_onnx"].__file__ or _HERE).parent,
    )
)
_STANDARD_LIBRARY = f"{Path(sysconfig.get_path('stdlib')).resolve()}{os.sep}"

Function = TypeVar("Function", bound=Callable[..., Any])


def debugging() -> bool:
    return os.environ.get(DEBUG, "") not in ("", "0")


def _is_model(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path = str(Path(filename).resolve())
    if path.startswith(_NOT_THE_MODEL):
        return False
    return not path.startswith(_STANDARD_LIBRARY) or "site-packages" in path


def _line(filename: str, number: int, function: str) -> str:
    source = linecache.getline(filename, number).strip()
    return f'File "{filename}", line {number}, in {function}' + (f"\n    {source}" if source else "")


# --------------------------------------------------------------------------------------------------
# Under torch's own exporters: the line travels in the message


def says_where(kernel: Function) -> Function:
    """A kernel of ours: while a model is exported, its errors name the line of the model."""

    @functools.wraps(kernel)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return kernel(*args, **kwargs)
        except (TypeError, RuntimeError) as error:
            if debugging() or not _exporting() or (where := _calling_line()) is None:
                raise
            raise _told(error, where) from None

    return cast(Function, told)


def _exporting() -> bool:
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def _calling_line() -> str | None:
    """The innermost line of somebody else's code, if a module's forward is among the callers."""
    frames = (frame for frame in private.calls_in_module() if _is_model(frame.f_code.co_filename))
    frame = next(frames, None)
    return None if frame is None else _line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def _told(error: BaseException, where: str) -> Exception:
    """The error with the line, once; of the same class where that takes a message."""
    if getattr(error, "nsa_onnx_told", False):
        return cast(Exception, error)
    message = f"{error}\n  {where}"
    if type(error).__module__ == "builtins":
        new = type(error)(message)
    else:
        new = RuntimeError(f"{type(error).__name__}: {message}")
    new.nsa_onnx_told = True  # type: ignore[attr-defined]
    return cast(Exception, new)


# --------------------------------------------------------------------------------------------------
# Under export(): only the message


@contextmanager
def told_plainly(
    hint: Callable[[Exception], str | None], diagnose: Callable[[], Exception | None] = lambda: None
) -> Iterator[None]:
    """What goes wrong inside because of the model, or what we say of it ourselves, is the only thing that is told.

    Errors that have nothing to do with a line of the model, torch's own, pass as they are.

    Args:
        hint: for an error of torch the message to give instead, if there is one.
        diagnose: what is wrong with the model where torch fails without a line of it.
    """
    if debugging():
        yield
        return
    log = _HeldBack()
    try:
        with log, warnings.catch_warnings():
            # torch's remark on how torch copies its own trees.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    except Exception as error:
        chain = list(_chain(error))
        said_by_us = next((link for link in chain if _is_ours(link)), None)
        root = said_by_us or chain[-1]
        where = _model_line(root.__traceback__)
        if (said := hint(error)) is not None:
            root = RuntimeError(said)
        elif where is None and said_by_us is None:
            if (found := diagnose()) is None:
                log.release()
                raise
            root = found
        raise (_told(root, where) if where else root).with_traceback(None) from None
    log.release()


class _HeldBack:
    """While active, keeps back what torch logs: it logs traces of its own where the model is wrong."""

    def __init__(self) -> None:
        self._kept: list[tuple[logging.Handler, logging.LogRecord]] = []
        handlers = {handler for logger in private.loggers_of("torch") for handler in logger.handlers}
        self._filters = {handler: functools.partial(self._keep, handler) for handler in handlers}

    def _keep(self, handler: logging.Handler, record: logging.LogRecord) -> bool:
        # That torchvision is not installed is said at every export, also of models that have nothing to do with it.
        if not str(record.msg).startswith("torchvision is not installed"):
            self._kept.append((handler, record))
        return False

    def __enter__(self) -> None:
        for handler, keep in self._filters.items():
            handler.addFilter(keep)

    def __exit__(self, *_: object) -> None:
        for handler, keep in self._filters.items():
            handler.removeFilter(keep)

    def release(self) -> None:
        for handler, record in self._kept:
            handler.handle(record)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, the one that it was raised from, and so on to the first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _model_line(trace: TracebackType | None) -> str | None:
    """The innermost line of the model in a traceback, rather of the user's own files than of an installed package.

    Frames of export()'s caller are not in the traceback.
    """
    lines = [frame for frame in traceback.extract_tb(trace) if _is_model(frame.filename)]
    lines = [frame for frame in lines if "site-packages" not in frame.filename] or lines
    return _line(lines[-1].filename, lines[-1].lineno or 0, lines[-1].name) if lines else None


def _is_ours(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and str(Path(frames[-1].filename).resolve()).startswith(_NOT_THE_MODEL[3:])
