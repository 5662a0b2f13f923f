"""ONNX models as data: reading, walking, scopes, constants, bounded inference, writing.

Knows no rule, no target and no operator of ours: who has one passes it in.
"""
