"""The table in docs/export.md, the cells of torch_npu's ops, on the real torch_npu."""

import export_cells
import pytest
import torch_npu  # noqa: F401 - brings the ops

TABLE = export_cells.table()


@pytest.mark.parametrize(("op", "route", "lengths"), [cell for cell in TABLE if cell[0].startswith("npu_")])
def test_cell_of_the_export_table(op, route, lengths, tmp_path):
    assert export_cells.outcome(op, route, lengths, tmp_path) == TABLE[op, route, lengths]
