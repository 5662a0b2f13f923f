"""The PyTorch side of the operators, one module each. To add one, add a module and list it here.

`base` describes what such a module has.
"""

from __future__ import annotations

from . import (
    nsa_compress,
    nsa_compress_attention,
    nsa_compress_attention_infer,
    nsa_compress_infer,
    nsa_selected_attention,
    nsa_selected_attention_infer,
)

OPERATORS = (
    nsa_compress.OPERATOR,
    nsa_compress_infer.OPERATOR,
    nsa_compress_attention.OPERATOR,
    nsa_compress_attention_infer.OPERATOR,
    nsa_selected_attention.OPERATOR,
    nsa_selected_attention_infer.OPERATOR,
)
"""All operators, in the order in which their ops are registered."""
