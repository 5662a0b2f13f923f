"""The torch side of the operators, one module each. A new one is a module and a line here.

`base` says what the general modules ask of each.
"""

from __future__ import annotations

from . import nsa_compress, nsa_compress_infer

OPERATORS = (nsa_compress.OPERATOR, nsa_compress_infer.OPERATOR)
"""All operators, in the order in which their ops are registered."""
