"""Train the emoji judge on the composer's pictures, with noise, blur and brightness as augmentation.

    python -m experiments train emoji-judge          # some ten minutes on one CPU core

    L = contrastive + sum over object, colour, count and style of the cross-entropy

Held-out accuracy is that on scenes which neither the judge nor the model was trained on. The record also has the scores
under growing blur and noise and with wrong captions, which must fall.

    --updates N      updates of the weights (2000)
    --batch N        pictures per update (64)
    --rate X         highest learning rate (0.002)
    --seed N         of initialisation and data (0)
    --output FOLDER  receives the weights (experiments/assets/emoji)
"""

from __future__ import annotations

import json
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from experiments.backends.emoji.captions import Scene, draw, random_scene
from experiments.backends.emoji.judge import EmojiJudge, targets
from experiments.cli import Arguments, Exit
from experiments.files import ASSETS
from experiments.learning.train_digits import autocast

__all__ = ["accuracies", "ladder", "main", "real_pictures"]

LEVELS = {"blur": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0), "noise": (0.0, 0.1, 0.2, 0.4, 0.8)}
"""Standard deviations: of the blur in pixels, of the noise where pictures are in [-1, 1]."""


def real_pictures(seed: int, number: int, held: bool | None) -> tuple[list[Scene], Tensor]:
    """Scenes and their pictures `[n, 3, 32, 32]` by the composer."""
    rng = np.random.default_rng([seed, 77])
    scenes = [random_scene(rng, held=held) for _ in range(number)]
    return scenes, torch.stack([draw(scene, rng) for scene in scenes])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures with noise, a quarter blurred a little, all with a slightly other brightness."""
    n = len(images)
    uniform = torch.rand(4, n, 1, 1, 1, generator=generator)
    soft = gaussian_blur(images, [3, 3], [0.7, 0.7])
    images = torch.where(uniform[0] < 0.25, soft, images)
    noise = torch.randn(images.shape, generator=generator) * 0.2 * uniform[2]
    images = torch.where(uniform[1] < 0.5, images + noise, images)
    return images * (0.95 + 0.1 * uniform[3])


def loss_of(judge: EmojiJudge, images: Tensor, scenes: list[Scene]) -> Tensor:
    """Contrastive and classification losses of a batch; equal captions are not negatives of each other."""
    with autocast():
        verdict = judge(images)
        read = judge.read([scene.caption for scene in scenes])
    scores = (verdict.embedding @ read.T).float() * judge.log_scale.exp()
    captions = [scene.caption for scene in scenes]
    same = torch.tensor([[a == b for b in captions] for a in captions])
    same.fill_diagonal_(False)
    scores = scores.masked_fill(same, float("-inf"))
    diagonal = torch.arange(len(scenes))
    contrastive = (F.cross_entropy(scores, diagonal) + F.cross_entropy(scores.T, diagonal)) / 2
    wanted = targets(scenes)
    losses = [F.cross_entropy(logits.float(), wanted[name]) for name, logits in verdict.logits.items()]
    return contrastive + torch.stack(losses).sum()


@torch.inference_mode()
def accuracies(judge: EmojiJudge, scenes: list[Scene], images: Tensor) -> dict[str, float]:
    """Share of right answers per aspect."""
    return {name: round(hits.double().mean().item(), 4) for name, hits in judge(images).correct(scenes).items()}


@torch.inference_mode()
def ladder(judge: EmojiJudge, scenes: list[Scene], images: Tensor) -> dict[str, list[tuple[float, float]]]:
    """Mean alignment under growing blur and noise, and with captions of which some words are wrong.

    A wrong caption is another picture's: its colour, then its object too, then all of it.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    captions = [scene.caption for scene in scenes]

    def score(shown: Tensor, read: list[str]) -> float:
        return round(judge.alignment(shown, read).mean().item(), 4)

    found: dict[str, list[tuple[float, float]]] = {"blur": [], "noise": []}
    for level in LEVELS["blur"]:
        shown = gaussian_blur(images, [13, 13], [level, level]) if level else images
        found["blur"].append((level, score(shown, captions)))
    for level in LEVELS["noise"]:
        found["noise"].append((level, score(images + level * noise, captions)))
    found["wrong"] = [(share, score(images, wrong(scenes, share))) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return found


def wrong(scenes: list[Scene], share: float) -> list[str]:
    """Captions, of which this share is another picture's."""
    others = [*scenes[1:], scenes[0]]
    pairs = enumerate(zip(scenes, others, strict=True))
    return [(other if index % 4 < 4 * share else scene).caption for index, (scene, other) in pairs]


def train(updates: int, batch: int, seed: int, rate: float) -> EmojiJudge:
    """The judge after so many updates."""
    torch.manual_seed(seed)
    judge = EmojiJudge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=updates, pct_start=0.05)
    running = 10.0
    for update in range(updates):
        rng = np.random.default_rng([seed, 1, update])
        scenes = [random_scene(rng) for _ in range(batch)]
        images = torch.stack([draw(scene, rng) for scene in scenes])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        loss = loss_of(judge, augment(images, generator), scenes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = 0.98 * running + 0.02 * loss.item()
        if update % 100 == 99:
            print(f"{update + 1} loss {running:.3f} cpu {time.process_time():.0f} s", flush=True)
    return judge.eval().requires_grad_(False)


def main(arguments: list[str]) -> None:
    """Train the judge and write it with a record of the training."""
    parser = Arguments(prog="python -m experiments train emoji-judge")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ASSETS / "emoji")
    args = parser.parse_args(arguments)

    judge = train(args.updates, args.batch, args.seed, args.rate)
    args.output.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in judge.state_dict().items()}
    save_file(weights, args.output / "judge.safetensors")
    judge.load_state_dict({name: value.float() for name, value in weights.items()})
    scenes, images = real_pictures(1234, 2000, held=True)
    record = {
        "date": date.today().isoformat(),
        "updates": args.updates,
        "batch": args.batch,
        "rate": args.rate,
        "seed": args.seed,
        "cpu_minutes": round(time.process_time() / 60, 1),
        "torch": torch.__version__,
        "held_out_accuracy": accuracies(judge, scenes, images),
        "alignment": ladder(judge, scenes[:500], images[:500]),
    }
    (args.output / "judge.json").write_text(json.dumps(record) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
