"""NsaSelectedAttentionInfer: one decode step of attention over selected blocks in pages."""
