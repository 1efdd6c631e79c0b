"""Per-item values on disk: one JSON line each, appended as they come, so that an interrupted run resumes.

A value belongs to (metric, options, weights, content of image and reference, prompt); the digest of these
is its key. Changing any of them makes the stored value invisible, never wrong. A torn last line is ignored.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.durable_files import replacing
from evaluation.errors import EvaluationError
from evaluation.metric import MediaItem, Metric

__all__ = ["ValueStore", "digest", "item_key", "merge_csv", "merge_json", "write_json"]


def digest(*parts: object) -> str:
    """Twenty hex digits of the canonical JSON of `parts`."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def item_key(metric: Metric, item: MediaItem, content: tuple[str, str], weights: Mapping[str, str]) -> str:
    """Identity of one value; the prompt counts only for metrics that read it."""
    prompt = item.prompt if "prompt" in metric.needs else None
    reference = content[1] if "reference" in metric.needs else None
    return digest(metric.name, metric.options(), dict(weights), content[0], reference, prompt)


class ValueStore:
    """Values of past and present runs in one JSONL file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, float] = {}
        self._torn = False
        if path.is_file():
            self._read()

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").split("\n")
        self._torn = bool(lines[-1])
        for number, line in enumerate(lines[:-1], start=1):
            try:
                row = json.loads(line)
                self._values[row["key"]] = _number(row["value"])
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                if self._is_torn_start(line):
                    continue
                raise EvaluationError(f"{self.path}:{number}: must be a row of values, got {line[:60]!r}") from error

    @staticmethod
    def _is_torn_start(line: str) -> bool:
        # A torn line that a later run ended with a newline: it is the beginning of a row and not a row.
        return line.startswith("{") and not line.endswith("}")

    def get(self, key: str) -> float | None:
        """The stored value of a key."""
        return self._values.get(key)

    def add(self, metric: str, rows: Iterable[tuple[str, str, float]]) -> None:
        """Append (item, key, value) rows and make them durable."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if self._torn:
                file.write("\n")
                self._torn = False
            for item, key, value in rows:
                row = {"metric": metric, "item": item, "key": key, "value": _plain(value)}
                file.write(json.dumps(row) + "\n")
                self._values[key] = value
            file.flush()
            os.fsync(file.fileno())


def _number(value: float | str) -> float:
    found = float(value)
    if math.isnan(found):
        raise ValueError("NaN")
    return found


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)  # JSON has no infinity


def merge_csv(path: Path, items: Sequence[MediaItem], columns: Mapping[str, list[float]]) -> None:
    """One row per item, one column per metric: these, and those of earlier calls.

    Columns of earlier calls go where the items are others, or where a file has changed since.
    """
    names = [item.name for item in items]
    known = _read_csv(path) if path.is_file() else {}
    same = known.pop("item", None) == names
    if not same or max(item.path.stat().st_mtime_ns for item in items) > path.stat().st_mtime_ns:
        known = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {**known, **columns}
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item", *table])
        writer.writerows(zip(names, *table.values(), strict=True))


def _read_csv(path: Path) -> dict[str, list[str]]:
    """Columns by their heads."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        return {name: list(column) for name, *column in zip(head, *rows, strict=True)}
    except (ValueError, csv.Error) as error:
        raise EvaluationError(f"{path}: must be a table of values by item (delete it), got: {error}") from error


def write_json(path: Path, data: Any) -> None:
    """Write JSON by rename, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def merge_json(path: Path, results: Mapping[str, Any]) -> None:
    """Add results to those of earlier calls."""
    known: dict[str, Any] = {}
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise EvaluationError(f"{path}: must be JSON, got: {error}") from error
    write_json(path, known | dict(results))
