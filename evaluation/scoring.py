"""Scores of items: decoded media in batches of one size, handed to a metric's scorer.

Images are read by threads and batched over items; a video is cut into batches of its own frames, unless the metric
needs all of them at once; a cloud or a mesh is a batch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from evaluation import media_files, meshes
from evaluation.errors import EvaluationError
from evaluation.metric import Batch, Context, ItemMetric, MediaItem, Scorer, mean_of_frames

__all__ = ["iterate_scores", "read_frames", "score_items"]


def score_items(metric: ItemMetric, items: list[MediaItem], context: Context) -> list[float]:
    """Scores of items, without storing them."""
    return [score for _, scores in iterate_scores(metric, items, context) for score in scores]


def iterate_scores(
    metric: ItemMetric, items: list[MediaItem], context: Context
) -> Iterator[tuple[list[str], list[float]]]:
    """(names, scores) batch by batch; a score that is no number is an error."""
    scorer = metric.load(context.device, {name: context.weights[name] for name in metric.weights()})
    bar = tqdm(total=len(items), desc=metric.name, disable=not context.progress, leave=False)
    with bar, torch.inference_mode():
        for names, scores in _score_media(metric, scorer, items, context):
            for name, score in zip(names, scores, strict=True):
                if math.isnan(score):
                    raise EvaluationError(f"{name}: {metric.name} must be a number, got NaN")
            yield names, scores
            bar.update(len(names))


def _score_media(
    metric: ItemMetric, scorer: Scorer, items: list[MediaItem], context: Context
) -> Iterator[tuple[list[str], list[float]]]:
    kind = media_files.detect_kind(items[0].path)
    if kind == "image":
        for batch in _image_batches(items, context):
            yield batch.names, _call(metric, scorer, batch)
    for item in items if kind != "image" else []:
        if kind == "video":
            yield [item.name], [_score_video(metric, scorer, item, context)]
        else:
            read = meshes.read_triangles if kind == "mesh" else media_files.read_points
            yield [item.name], _call(metric, scorer, _shape_batch(item, read, context.device))


def _call(metric: ItemMetric, scorer: Scorer, batch: Batch) -> list[float]:
    try:
        return [float(score) for score in scorer(batch)]
    except ValueError as error:
        raise EvaluationError(f"{batch.names[0]}: {metric.name}: {error}") from error


def _score_video(metric: ItemMetric, scorer: Scorer, item: MediaItem, context: Context) -> float:
    frames, reference = _read_pair(item)
    size = context.batch_size if metric.framewise else len(frames)
    scores: list[float] = []
    for start in range(0, len(frames), size):
        part = slice(start, start + size)
        pair = (frames[part], None if reference is None else reference[part])
        scores += _call(metric, scorer, _make_batch([item], [pair], context.device))
    return mean_of_frames(scores)


def read_frames(path: Path) -> np.ndarray:
    """Frames `[T, H, W, 3]` of an image (T = 1) or a video."""
    if media_files.detect_kind(path) == "video":
        return media_files.read_video(path)
    return media_files.read_image(path)[None]


def _image_batches(items: list[MediaItem], context: Context) -> Iterator[Batch]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, len(items), context.batch_size):
            group = items[start : start + context.batch_size]
            pairs = list(pool.map(_read_pair, group))
            while group:  # one batch per run of equal sizes
                size = pairs[0][0].shape
                same = next((i for i, pair in enumerate(pairs) if pair[0].shape != size), len(pairs))
                yield _make_batch(group[:same], pairs[:same], context.device)
                group, pairs = group[same:], pairs[same:]


def _read_pair(item: MediaItem) -> tuple[np.ndarray, np.ndarray | None]:
    image = read_frames(item.path)
    if item.reference is None:
        return image, None
    reference = read_frames(item.reference)
    if image.shape != reference.shape:
        ours, theirs = (" x ".join(map(str, shape[:3])) for shape in (image.shape, reference.shape))
        raise EvaluationError(
            f"{item.path}: must have the size of {item.reference} ({theirs}, frames first), got {ours}"
        )
    return image, reference


def _tensor(frames: list[np.ndarray], device: str) -> torch.Tensor:
    stacked = torch.from_numpy(np.concatenate(frames)).to(device)
    return stacked.permute(0, 3, 1, 2).contiguous().float() / 255


def _make_batch(items: list[MediaItem], pairs: list[tuple[np.ndarray, np.ndarray | None]], device: str) -> Batch:
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


def _shape_batch(item: MediaItem, read: Callable[[Path], np.ndarray], device: str) -> Batch:
    def load(path: Path) -> torch.Tensor:
        return torch.from_numpy(read(path)).to(device)

    reference = load(item.reference) if item.reference else None
    return Batch(names=[item.name], images=load(item.path), references=reference)
