"""Exporters: import this package and models that call the two operators can leave torch.

Importing registers the torch ops of namespace ``nsa_onnx`` (`ops`) and routes
``nsa_onnx.nsa_compress`` and ``nsa_onnx.nsa_compress_infer`` on torch tensors to them.
"""

from __future__ import annotations

from .ops import nsa_compress, nsa_compress_infer

__all__ = ["nsa_compress", "nsa_compress_infer"]
