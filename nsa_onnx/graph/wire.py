"""Estimates what a large model file would cost in memory before it is parsed.

A field of two bytes becomes an object of more than a hundred bytes, and a file of zeros is no model. So the lengths of
the file's fields are followed (protobuf's wire format), and strings and numbers are skipped.
Source of the format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import functools
import os
from typing import Any, BinaryIO

from onnx import ModelProto

# Files up to here are read without a look: at worst, they take some 75 times as much memory.
MAX_UNSCANNED_BYTES = 8 * 2**20
# Fields of all messages. A large model of today's exporters has a million; each takes 150 bytes of memory or so.
MAX_FIELDS = 4_000_000
# Numbers in a packed field take a byte or more, and eight in memory: so many bytes count as one more field.
PACKED_BYTES_PER_FIELD = 32
# As deep as protobuf goes.
MAX_DEPTH = 100

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_WINDOW = 2**16
_TEN = 10  # bytes of the longest varint


class WireError(ValueError):
    """The file is no model, or one that would take absurd amounts of memory; the message says which."""


def scan(file: BinaryIO, size: int) -> int:
    """How many fields a model's messages have, down to the innermost.

    Args:
        file: open at any position, unbuffered or not; left at any position.
        size: its bytes.

    Raises:
        WireError: the bytes are not the fields of messages, or there are more than `MAX_FIELDS`.
        OSError: the file cannot be read.
    """
    reader = _Reader(file)
    fields, at = 0, 0
    open_: list[tuple[int, Any]] = [(size, _known())]
    while open_:
        if fields > MAX_FIELDS:
            raise WireError(f"its messages have more than {MAX_FIELDS} fields")
        end, known = open_[-1]
        if at == end:
            open_.pop()
            continue
        fields += 1
        tag, at = reader.varint(at, end)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise WireError(f"byte {at - 1} is no field")
        if kind == _VARINT:
            _, at = reader.varint(at, end)
            continue
        if kind == _LENGTH:
            length, at = reader.varint(at, end)
        elif kind in _FIXED_SIZES:
            length = _FIXED_SIZES[kind]
        else:
            raise WireError(f"byte {at - 1} is no field")
        if length > end - at:
            raise WireError(f"{length} bytes are said to follow byte {at}, {end - at} do")
        inner = known.get(number) if kind == _LENGTH else None
        if isinstance(inner, dict):
            if len(open_) >= MAX_DEPTH:
                raise WireError(f"messages lie deeper than {MAX_DEPTH} levels in one another")
            open_.append((at + length, inner))
            continue
        if inner == _PACKED:
            fields += length // PACKED_BYTES_PER_FIELD
        at += length
    return fields


_PACKED = "packed"


@functools.cache
def _known() -> dict[int, Any]:
    """By number, the same of a model's fields that are messages, and `_PACKED` for repeated varints."""
    tables: dict[str, dict[int, Any]] = {}

    def of(descriptor: Any) -> dict[int, Any]:
        table = tables.get(descriptor.full_name)
        if table is None:
            table = tables[descriptor.full_name] = {}  # before it is filled: graphs are in nodes are in graphs
            for field in descriptor.fields:
                if field.message_type is not None:
                    table[field.number] = of(field.message_type)
                elif field.type in (field.TYPE_INT64, field.TYPE_INT32, field.TYPE_UINT64, field.TYPE_ENUM):
                    table[field.number] = _PACKED
        return table

    return of(ModelProto.DESCRIPTOR)


class _Reader:
    """Varints anywhere in a file, of which one window is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = 0
        self._bytes = b""

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at a position, and the position after it."""
        index = at - self._start
        if index < 0 or index + _TEN > len(self._bytes):
            self._file.seek(at, os.SEEK_SET)
            self._start, self._bytes, index = at, self._file.read(_WINDOW), 0
        value, shift = 0, 0
        for byte in self._bytes[index : min(index + _TEN, end - self._start)]:
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise WireError(f"byte {at} begins no number")
