"""NsaCompressAttention: attention over compressed tokens, and the choice of blocks."""
