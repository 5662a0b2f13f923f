"""Exports PyTorch models that call the NSA operators. Importing this package is all the preparation there is.

The import registers the torch ops of namespace ``nsa_onnx`` (`ops`; what one operator needs is in its module of
`operators`), routes ``nsa_onnx.nsa_compress`` and the other eager calls on torch tensors to them, and gives
``torch.onnx.export`` their translations. It adds to torch_npu's ops what they lack for export (`torch_npu`), whether
torch_npu is imported before or after. `export` is ``torch.onnx.export`` with more checks.
"""

from __future__ import annotations

from importlib.util import find_spec

if missing := [name for name in ("torch", "onnxscript") if find_spec(name) is None]:
    raise ImportError(f"nsa_onnx.exporters needs {' and '.join(missing)}: pip install {' '.join(missing)}")

from . import dynamo, torch_npu, torchscript
from .dynamo import onnx_translation_table
from .export import ExportResult, export
from .operators.nsa_compress import nsa_compress
from .operators.nsa_compress_attention import nsa_compress_attention
from .operators.nsa_compress_attention_infer import nsa_compress_attention_infer
from .operators.nsa_compress_infer import nsa_compress_infer
from .operators.nsa_selected_attention import nsa_select_attention
from .operators.nsa_selected_attention_infer import nsa_select_attention_infer

__all__ = [
    "ExportResult",
    "export",
    "nsa_compress",
    "nsa_compress_attention",
    "nsa_compress_attention_infer",
    "nsa_compress_infer",
    "nsa_select_attention",
    "nsa_select_attention_infer",
    "onnx_translation_table",
]

dynamo.register()
torchscript.register()
torch_npu.attach_when_imported()
