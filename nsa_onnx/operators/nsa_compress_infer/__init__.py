"""NsaCompressInfer, one decode step over a paged KV cache."""
