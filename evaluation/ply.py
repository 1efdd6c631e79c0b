"""Stanford's polygon files: what their header says, and the vertices of a point cloud."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evaluation.errors import EvaluationError

__all__ = ["element_counts", "read_ply"]

_HEADER_BYTES = 1 << 16
"""Within which a header that is asked for alone must end."""

_PLY_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}


def element_counts(path: Path) -> dict[str, int]:
    """How many of each element the header promises; empty where there is no header that could be read."""
    with path.open("rb") as file:
        header, end, _ = file.read(_HEADER_BYTES).partition(b"end_header")
    if not header.startswith(b"ply") or not end:
        return {}
    words = [line.split() for line in header.decode("ascii", errors="replace").splitlines()]
    return {row[1]: int(row[2]) for row in words if len(row) == 3 and row[0] == "element" and row[2].isdecimal()}


def read_ply(path: Path) -> np.ndarray:
    """Vertices `[N, 3]` of an ASCII or binary little-endian PLY file; vertices must be its first element."""
    data = path.read_bytes()
    end = data.find(b"end_header")
    if not data.startswith(b"ply") or end < 0:
        raise EvaluationError(f"{path}: must be a PLY file, got no header")
    start = data.index(b"\n", end) + 1 if b"\n" in data[end:] else len(data)
    header = data[:end].decode("ascii", errors="replace").splitlines()
    words = [line.split() for line in header if line.split()]
    style = next((row[1] for row in words if row[0] == "format" and len(row) > 1), "none")
    elements = [row for row in words if row[0] == "element"]
    if not elements or elements[0][1:2] != ["vertex"] or not elements[0][-1].isdecimal():
        raise EvaluationError(
            f"{path}: the first element must be vertex, got {' '.join(elements[0]) if elements else 'none'}"
        )
    count, fields = int(elements[0][2]), _properties(path, words, elements)
    columns = [name for name, _ in fields]
    if style == "ascii":
        rows = [line.split() for line in data[start:].decode("ascii", errors="replace").splitlines()[:count]]
        if len(rows) < count or any(len(row) < len(columns) for row in rows):
            raise EvaluationError(f"{path}: must hold {count} complete vertices, got fewer")
        try:
            return np.array([[float(row[columns.index(axis)]) for axis in "xyz"] for row in rows], np.float64)
        except ValueError as error:
            raise EvaluationError(f"{path}: a vertex must be numbers, got: {error}") from error
    if style != "binary_little_endian":
        raise EvaluationError(f"{path}: format must be ascii or binary_little_endian, got {style}")
    record = np.dtype([(name, "<" + kind) for name, kind in fields])
    if len(data) - start < count * record.itemsize:
        raise EvaluationError(f"{path}: must hold {count} complete vertices, got fewer")
    vertices = np.frombuffer(data, dtype=record, count=count, offset=start)
    return np.stack([vertices[axis].astype(np.float64) for axis in "xyz"], axis=1)


def _properties(path: Path, words: list[list[str]], elements: list[list[str]]) -> list[tuple[str, str]]:
    first = words.index(elements[0])
    last = words.index(elements[1]) if len(elements) > 1 else len(words)
    fields: list[tuple[str, str]] = []
    for row in words[first + 1 : last]:
        if row[0] == "property":
            if len(row) != 3 or row[1] not in _PLY_TYPES:
                raise EvaluationError(f"{path}: a vertex property must be a number, got {' '.join(row)}")
            fields.append((row[2], _PLY_TYPES[row[1]]))
    if not {"x", "y", "z"} <= {name for name, _ in fields}:
        raise EvaluationError(f"{path}: vertices must have x, y and z, got {', '.join(n for n, _ in fields) or 'none'}")
    return fields
