"""``python -m nsa_onnx`` is the command nsa-onnx."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
