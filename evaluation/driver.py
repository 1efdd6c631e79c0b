"""Compute metrics over a folder: check everything first, then score item by item, then reduce.

Nothing is reduced unless every item was scored, so a result never rests on a part of the items.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation import decoders, item_values, media_files
from evaluation.doctor import build, problems
from evaluation.errors import EvaluationError
from evaluation.metric import DEFAULT, Context, ItemMetric, MediaItem, Metric, SetMetric
from evaluation.pretrained import fingerprint, locate
from evaluation.scoring import iterate_scores
from evaluation.statistics import Bootstrap

__all__ = ["evaluate"]


def evaluate(
    images: Path,
    reference: Path | None = None,
    prompts: Sequence[str] | Mapping[str, str] | None = None,
    metrics: Sequence[str] = (),
    device: str = "cpu",
    batch_size: int = 8,
    *,
    out: Path | None = None,  # where values are kept; default: `<images>-evaluation`
    options: Mapping[str, Mapping[str, Any]] | None = None,  # metric name -> its options
    weights: Mapping[str, Path] | None = None,  # weight name -> file or folder, instead of searching
    bootstrap: Bootstrap = DEFAULT,
    subset: bool = False,  # allow references that have no image
    progress: bool | None = None,  # None: a bar when stderr is a terminal
) -> dict[str, dict[str, Any]]:
    """Values of `metrics` for the media in `images`; a problem anywhere raises and nothing is counted."""
    images, out = Path(images), Path(out) if out else Path(f"{images}-evaluation")
    reference = Path(reference) if reference else None
    if batch_size < 1:
        raise EvaluationError(f"batch_size: must be at least 1, got {batch_size}")
    if not 0 < bootstrap.level < 1:
        raise EvaluationError(f"level: must lie strictly between 0 and 1, got {bootstrap.level}")
    given = {name: Path(path) for name, path in (weights or {}).items()}
    chosen = build(metrics, options or {})
    found = problems(chosen, given)
    if found:
        raise EvaluationError("\n".join(found))
    _check_needs(chosen, reference, prompts)
    items = _items(chosen, images, reference, prompts, subset)
    context = Context(
        images=images,
        reference=reference,
        items=items,
        device=device,
        batch_size=batch_size,
        out=out,
        weights={name: locate(name, given.get(name)) for metric in chosen for name in metric.weights()},
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    try:
        results = _item_results([m for m in chosen if isinstance(m, ItemMetric)], context, bootstrap)
        results |= _set_results([m for m in chosen if isinstance(m, SetMetric)], context)
    except decoders.PictureError as error:
        raise EvaluationError("\n".join(_unreadable(images, reference) or [str(error)])) from error
    return {metric.name: results[metric.name] for metric in chosen}


def _unreadable(*folders: Path | None) -> list[str]:
    """Every picture that cannot be read, once one could not: they can be mended together."""
    files: list[Path] = []
    for folder in folders:
        if folder is not None and folder.is_dir():
            kind, found = media_files.list_media(folder)
            files += found if kind == "image" else []
    return decoders.survey(files)


def _check_needs(chosen: list[Metric], reference: Path | None, prompts: object) -> None:
    for metric in chosen:
        if "reference" in metric.needs and reference is None:
            raise EvaluationError(f"reference: {metric.name} compares with references, got none")
        if "prompt" in metric.needs and prompts is None:
            raise EvaluationError(f"prompts: {metric.name} compares with prompts, got none")


def _items(
    chosen: list[Metric],
    images: Path,
    reference: Path | None,
    prompts: Sequence[str] | Mapping[str, str] | None,
    subset: bool,
) -> list[MediaItem]:
    paired = any(isinstance(metric, ItemMetric) and "reference" in metric.needs for metric in chosen)
    if images.suffix == ".npz":
        for metric in chosen:
            if isinstance(metric, ItemMetric):
                raise EvaluationError(f"{images}: {metric.name} reads a folder of files, got an .npz archive")
        return []
    kind, items = media_files.pair_items(images, reference if paired else None, prompts, subset)
    for metric in chosen:
        if kind not in metric.media:
            raise EvaluationError(f"{images}: {metric.name} reads {sorted(metric.media)}, got {kind} files")
    return items


def _sha(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _item_results(chosen: list[ItemMetric], context: Context, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    if not chosen:
        return {}
    values = item_values.ValueStore(context.out / "values.jsonl")
    marks = {name: fingerprint(path) for name, path in context.weights.items()}
    content = {item.name: (_sha(item.path), _sha(item.reference)) for item in context.items}
    columns: dict[str, list[float]] = {}
    for metric in chosen:
        own = {name: marks[name] for name in metric.weights()}
        keys = {item.name: item_values.item_key(metric, item, content[item.name], own) for item in context.items}
        todo = [item for item in context.items if values.get(keys[item.name]) is None]
        if todo:
            _score(metric, todo, keys, values, context)
        columns[metric.name] = [_read_stored(values, keys[item.name]) for item in context.items]
    item_values.merge_csv(context.out / "values.csv", context.items, columns)
    return {metric.name: metric.reduce(columns[metric.name], bootstrap) for metric in chosen}


def _read_stored(values: item_values.ValueStore, key: str) -> float:
    value = values.get(key)
    if value is None:
        raise RuntimeError(f"value {key} was computed but not stored")
    return value


def _score(
    metric: ItemMetric,
    todo: list[MediaItem],
    keys: Mapping[str, str],
    values: item_values.ValueStore,
    context: Context,
) -> None:
    for names, scores in iterate_scores(metric, todo, context):
        values.add(metric.name, [(n, keys[n], score) for n, score in zip(names, scores, strict=True)])


def _set_results(chosen: list[SetMetric], context: Context) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    for family in dict.fromkeys(metric.family for metric in chosen):
        members = [metric for metric in chosen if metric.family == family]
        results |= members[0].compute(members, context)
    return results
