"""The PyTorch side of the operators, one module each. To add one, add a module and list it here.

`base` describes what such a module has.
"""

from __future__ import annotations

from . import nsa_compress, nsa_compress_infer

OPERATORS = (nsa_compress.OPERATOR, nsa_compress_infer.OPERATOR)
"""All operators, in the order in which their ops are registered."""
