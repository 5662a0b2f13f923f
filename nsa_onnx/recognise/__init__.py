"""Finds our operators in graphs of standard operators, and proves that they are equal."""
