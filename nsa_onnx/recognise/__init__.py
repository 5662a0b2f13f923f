"""Finds the operators in graphs of standard ones, with the proof."""
