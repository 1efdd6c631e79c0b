"""Compute metrics over a folder: check everything first, then score item by item, then reduce.

Nothing is reduced unless every item was scored, so a result never rests on a part of the items.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evaluation import media, store
from evaluation.base import Batch, Context, Item, ItemMetric, Metric, Scorer, SetMetric
from evaluation.doctor import build, problems
from evaluation.errors import EvaluationError
from evaluation.weights import fingerprint, locate

__all__ = ["evaluate", "frames_of", "score_items"]


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
    level: float = 0.95,
    subset: bool = False,  # allow references that have no image
    progress: bool | None = None,  # None: a bar when stderr is a terminal
) -> dict[str, dict[str, Any]]:
    """Values of `metrics` for the media in `images`; a problem anywhere raises and nothing is counted."""
    images, out = Path(images), Path(out) if out else Path(f"{images}-evaluation")
    reference = Path(reference) if reference else None
    if batch_size < 1:
        raise EvaluationError(f"batch_size: must be at least 1, got {batch_size}")
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
    results = _item_results([m for m in chosen if isinstance(m, ItemMetric)], context, level)
    results |= _set_results([m for m in chosen if isinstance(m, SetMetric)], context)
    return {metric.name: results[metric.name] for metric in chosen}


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
) -> list[Item]:
    paired = any(isinstance(metric, ItemMetric) and "reference" in metric.needs for metric in chosen)
    if images.suffix == ".npz":
        for metric in chosen:
            if isinstance(metric, ItemMetric):
                raise EvaluationError(f"{images}: {metric.name} reads a folder of files, got an .npz archive")
        return []
    kind, items = media.pair_items(images, reference if paired else None, prompts, subset)
    for metric in chosen:
        if kind not in metric.media:
            raise EvaluationError(f"{images}: {metric.name} reads {sorted(metric.media)}, got {kind} files")
    return items


def _sha(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _item_results(chosen: list[ItemMetric], context: Context, level: float) -> dict[str, dict[str, Any]]:
    if not chosen:
        return {}
    values = store.ValueStore(context.out / "values.jsonl")
    marks = {name: fingerprint(path) for name, path in context.weights.items()}
    content = {item.name: (_sha(item.path), _sha(item.reference)) for item in context.items}
    columns: dict[str, list[float]] = {}
    for metric in chosen:
        own = {name: marks[name] for name in metric.weights()}
        keys = {item.name: store.item_key(metric, item, content[item.name], own) for item in context.items}
        todo = [item for item in context.items if values.get(keys[item.name]) is None]
        if todo:
            _score(metric, todo, keys, values, context)
        columns[metric.name] = [_stored(values, keys[item.name]) for item in context.items]
    store.write_csv(context.out / "values.csv", [item.name for item in context.items], columns)
    return {metric.name: metric.reduce(columns[metric.name], level) for metric in chosen}


def _stored(values: store.ValueStore, key: str) -> float:
    value = values.get(key)
    if value is None:
        raise RuntimeError(f"value {key} was computed but not stored")
    return value


def _score(
    metric: ItemMetric,
    todo: list[Item],
    keys: Mapping[str, str],
    values: store.ValueStore,
    context: Context,
) -> None:
    scorer = metric.load(context.device, {name: context.weights[name] for name in metric.weights()})
    bar = tqdm(total=len(todo), desc=metric.name, disable=not context.progress, leave=False)
    with bar, torch.inference_mode():
        for names, scores in _scored(metric, scorer, todo, context):
            _check_numbers(metric, names, scores)
            values.add(metric.name, [(n, keys[n], score) for n, score in zip(names, scores, strict=True)])
            bar.update(len(names))


def score_items(metric: ItemMetric, items: list[Item], context: Context) -> list[float]:
    """Scores of items without storing them, for metrics of a set that are built on metrics of items."""
    scorer = metric.load(context.device, {name: context.weights[name] for name in metric.weights()})
    bar = tqdm(total=len(items), desc=metric.name, disable=not context.progress, leave=False)
    result: list[float] = []
    with bar, torch.inference_mode():
        for names, scores in _scored(metric, scorer, items, context):
            _check_numbers(metric, names, scores)
            result += scores
            bar.update(len(names))
    return result


def _check_numbers(metric: ItemMetric, names: list[str], scores: list[float]) -> None:
    for name, score in zip(names, scores, strict=True):
        if math.isnan(score):
            raise EvaluationError(f"{name}: {metric.name} must be a number, got NaN")


def _scored(
    metric: ItemMetric, scorer: Scorer, todo: list[Item], context: Context
) -> Iterator[tuple[list[str], list[float]]]:
    kind = media.kind_of(todo[0].path)
    if kind == "image":
        for batch in _image_batches(todo, context):
            yield batch.names, _call(metric, scorer, batch)
    for item in todo if kind != "image" else []:
        if kind == "points":
            yield [item.name], _call(metric, scorer, _points(item, context.device))
        else:
            yield [item.name], [_video(metric, scorer, item, context)]


def _call(metric: ItemMetric, scorer: Scorer, batch: Batch) -> list[float]:
    try:
        return [float(score) for score in scorer(batch)]
    except ValueError as error:
        raise EvaluationError(f"{batch.names[0]}: {metric.name}: {error}") from error


def _video(metric: ItemMetric, scorer: Scorer, item: Item, context: Context) -> float:
    frames, reference = _pair(item)
    size = context.batch_size if metric.framewise else len(frames)
    scores: list[float] = []
    for start in range(0, len(frames), size):
        part = slice(start, start + size)
        pair = (frames[part], None if reference is None else reference[part])
        scores += _call(metric, scorer, _batch([item], [pair], context.device))
    return sum(scores) / len(scores)


def frames_of(path: Path) -> np.ndarray:
    """Frames `[T, H, W, 3]` of an image (T = 1) or a video."""
    return media.read_video(path) if media.kind_of(path) == "video" else media.read_image(path)[None]


def _image_batches(items: list[Item], context: Context) -> Iterator[Batch]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, len(items), context.batch_size):
            group = items[start : start + context.batch_size]
            pairs = list(pool.map(_pair, group))
            while group:  # one batch per run of equal sizes
                size = pairs[0][0].shape
                same = next((i for i, pair in enumerate(pairs) if pair[0].shape != size), len(pairs))
                yield _batch(group[:same], pairs[:same], context.device)
                group, pairs = group[same:], pairs[same:]


def _pair(item: Item) -> tuple[np.ndarray, np.ndarray | None]:
    image = frames_of(item.path)
    if item.reference is None:
        return image, None
    reference = frames_of(item.reference)
    if image.shape != reference.shape:
        ours, theirs = (" x ".join(map(str, shape[:3])) for shape in (image.shape, reference.shape))
        raise EvaluationError(
            f"{item.path}: must have the size of {item.reference} ({theirs}, frames first), got {ours}"
        )
    return image, reference


def _tensor(frames: list[np.ndarray], device: str) -> torch.Tensor:
    stacked = torch.from_numpy(np.concatenate(frames)).to(device)
    return stacked.permute(0, 3, 1, 2).contiguous().float() / 255


def _batch(items: list[Item], pairs: list[tuple[np.ndarray, np.ndarray | None]], device: str) -> Batch:
    references = [reference for _, reference in pairs if reference is not None]
    prompts = [
        item.prompt
        for item, (image, _) in zip(items, pairs, strict=True)
        if item.prompt is not None
        for _ in range(len(image))
    ]
    return Batch(
        names=[item.name for item in items],
        images=_tensor([image for image, _ in pairs], device),
        references=_tensor(references, device) if references else None,
        prompts=prompts or None,
    )


def _points(item: Item, device: str) -> Batch:
    def load(path: Path) -> torch.Tensor:
        return torch.from_numpy(media.read_points(path)).to(device)

    reference = load(item.reference) if item.reference else None
    return Batch(names=[item.name], images=load(item.path), references=reference)


def _set_results(chosen: list[SetMetric], context: Context) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    for family in dict.fromkeys(metric.family for metric in chosen):
        members = [metric for metric in chosen if metric.family == family]
        results |= members[0].compute(members, context)
    return results
