"""ONNX models as data: reading, walking, constants, bounded inference, writing. Knows no rule and no target."""
