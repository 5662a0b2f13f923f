"""The operators, one folder each. What is true of one operator is written in its folder and nowhere else.

`base` says what an operator has. To add one, write a folder with a contract and a class, and name it here.
"""

from __future__ import annotations

from .base import Operator
from .nsa_compress.operator import NsaCompress
from .nsa_compress_attention.operator import NsaCompressAttention
from .nsa_compress_attention_infer.operator import NsaCompressAttentionInfer
from .nsa_compress_infer.operator import NsaCompressInfer
from .nsa_selected_attention.operator import NsaSelectedAttention
from .nsa_selected_attention_infer.operator import NsaSelectedAttentionInfer

OPERATORS: dict[str, Operator] = {
    operator.op_type: operator
    for operator in (
        NsaCompress(),
        NsaCompressInfer(),
        NsaCompressAttention(),
        NsaCompressAttentionInfer(),
        NsaSelectedAttention(),
        NsaSelectedAttentionInfer(),
    )
}
"""All operators by op type."""
