"""Reading a run folder: `config.yaml`, `items.jsonl`, `metrics.json`, `media/`.

Its reference is a sibling folder. Only these files are read; what produced them is of no concern here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from evaluation import media_files
from evaluation.digests import Ledger
from evaluation.errors import EvaluationError
from evaluation.records import expected_digests, is_identity, read_records

__all__ = ["EvaluatedRun", "read_run", "read_values", "reference_id"]


class EvaluatedRun(NamedTuple):
    """What evaluation needs to know of a run; a run that is itself a reference has none."""

    folder: Path
    images: Path
    reference: Path | None
    prompts: dict[str, str] | None
    unverified: int = 0
    """Items that were recorded before there were digests: their files are taken as they are."""


def read_run(folder: Path) -> EvaluatedRun:
    """Open a run folder; unfinished media are an error."""
    if not folder.is_dir():
        raise EvaluationError(f"run: must be a run folder, got {folder}")
    images = folder / "media"
    if images.resolve() != folder.resolve() / "media":
        raise EvaluationError(f"{images}: must be a folder of the run, got a link to {images.resolve()}")
    records = read_records(folder)
    if records:
        _check_files(folder, records)
    _, files = media_files.list_media(images)
    if records:
        _check_complete(folder, records, files)
    reference = _reference(folder)
    prompts = {name: record["prompt"] for name, record in records.items() if "prompt" in record}
    complete = bool(records) and len(prompts) == len(records)
    unverified = sum("digests" not in record for record in records.values())
    return EvaluatedRun(folder, images, reference, prompts if complete else None, unverified)


def _check_files(folder: Path, records: dict[str, dict[str, Any]]) -> None:
    """The media must be what was recorded; every one that is not is named."""
    ledger = Ledger(folder / "media")
    wanted = {name: digest for record in records.values() for name, digest in (expected_digests(record) or {}).items()}
    damages = ledger.damages(wanted)
    ledger.save()
    if damages:
        mend = "the run's own command makes it again"
        raise EvaluationError("\n".join(f"{folder / 'media' / name}: {said}; {mend}" for name, said in damages.items()))


def _check_complete(folder: Path, records: dict[str, dict[str, Any]], files: list[Path]) -> None:
    stems = {path.stem for path in files}
    for name in records:
        if name not in stems:
            raise EvaluationError(f"{folder / 'media' / name}.*: is recorded in items.jsonl, got no such file")
    for path in files:
        if path.stem not in records:
            raise EvaluationError(f"{path}: must be recorded in items.jsonl, got no record (unfinished item?)")


def reference_id(folder: Path) -> str | None:
    """The id of the run that this one is compared with, if it says one."""
    for path in (folder / "metrics.json", folder / "config.yaml"):
        identity = _mapping(path).get("reference") if path.is_file() else None
        if identity is None:
            continue
        if not is_identity(identity):
            raise EvaluationError(f"{path}: reference must be the id of a sibling run, got {identity!r}")
        return identity
    return None


def _reference(folder: Path) -> Path | None:
    identity = reference_id(folder)
    if identity is None:
        return None
    other = folder.resolve().parent / identity / "media"
    if not other.is_dir():
        raise EvaluationError(f"{folder}: reference run {identity} must have a media folder, got none at {other}")
    return other


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, ValueError, RecursionError) as error:
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
    try:
        table = pd.read_csv(path, dtype={"item": str}).set_index("item")
    except (ValueError, KeyError) as error:
        raise EvaluationError(f"{path}: must be a table of values by item (delete it), got: {error}") from error
    if metric not in table:
        raise EvaluationError(f"{path}: must hold {metric}, got {', '.join(table.columns)}; evaluate it first")
    return dict(zip(table.index.tolist(), table[metric].astype(float).tolist(), strict=True))
