"""The part of `python -m benchmarks.scale` that runs in a process of its own: Inception over pictures of noise."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import evaluation
from evaluation import npz
from evaluation.inception import POOL
from evaluation.inception_pass import InceptionStatistics

__all__ = ["measure"]

SIDE, BATCH = 32, 64


def write_weights(path: Path) -> nn.Module:
    """Torch-fidelity's Inception with random weights, which are written to a file."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    with (
        mock.patch.object(module, "load_state_dict_from_url", return_value={}),
        mock.patch.object(nn.Module, "load_state_dict"),
    ):
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    torch.save(network.state_dict(), path)
    return network.eval()


def write_images(folder: Path, count: int, seed: int) -> list[Path]:
    """Pictures of noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{index:05d}.png" for index in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return paths


@torch.inference_mode()
def loop(network: nn.Module, paths: list[Path]) -> list[tuple[Tensor, ...]]:
    """Read, stack, call: what any loop must do."""
    found = []
    for start in range(0, len(paths), BATCH):
        pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths[start : start + BATCH]]
        found.append(network(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)))
    return found


def seconds(job: Callable[[], object]) -> float:
    """CPU of all threads."""
    started = time.process_time()
    job()
    return time.process_time() - started


def peak() -> float:
    """Of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def seen() -> Iterator[list[tuple[int, float, float]]]:
    """Images, CPU seconds and peak after each batch of the passes inside."""
    points: list[tuple[int, float, float]] = []
    add = InceptionStatistics.add

    def noted(self: InceptionStatistics, *batch: Any) -> None:
        add(self, *batch)
        points.append((self.count, time.process_time(), peak()))

    with mock.patch.object(InceptionStatistics, "add", noted):
        yield points


def measure(place: str, count: int) -> None:
    """Print as JSON what the loops took: images, seconds, peak in MB, and the three of the least; and FID's peaks.

    The least of FID and IS is the first eighth of the same pass: only that tells what images cost from what a second
    network does. The bare loop goes over an eighth of the images before the other, and over an eighth after it.
    """
    folder, eighth = Path(place), count // 8
    folder.mkdir(parents=True)
    network, weights = write_weights(folder / "weights.pth"), {"inception": folder / "weights.pth"}
    paths = write_images(folder / "all", count, 2)
    npz.write_statistics(folder / "reference.npz", {"mu": np.zeros(POOL), "sigma": np.eye(POOL)})
    options: dict[str, Any] = {"batch_size": BATCH, "out": folder / "out", "weights": weights, "progress": False}
    loop(network, paths[: min(BATCH, eighth)])
    bare = seconds(lambda: loop(network, paths[:eighth]))
    started = time.process_time()
    with seen() as points:
        evaluation.evaluate(folder / "all", folder / "reference.npz", None, ["fid", "inception_score"], **options)
    whole, after = time.process_time() - started, peak()
    bare += seconds(lambda: loop(network, paths[-eighth:]))
    few, until, before = next(point for point in points if point[0] >= eighth)
    ours, theirs = (count, whole, after, few, until - started, before), (2 * eighth, bare, after, 0, 0.0, after)
    peaks = {n: round(most) for n, _, most in points[:: max(len(points) // 8, 1)]}
    print(json.dumps({"FID and IS": ours, "bare torch-fidelity loop": theirs, "peaks": peaks}))
