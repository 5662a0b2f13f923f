"""The operators, one folder each: what is true of one of them is written there and nowhere else."""
