"""ONNX models as data: reading, walking, scopes, constants, bounded inference, writing.

Nothing here knows the rules, the targets or our operators: callers pass in what they need of them.
"""
