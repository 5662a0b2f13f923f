"""Input and expected result of an NsaCompressInfer node, for ``check --run``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...graph.tensors import Integers
from ..base import Attributes, Exact, NotRunError, Sample
from ..contract import Violation, plural
from ..facts import NodeFacts
from ..sampling import (
    MAX_BATCH,
    MAX_ELEMENTS,
    MAX_SEQUENCES,
    first_known,
    float_type,
    floats,
    heads_and_dim,
    note,
    weighted,
)
from ..windows import BLOCK, STRIDE, triggers
from .contract import ATTRIBUTES, index_violations


def reference(values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> tuple[Exact]:
    """The cache in float64."""
    block, stride = (attributes[name] for name in (BLOCK, STRIDE))
    pages, weight, slots = values["input"], values["weight"], values["slot_mapping"]
    page = pages.shape[1]
    exact = values["cache"].astype(np.float64)
    slack = np.zeros(exact.shape)
    table = values.get("block_table")
    each = pages.shape[0] // max(len(slots), 1)
    for b, length in enumerate(values["actual_seq_len"].tolist()):
        if length < block or (length - block) % stride:  # written apart from `triggers`, whose mistakes it is to find
            continue
        where = range(length - block, length)
        window = [pages[b * each + t // page if table is None else table[b, t // page], t % page] for t in where]
        written = weighted((token[None] for token in window), weight, (1, *exact.shape[1:]))
        exact[slots[b]], slack[slots[b]] = written.values[0], written.slack[0]
    return (Exact(exact, slack),)


@dataclass(frozen=True)
class _Paged:
    """The sizes of a decode step: pages in all, pages of a sequence at most, sequences, slots."""

    pages: int
    each: int
    batch: int
    slots: int


def make(facts: NodeFacts, attributes: Attributes) -> Sample:
    """Valid input for a node. NotRunError if there is none."""
    block, stride, page = (attributes[name] for name in ATTRIBUTES)
    heads, dim = heads_and_dim(facts, 4)
    row = max(1, heads * dim)  # D may be 0
    most = max(1, MAX_ELEMENTS // (page * row)), max(1, MAX_ELEMENTS // row)
    sizes = _sizes(facts, block, page, *most)
    table = _table(facts, sizes)
    lengths, slots = facts.constants.get("actual_seq_len"), facts.constants.get("slot_mapping")
    wanted = _lengths(sizes, block, stride, page) if lengths is None else lengths
    slots = _slots(wanted, sizes, block, stride) if slots is None else slots
    if lengths is None:
        # Constant slots and tables may serve some of the sequences only.
        bad = {violation.values[0] for violation in _problems(slots, table, wanted, attributes, sizes)}
        wanted = np.array([0 if b in bad else length for b, length in enumerate(wanted.tolist())], np.int64)
    for violation in _problems(slots, table, wanted, attributes, sizes):
        raise NotRunError(f"no input of at most {MAX_ELEMENTS} elements is valid: {violation.message}")
    dtype = float_type(facts, ("input", "weight", "cache"))
    shapes = {"input": (sizes.pages, page, heads, dim), "weight": (block, heads), "cache": (sizes.slots, heads, dim)}
    values: dict[str, npt.NDArray[Any]] = dict(floats(shapes, dtype))
    values["slot_mapping"], values["actual_seq_len"] = slots.astype(np.int32), wanted.astype(np.int64)
    if table is not None:
        values["block_table"] = table.astype(np.int32)
    writing = sum(triggers(length, block, stride) for length in wanted.tolist())
    text = f"input {list(shapes['input'])} {dtype}, {writing} of {plural(sizes.batch, 'sequence')} written"
    declared = facts.tensor("input").dim(0)
    return Sample(dtype, values, note(text, declared or sizes.pages, sizes.pages, "block_num"))


def _sizes(facts: NodeFacts, block: int, page: int, most_pages: int, most_slots: int) -> _Paged:
    """What is declared, as far as it is not too much; little where nothing is."""
    names = ("actual_seq_len", "slot_mapping", "block_table")
    constants = [facts.constants[name] for name in names if name in facts.constants]
    pages, slots = facts.tensor("input").dim(0), facts.tensor("cache").dim(0)
    has_table = "block_table" in facts.inputs
    batch = first_known(
        *(len(value) for value in constants),
        *(facts.tensor(name).dim(0) for name in ("slot_mapping", "actual_seq_len", "block_table")),
        default=4 if has_table or pages is None else math.gcd(pages, 4),
    )
    if constants and batch > MAX_SEQUENCES:
        raise NotRunError(f"{batch} sequences, at most {MAX_SEQUENCES} are run")
    longest = int(facts.constants["actual_seq_len"].max(initial=0)) if "actual_seq_len" in facts.constants else 0
    # A window, wherever it lies, and a page more; or what constant lengths need.
    each = max(-(-block // page) + 2, -(-longest // page))
    if has_table:
        table = facts.constants.get("block_table")
        batch = batch if constants else min(batch, MAX_BATCH)
        each = (
            min(first_known(facts.tensor("block_table").dim(1), default=each), each)
            if table is None
            else table.shape[1]
        )
        pages = min(first_known(pages, default=8), most_pages)
    else:
        each = pages // max(batch, 1) if pages is not None else each
        batch = batch if constants else min(batch, MAX_BATCH, most_pages)
        each = min(each, most_pages // max(batch, 1))
        pages = each * batch
    if each * batch > MAX_ELEMENTS:
        raise NotRunError(f"{plural(batch, 'sequence')} of {each} pages, at most {MAX_ELEMENTS} pages are run")
    return _Paged(pages, each, batch, min(first_known(slots, default=batch + 2), most_slots))


def _table(facts: NodeFacts, sizes: _Paged) -> Integers | None:
    if "block_table" not in facts.inputs:
        return None
    if "block_table" in facts.constants:
        return facts.constants["block_table"]
    table: Integers = np.random.default_rng(1).integers(0, max(sizes.pages, 1), (sizes.batch, sizes.each))
    return table


def _lengths(sizes: _Paged, block: int, stride: int, page: int) -> Integers:
    """Sequences that have just completed their last possible window, their first one, and one that has not."""
    most = sizes.each * page
    last = block + (most - block) // stride * stride
    wanted = [last, block, min(block + 1, most), min(block + stride, last)] if most >= block else [most]
    return np.resize(np.array(wanted, np.int64), sizes.batch)


def _slots(lengths: Integers, sizes: _Paged, block: int, stride: int) -> Integers:
    """Different slots for the sequences that write, while there are any; -1 for the others, as is common."""
    free = iter(np.random.default_rng(2).permutation(sizes.slots).tolist())
    slots = [next(free, -1) if triggers(length, block, stride) else -1 for length in lengths.tolist()]
    return np.array(slots, np.int64)


def _problems(
    slots: Integers, table: Integers | None, lengths: Integers, attributes: Attributes, sizes: _Paged
) -> list[Violation]:
    rows = None if table is None else table.tolist()
    block, stride, page = (attributes[name] for name in ATTRIBUTES)
    return list(
        index_violations(
            slots.tolist(), rows, lengths.tolist(), block, stride, page, sizes.pages, sizes.each, sizes.slots
        )
    )
