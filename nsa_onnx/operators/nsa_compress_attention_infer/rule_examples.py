"""NsaCompressAttentionInfer in models: what rules of the checker are shown with."""

from __future__ import annotations

from ..model_text import RuleExample

RULE_EXAMPLES: dict[str, RuleExample] = {}
"""By the rule that they are shown with."""
