"""NsaCompressAttentionInfer: one decode step of attention over compressed tokens in pages."""
