"""The Python that has the oldest versions that pyproject.toml declares; `make test` makes it, with tox."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = os.environ.get("NSA_ONNX_OLDEST_PYTHON", str(ROOT / "build" / "tox" / "oldest" / "bin" / "python"))
ONNXRUNTIME = (
    re.search(r'^ort = \["onnxruntime>=([\d.]+)"\]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1] + ".0"
)
