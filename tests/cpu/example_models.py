"""Writes a model of each operator's example into a folder, for sessions.cc; prints where onnxruntime's library lies.

python example_models.py FOLDER
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.example import example_model

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name, operator in OPERATORS.items():
    (folder / f"{name}.onnx").write_bytes(example_model(operator, operator.example).SerializeToString())
(library,) = Path(find_spec("onnxruntime").origin).parent.glob("capi/libonnxruntime.so.*")
print(library)
