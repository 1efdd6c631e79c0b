"""Measure how far the ImageReward port is from the published package, on the same weights and pictures.

    python -m evaluation.parity.check_image_reward python=ENV/bin/python work=DIR [count=8]

Without `work/ImageReward.pt` and `work/vocab.txt` a checkpoint of random weights of the real architecture
is made there first; put the released files there to compare on those. Prints both rewards per picture and
the largest difference; exit code 1 when it exceeds 1e-4.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluation.alignment import ImageReward
from evaluation.cli import parse
from evaluation.errors import EvaluationError
from evaluation.metric import Batch
from evaluation.parity import print_verdict, run

TOLERANCE = 1e-4
_PROMPTS = (
    "a photo of the red cat",
    "The dog, singing",
    "a red dog beside a cat " * 12,
    "x",
)


def pictures(count: int) -> list[torch.Tensor]:
    """Smooth random pictures of several aspect ratios, `[1, 3, H, W]`, of whole 8-bit values."""
    rng = np.random.default_rng(0)
    sizes = [(256, 256), (300, 500), (500, 300), (224, 224), (233, 410), (1024, 1024)]
    result = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        result.append(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255)
    return result


def main(words: list[str]) -> int:
    """Compare and report."""
    data = parse(words)
    if "python" not in data or "work" not in data:
        raise EvaluationError("python, work: both must be given")
    python, work, count = str(data["python"]), Path(str(data["work"])).resolve(), int(data.get("count", 8))
    worker = Path(__file__).with_name("image_reward_process.py")
    if not (work / "ImageReward.pt").is_file():
        subprocess.run([python, str(worker), "make", str(work)], check=True)
    weights = {"image_reward": work / "ImageReward.pt", "bert_vocabulary": work / "vocab.txt"}
    port = ImageReward().load("cpu", weights)
    package = ImageReward(backend="package", python=python).load("cpu", weights)
    worst = 0.0
    for index, picture in enumerate(pictures(count)):
        batch = Batch(names=[str(index)], images=picture, prompts=[_PROMPTS[index % len(_PROMPTS)]])
        with torch.inference_mode():
            ours, theirs = float(port(batch)), float(package(batch))
        worst = max(worst, abs(ours - theirs))
        print(f"{index:3} {tuple(picture.shape[2:])} port {ours:+.7f} package {theirs:+.7f}")
    return print_verdict(worst, TOLERANCE)


if __name__ == "__main__":
    run(main)
