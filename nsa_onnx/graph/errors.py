"""Errors of files, for people who want to catch them without waiting for onnx."""

from __future__ import annotations


class UnreadableModelError(ValueError):
    """The file cannot be read as an ONNX model. The message names the file and says why."""


class NotWritableError(ValueError):
    """A result that cannot become a file where it is wanted; the message is for the user."""
