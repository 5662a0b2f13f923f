"""NsaSelectedAttention: attention over the tokens of selected blocks."""
