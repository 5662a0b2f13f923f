"""Target ``cann-aclnn``: onnxruntime's CANN provider with the vendor's operators. Sources: docs/ascend.md."""

from __future__ import annotations

from functools import partial

from . import cann, vendor, vendor_attention_rules, vendor_rules
from .base import Target

TARGET = Target(
    "cann-aclnn",
    "the same with the vendor's operators, which take less.",
    vendor.LIMITS,
    (*vendor_rules.RULES, *vendor_attention_rules.RULES, *cann.PROVIDER_RULES),
    partial(cann.prepare, limits=vendor.LIMITS),
)
