"""Native Sparse Attention's KV compression as ONNX operators: export, run, check.

``nsa_compress`` and ``nsa_compress_infer`` compute on NumPy arrays and torch tensors;
``nsa_onnx.exporters`` (imported on its own, needs torch) makes models that use them exportable;
``create_session`` serves the exported file with onnxruntime; ``check`` says in CI whether it is right.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .eager import nsa_compress, nsa_compress_infer
from .spec import compressed_length

if TYPE_CHECKING:
    from .check import Report, check
    from .schema import register
    from .session import create_session, get_library_path, session_options

__version__ = "0.1.0"

__all__ = [
    "Report",
    "check",
    "compressed_length",
    "create_session",
    "get_library_path",
    "nsa_compress",
    "nsa_compress_infer",
    "register",
    "session_options",
]

# These need onnx or onnxruntime, which a caller of the eager functions may not want to wait for.
_LAZY = {
    "Report": "check",
    "check": "check",
    "register": "schema",
    "create_session": "session",
    "get_library_path": "session",
    "session_options": "session",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value  # also over the submodule of the same name, which the import has put here
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
