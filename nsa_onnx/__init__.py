"""Native Sparse Attention's KV compression as ONNX operators: export, run, check.

``nsa_compress`` and ``nsa_compress_infer`` compute on NumPy arrays and torch tensors;
``nsa_onnx.exporters`` (imported on its own, needs torch) makes models that use them exportable;
``create_session`` serves the exported file with onnxruntime; ``check`` says in CI whether it is right.
"""

from __future__ import annotations

# `check` is also the name of the subpackage: its first import has to be here, so that the function is what stays.
from .check import Report, check
from .eager import nsa_compress, nsa_compress_infer
from .schema import register
from .session import create_session, get_library_path, session_options
from .spec import compressed_length

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
