"""Measure how far the own VBench dimensions are from the vbench package, on the same videos.

    python -m evaluation.parity.check_vbench python=ENV/bin/python work=DIR

Makes short videos in `work`. Networks are replaced on both sides by one random linear map, see
`vbench_process`, so this compares everything but the networks. Exit code 1 when a score differs by more than
1e-3.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from evaluation.cli import parse
from evaluation.errors import EvaluationError
from evaluation.media_files import read_video
from evaluation.parity import print_verdict, run
from evaluation.vbench import dimensions

TOLERANCE = 1e-3


def make_videos(folder: Path) -> list[Path]:
    """Three videos of moving smooth patterns, of different shapes."""
    import imageio.v3 as iio
    from PIL import Image

    rng = np.random.default_rng(0)
    paths = []
    for index, (height, width, frames) in enumerate([(240, 320, 9), (320, 240, 5), (256, 256, 7)]):
        coarse = rng.integers(0, 256, (8, 8 + frames, 3), dtype=np.uint8)
        pictures = [
            Image.fromarray(coarse[:, step : step + 8]).resize((width, height), Image.Resampling.BICUBIC)
            for step in range(frames)
        ]
        path = folder / f"video-{index}.mp4"
        iio.imwrite(path, np.stack([np.asarray(picture) for picture in pictures]), plugin="FFMPEG", fps=8)
        paths.append(path)
    return paths


def own_scores(path: Path, matrix: Tensor) -> dict[str, float]:
    """The three dimensions with the linear map in place of the networks."""
    frames = torch.from_numpy(read_video(path)).permute(0, 3, 1, 2).contiguous()

    def features(pixels: Tensor) -> Tensor:
        return normalize(adaptive_avg_pool2d(pixels, 16).flatten(1) @ matrix.T, dim=-1)

    return {
        "temporal_flickering": float(dimensions.flickering(frames)),
        "subject_consistency": float(dimensions.consistency(features(dimensions.dino_inputs(frames)))),
        "background_consistency": float(
            dimensions.consistency(features(dimensions.clip_frame_inputs(frames.float() / 255, 224)))
        ),
    }


def main(words: list[str]) -> int:
    """Compare and report."""
    data = parse(words)
    if "python" not in data or "work" not in data:
        raise EvaluationError("python, work: both must be given")
    work = Path(str(data["work"])).resolve()
    work.mkdir(parents=True, exist_ok=True)
    matrix = np.random.default_rng(1).standard_normal((32, 3 * 16 * 16)).astype(np.float32)
    np.save(work / "map.npy", matrix, allow_pickle=False)
    paths = make_videos(work)
    worker = Path(__file__).with_name("vbench_process.py")
    command = [str(data["python"]), str(worker), str(work / "map.npy"), *map(str, paths)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    theirs = json.loads(answer.splitlines()[-1])
    worst = 0.0
    for index, path in enumerate(paths):
        for name, ours in own_scores(path, torch.from_numpy(matrix)).items():
            worst = max(worst, abs(ours - theirs[name][index]))
            print(f"{path.name} {name:24} own {ours:.7f} package {theirs[name][index]:.7f}")
    return print_verdict(worst, TOLERANCE)


if __name__ == "__main__":
    run(main)
