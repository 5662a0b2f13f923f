"""Names that move: contracts are in `nsa_onnx.operators`."""

from .operators import contract, windows
from .operators.nsa_compress import contract as compress
from .operators.nsa_compress_infer import contract as decode

DOMAIN = contract.DOMAIN
DTYPES = contract.DTYPES
OPSET_VERSION = contract.OPSET_VERSION
Array = contract.Array
Dim = contract.Dim
Row = contract.Row
Rows = contract.Rows
Shape = contract.Shape
Violation = contract.Violation
Violations = contract.Violations
is_int = contract.is_int
raise_first = contract.raise_first
COMPRESS_LIMITS = compress.LIMITS
COMPRESS_OP = compress.OP_TYPE
COMPRESS_ROWS = compress.ROWS
check_compress = compress.check
compressed_length = compress.compressed_length
prefix_sum_violations = compress.prefix_sum_violations
compress_shape_violations = compress.shape_violations
compress_type_violations = compress.type_violations
INFER_LIMITS = decode.LIMITS
MAX_PAGE_RUNS = decode.MAX_PAGE_RUNS
INFER_OP = decode.OP_TYPE
PAGE_BLOCK_SIZES = decode.PAGE_BLOCK_SIZES
INFER_ROWS = decode.ROWS
SlotWrite = decode.SlotWrite
infer_index_violations = decode.index_violations
infer_length_violations = decode.length_violations
infer_shape_violations = decode.shape_violations
infer_plan = decode.slot_plan
infer_type_violations = decode.type_violations
ALIGNMENT = windows.ALIGNMENT
MAX_HEAD_DIM = windows.MAX_HEAD_DIM
Limits = windows.WindowLimits
compress_plan = windows.row_plan
triggers = windows.triggers
window_count = windows.window_count
window_violations = windows.window_violations
