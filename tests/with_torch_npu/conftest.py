"""Tests on the real torch_npu. They run in a process of their own, which test_torch_npu.py starts.

(The folder is not called torch_npu, because the other tests could then import it under that name.)
"""

import os

if "NSA_ONNX_WITH_TORCH_NPU" not in os.environ:
    collect_ignore_glob = ["*.py"]
