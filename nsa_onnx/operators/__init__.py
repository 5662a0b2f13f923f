"""The operators, one folder each: what is true of one of them is written there and nowhere else.

`base` says what an operator has. A new one is a folder with a contract and a class, and a line here.
"""

from __future__ import annotations

from .base import Operator
from .nsa_compress.operator import NsaCompress
from .nsa_compress_infer.operator import NsaCompressInfer

OPERATORS: dict[str, Operator] = {operator.op_type: operator for operator in (NsaCompress(), NsaCompressInfer())}
"""All operators by op type."""
