"""Reading a run folder: `config.yaml`, `items.jsonl`, `metrics.json`, `media/`.

Its reference is a sibling folder. Only these files are read; what produced them is of no concern here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from evaluation import media_files
from evaluation.errors import EvaluationError

__all__ = ["Run", "read_run", "read_values"]


class Run(NamedTuple):
    """What evaluation needs to know of a run; a run that is itself a reference has none."""

    folder: Path
    images: Path
    reference: Path | None
    prompts: dict[str, str] | None


def read_run(folder: Path) -> Run:
    """Open a run folder; unfinished media are an error."""
    if not folder.is_dir():
        raise EvaluationError(f"run: must be a run folder, got {folder}")
    images = folder / "media"
    records = _records(folder)
    _, files = media_files.list_media(images)
    if records:
        _check_complete(folder, records, files)
    reference = _reference(folder)
    texts = {name: record.get("prompt", record.get("title")) for name, record in records.items()}
    prompts = {name: text for name, text in texts.items() if isinstance(text, str)}
    complete = bool(records) and len(prompts) == len(records)
    return Run(folder, images, reference, prompts if complete else None)


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("items*.jsonl")):
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is torn
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                records[str(record["item"])] = record
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise EvaluationError(f"{path}:{number}: must be a record with an item, got {line[:60]!r}") from error
    return records


def _check_complete(folder: Path, records: dict[str, dict[str, Any]], files: list[Path]) -> None:
    stems = {path.stem for path in files}
    for name in records:
        if name not in stems:
            raise EvaluationError(f"{folder / 'media' / name}.*: is recorded in items.jsonl, got no such file")
    for path in files:
        if path.stem not in records:
            raise EvaluationError(f"{path}: must be recorded in items.jsonl, got no record (unfinished item?)")


def _reference(folder: Path) -> Path | None:
    for name in ("metrics.json", "config.yaml"):
        path = folder / name
        if not path.is_file():
            continue
        identity = _mapping(path).get("reference")
        if identity is None:
            continue
        if not isinstance(identity, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", identity):
            raise EvaluationError(f"{path}: reference must be the id of a sibling run, got {identity!r}")
        other = folder.resolve().parent / identity / "media"
        if not other.is_dir():
            raise EvaluationError(f"{path}: reference run {identity} must have a media folder, got none at {other}")
        return other
    return None


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: must be valid YAML or JSON, got: {str(error).splitlines()[0]}") from error
    if not isinstance(data, dict):
        raise EvaluationError(f"{path}: must be a mapping, got {type(data).__name__}")
    return data


def read_values(folder: Path, metric: str) -> dict[str, float]:
    """Per-item values of a metric that an earlier evaluation wrote to `values.csv`."""
    import pandas as pd

    path = folder / "values.csv"
    if not path.is_file():
        raise EvaluationError(f"{path}: must exist; evaluate the run first")
    table = pd.read_csv(path, dtype={"item": str}).set_index("item")
    if metric not in table:
        raise EvaluationError(f"{path}: must hold {metric}, got {', '.join(table.columns)}; evaluate it first")
    return dict(zip(table.index.tolist(), table[metric].astype(float).tolist(), strict=True))
