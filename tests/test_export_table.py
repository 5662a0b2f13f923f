"""The table in docs/export.md, the cells of our own ops; those of torch_npu's are in with_torch_npu/test_table.py."""

import itertools

import export_cells
import pytest

TABLE = export_cells.table()


def test_the_table_is_complete():
    assert set(TABLE) == set(itertools.product(export_cells.OPS, export_cells.ROUTES, export_cells.LENGTHS))
    assert set(TABLE.values()) <= {"yes", "error", "frozen"}


@pytest.mark.parametrize(("op", "route", "lengths"), [cell for cell in TABLE if not cell[0].startswith("npu_")])
def test_cell_of_the_export_table(op, route, lengths, tmp_path):
    assert export_cells.outcome(op, route, lengths, tmp_path) == TABLE[op, route, lengths]
