"""NsaCompress, prefill: every window of every segment becomes one token."""
