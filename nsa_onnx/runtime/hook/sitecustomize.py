"""Python imports this file at its start in every process under ``nsa-onnx with``: its folder is on PYTHONPATH.

It waits until onnx or onnxruntime is imported, and imports nothing of ours before, because most processes need
neither. It must work in any Python, also in one that nsa_onnx is not installed for.
"""

from __future__ import annotations

import sys
from typing import Any

_FOLDER = __file__.rpartition("/")[0]
_told = False


def _imports() -> Any:
    """The module imports.py, which this Python may have no package for."""
    import importlib.util

    path = _FOLDER.rpartition("/")[0] + "/imports.py"
    spec = importlib.util.spec_from_file_location("_nsa_onnx_imports", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _register() -> None:
    """Our schemas, once onnx is there."""
    if _module.is_being_imported("nsa_onnx"):  # it imports onnx itself and registers them; half a package cannot
        return
    try:
        import nsa_onnx

        nsa_onnx.register()
    except ImportError as error:
        _tell(error)


def _begin() -> None:
    """Our library in every session, once onnxruntime is there."""
    try:
        from nsa_onnx.runtime.everywhere import begin
    except ImportError as error:
        _tell(error)
    else:
        begin()


def _tell(error: ImportError) -> None:
    global _told
    if not _told:
        _told = True
        problem = f"{sys.executable} does not know NSA nodes ({error}): install nsa_onnx for it"
        sys.stderr.write(f"nsa-onnx with: {problem}\n")


def _run_hidden() -> None:
    """The sitecustomize that this one stands in front of."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    sys.path[:] = [folder for folder in sys.path if folder != _FOLDER]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_module = _imports()
_module.when_imported("onnx", _register)
_module.when_imported("onnxruntime", _begin)
_run_hidden()
