"""One resumable pass of Inception over a folder or archive of images.

Memory does not grow with the number of images: moments are two matrices, the Inception score needs per split
only `sum p` and `sum p log p`, because `mean KL(p_i || q) = mean sum p_i log p_i - sum q log q` with `q =
mean p_i`; pool features for precision and recall go to a file. The state is saved every `SHARD` images
(rounded to whole batches) and at the end, after the disk has the features that it counts; an interrupted pass
continues there and ends with the same numbers, since batches begin at the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation import media_files, npz
from evaluation.durable_files import replacing, sync_files
from evaluation.errors import EvaluationError
from evaluation.frechet import RunningCovariance
from evaluation.inception import CLASSES, POOL, SPATIAL, Inception, InceptionFeatures
from evaluation.item_values import digest
from evaluation.metric import Context
from evaluation.pretrained import fingerprint

__all__ = ["SHARD", "SPLIT", "SplitScores", "InceptionStatistics", "run_inception"]

SHARD = 2000  # images between two saves of the state (67 MB)
SPLIT = 5000  # images per split of the Inception score


@dataclass(kw_only=True)
class SplitScores:
    """Sufficient statistics of the Inception score per consecutive split."""

    size: int = SPLIT
    counts: list[int] = field(default_factory=list)
    probability: list[Tensor] = field(default_factory=list)
    negative_entropy: list[float] = field(default_factory=list)

    def add(self, log_probabilities: Tensor) -> None:
        """See the next images, `[B, 1008]` log-probabilities in float64."""
        left = log_probabilities.cpu().double()
        while len(left):
            if not self.counts or self.counts[-1] == self.size:
                self.counts.append(0)
                self.probability.append(torch.zeros(left.shape[1], dtype=torch.float64))
                self.negative_entropy.append(0.0)
            part, left = left.tensor_split([self.size - self.counts[-1]])
            self.counts[-1] += len(part)
            self.probability[-1] += part.exp().sum(0)
            self.negative_entropy[-1] += float(torch.special.entr(part.exp()).sum().neg())

    def value(self) -> float:
        """Mean over splits of `exp(mean KL)`."""
        if not self.counts:
            raise ValueError("inception score: no image was seen")
        scores = [
            torch.tensor(negative / n, dtype=torch.float64) + torch.special.entr(total / n).sum()
            for n, total, negative in zip(self.counts, self.probability, self.negative_entropy, strict=True)
        ]
        return float(torch.stack(scores).exp().mean())


@dataclass(kw_only=True)
class InceptionStatistics:
    """What one pass over `count` images leaves behind."""

    folder: Path
    pool: RunningCovariance
    spatial: RunningCovariance
    scores: SplitScores

    @classmethod
    def empty(cls, folder: Path, device: str) -> InceptionStatistics:
        """Before the first image."""
        return cls(
            folder=folder,
            pool=RunningCovariance.empty(POOL, device),
            spatial=RunningCovariance.empty(SPATIAL, device),
            scores=SplitScores(),
        )

    @property
    def count(self) -> int:
        """Images seen."""
        return self.pool.count

    def add(self, features: InceptionFeatures, kept: Path | None) -> None:
        """See one batch."""
        self.pool.add(features.pool.double())
        self.spatial.add(features.spatial.double())
        self.scores.add(features.log_probabilities)
        if kept is not None:
            with kept.open("ab") as file:
                file.write(features.pool.float().cpu().numpy().tobytes())

    def features(self, device: str) -> Tensor:
        """Pool features of a pass that kept them, `[count, 2048]` float32."""
        kept = self.folder / "pool.f32"
        _require(kept, self.count)
        data = np.fromfile(kept, dtype=np.float32, count=self.count * POOL)
        return torch.from_numpy(data.reshape(-1, POOL)).to(device)

    def save(self) -> None:
        """Replace the state file in one step."""
        arrays = {
            f"{name}_{part}": getattr(moments, part).cpu().numpy()
            for name, moments in self._moments()
            for part in ("mean", "scatter")
        }
        seen = self.scores.probability
        with replacing(self.folder / "state.npz") as partial, partial.open("wb") as file:
            np.savez(
                file,
                count=self.count,
                counts=np.array(self.scores.counts, dtype=np.int64),
                probability=torch.stack(seen).numpy() if seen else np.zeros((0, CLASSES)),
                negative_entropy=np.array(self.scores.negative_entropy, dtype=np.float64),
                **arrays,
            )

    def _moments(self) -> tuple[tuple[str, RunningCovariance], tuple[str, RunningCovariance]]:
        return ("pool", self.pool), ("spatial", self.spatial)

    @classmethod
    def load(cls, folder: Path, device: str) -> InceptionStatistics:
        """The saved state, or an empty one."""
        result = cls.empty(folder, device)
        path = folder / "state.npz"
        if not path.is_file():
            return result
        try:
            with np.load(path, allow_pickle=False) as state:
                for name, moments in result._moments():
                    moments.count = int(state["count"])
                    moments.mean.copy_(torch.from_numpy(state[f"{name}_mean"]))
                    moments.scatter.copy_(torch.from_numpy(state[f"{name}_scatter"]))
                result.scores.counts = state["counts"].tolist()
                result.scores.probability = list(torch.from_numpy(state["probability"]))
                result.scores.negative_entropy = state["negative_entropy"].tolist()
        except (OSError, ValueError, KeyError) as error:
            raise EvaluationError(f"{path}: must be a saved state; delete it to start anew ({error})") from error
        return result


def run_inception(source: Path, context: Context, keep_features: bool) -> InceptionStatistics:
    """Run or resume the pass over a folder of images or an `.npz` archive."""
    total, identity, read = _source(source, context.batch_size)
    weights = context.weights["inception"]
    keys = {keep: digest(identity, fingerprint(weights), context.batch_size, keep) for keep in (True, False)}
    folders = {keep: context.out / "inception" / key for keep, key in keys.items()}
    if not keep_features and (folders[True] / "state.npz").is_file():
        richer = InceptionStatistics.load(folders[True], context.device)
        if richer.count == total:
            return richer
    folder = folders[keep_features]
    folder.mkdir(parents=True, exist_ok=True)
    state = InceptionStatistics.load(folder, context.device)
    kept = folder / "pool.f32" if keep_features else None
    if state.count < total:
        if kept is not None:
            _cut(kept, state.count)
        _run(state, read(state.count), total, kept, Inception(weights, context.device), context)
    return state


def _cut(kept: Path, count: int) -> None:
    """Drop features that were written after the last saved state."""
    _require(kept, count)
    with kept.open("ab") as file:
        file.truncate(count * POOL * 4)


def _require(kept: Path, count: int) -> None:
    """The features that the state counts must be there: `truncate` would fill up a shorter file with zeros."""
    there, wanted = kept.stat().st_size if kept.is_file() else 0, count * POOL * 4
    if there < wanted:
        rule = f"must hold the features of {count} images (delete the folder {kept.parent} to start anew)"
        raise EvaluationError(f"{kept}: {rule}, got {there} of {wanted} bytes")


def _run(
    state: InceptionStatistics,
    batches: Iterator[np.ndarray],
    total: int,
    kept: Path | None,
    network: Inception,
    context: Context,
) -> None:
    saved = state.count
    with tqdm(total=total, initial=saved, desc="inception", disable=not context.progress, leave=False) as bar:
        for batch in batches:
            state.add(network(torch.from_numpy(batch).permute(0, 3, 1, 2)), kept)
            bar.update(len(batch))
            if state.count - saved >= SHARD or state.count == total:
                if kept is not None:
                    sync_files([kept])
                state.save()
                saved = state.count


Reader = Callable[[int], Iterator[np.ndarray]]


def _source(source: Path, batch_size: int) -> tuple[int, list[object], Reader]:
    """Number of images, identity of the data, and a reader of batches from a position on."""
    if source.suffix == ".npz":
        shape = npz.sample_shape(source)
        if shape is None:
            raise EvaluationError(f"{source}: must hold the samples arr_0 for this metric, got statistics only")
        stat = source.stat()
        identity: list[object] = [source.name, stat.st_size, stat.st_mtime_ns]
        return shape[0], identity, lambda start: npz.read_samples(source, batch_size, start)
    kind, files = media_files.list_media(source)
    if kind != "image":
        raise EvaluationError(f"{source}: Inception metrics read images, got {kind} files")
    stats = [(path.name, path.stat()) for path in files]
    identity = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return len(files), identity, lambda start: _images(files, batch_size, start)


def _images(files: list[Path], batch_size: int, start: int) -> Iterator[np.ndarray]:
    """Batches from a position on; the next one is read while one is looked at."""
    first = media_files.read_image(files[0])
    with ThreadPoolExecutor(max_workers=4) as pool:
        reading = pool.map(media_files.read_image, files[start : start + batch_size])
        for begin in range(start, len(files), batch_size):
            group, after = files[begin : begin + batch_size], files[begin + batch_size : begin + 2 * batch_size]
            pictures = list(reading)
            reading = pool.map(media_files.read_image, after)
            for path, picture in zip(group, pictures, strict=True):
                if picture.shape != first.shape:
                    raise EvaluationError(
                        f"{path}: must have the size of {files[0].name} {list(first.shape[:2])}, "
                        f"got {list(picture.shape[:2])}"
                    )
            yield np.stack(pictures)
