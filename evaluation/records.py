"""The one reader of a run's records: `items.jsonl`, or `items-1of4.jsonl` of its shards.

    {"item": "00000", "title": "two red stars", "prompt": "two red stars", "seed": 1, "files": ["00000.png"],
     "digests": {"00000.png": {"bytes": 1042, "sha256": "..."}}, "full_steps": [0, 6], ...}

What follows the last newline is torn and no record. Anything else that is no record is an error with file and line.
Items of models that read a text have a prompt; a title alone, such as a class, is none. Names are plain: nothing that
they name lies outside the run's folder. Records of before there were digests are read, and `expected_digests` says that
nothing is known of their files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.digests import Digest
from evaluation.errors import EvaluationError

__all__ = ["IDENTITY", "RecordLine", "expected_digests", "is_identity", "is_plain", "lines_of", "read_records"]

IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""Names of runs, which are names of folders."""

LARGEST = 1 << 32
"""Bytes of a file of records."""


class RecordLine(NamedTuple):
    """A record and where it stands."""

    path: Path
    number: int
    record: dict[str, Any]


def is_plain(name: object) -> bool:
    """Whether it names a file in a folder and nothing outside of it."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) < 256
        and name not in (".", "..")
        and not ({"/", "\\", "\0"} & set(name))
    )


def is_identity(name: object) -> bool:
    """Whether it may be the id of a run."""
    return isinstance(name, str) and IDENTITY.fullmatch(name) is not None


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _sha(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _names(value: object) -> bool:
    return isinstance(value, list) and all(map(is_plain, value)) and len(set(value)) == len(value)


def _steps(value: object) -> bool:
    return isinstance(value, list) and all(map(_count, value))


def _digests(value: object) -> bool:
    return isinstance(value, dict) and all(
        is_plain(name) and isinstance(entry, dict) and _count(entry.get("bytes")) and _sha(entry.get("sha256"))
        for name, entry in value.items()
    )


RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "item": (is_plain, "must be a plain name"),
    "title": (lambda value: isinstance(value, str), "must be text"),
    "prompt": (lambda value: isinstance(value, str), "must be text"),
    "seed": (_count, "must be an integer >= 0"),
    "sha256": (_sha, "must be 64 hexadecimal digits"),
    "files": (_names, "must be plain names of files, each once"),
    "digests": (_digests, "must map names of files to bytes and sha256"),
    "batch": (_count, "must be an integer >= 0"),
    "batch_size": (_count, "must be an integer >= 0"),
    "batch_seconds": (_seconds, "must be a number >= 0"),
    "full_steps": (_steps, "must be integers >= 0"),
    "cache_bytes": (_count, "must be an integer >= 0"),
}
"""Key of a record -> whether a value may stand there, and what is said of one that may not."""


def lines_of(path: Path, required: Iterable[str] = ("item",)) -> list[RecordLine]:
    """The records of a file, checked."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise EvaluationError(f"{path}: must have at most {LARGEST} bytes, got {size}")
        rows = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise EvaluationError(f"{path}: must be a readable file of records, got {error.strerror}") from error
    return [
        RecordLine(path, number, _record(row, f"{path}:{number}", required)) for number, row in enumerate(rows, start=1)
    ]


def _record(row: bytes, where: str, required: Iterable[str]) -> dict[str, Any]:
    mend = "(delete the line: its item is made again)"
    try:
        record = json.loads(row)
    except (ValueError, RecursionError) as error:
        said = str(error).splitlines()[0]
        raise EvaluationError(f"{where}: must be a record with an item {mend}, got {row[:60]!r} ({said})") from error
    if not isinstance(record, dict):
        raise EvaluationError(f"{where}: must be a record with an item {mend}, got {row[:60]!r}")
    for key in required:
        if key not in record:
            raise EvaluationError(f"{where}: must have the key {key!r} {mend}, got {', '.join(map(str, record))[:200]}")
    for key, (fits, rule) in RULES.items():
        if key in record and not fits(record[key]):
            raise EvaluationError(f"{where}: {key} {rule} {mend}, got {str(record[key])[:80]!r}")
    if "digests" in record and set(record["digests"]) != set(record.get("files", [])):
        raise EvaluationError(f"{where}: digests must be those of files {mend}, got {sorted(record['digests'])}")
    return record


def read_records(folder: Path, required: Iterable[str] = ("item",)) -> dict[str, dict[str, Any]]:
    """The records of a run by item, the first of each; of all its shards."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("items*.jsonl")):
        for line in lines_of(path, required):
            found.setdefault(line.record["item"], line.record)
    return found


def expected_digests(record: Mapping[str, Any]) -> dict[str, Digest] | None:
    """Digests of the item's files by name; None where the record is older than they are."""
    if "digests" not in record:
        return None
    return {name: Digest(entry["bytes"], entry["sha256"]) for name, entry in record["digests"].items()}
