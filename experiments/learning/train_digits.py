"""Train the embedded default: a class-conditional DiT and a classifier on scikit-learn's digits.

    python -m experiments train digits            # about 30 minutes on one CPU core with bf16 (AMX)

DDPM with the linear beta schedule (1e-4 to 0.02, 1000 steps), epsilon-prediction,

    L = E || eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t, c) ||^2,

labels replaced by the null class with probability 0.1 (classifier-free guidance), AdamW with warm-up and
cosine decay, exponential moving average of the weights. Everything is seeded. The weights are written in bfloat16
to `output`, with a `training.json` beside them that the model card quotes.

    --steps N             optimizer steps of the DiT (7000)
    --classifier-steps N  optimizer steps of the classifier (2000)
    --batch N             images per step of the DiT (64)
    --seed N              of initialisation, data order and noise (0)
    --output FOLDER       receives the weights (experiments/assets/digits)
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from experiments.backends.digits.classifier import DigitsClassifier
from experiments.backends.digits.data import CLASSES, NULL_CLASS, SIZE, split
from experiments.cli import Arguments, Exit
from experiments.files import ASSETS

__all__ = ["build_dit", "main"]

TRAIN_STEPS = 1000


def build_dit() -> DiTTransformer2DModel:
    """DiT with 6 blocks, width 128, 64 tokens (patch 2 on 16x16 pixels); predicts epsilon only."""
    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=1,
        out_channels=1,
        num_layers=6,
        sample_size=SIZE,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        attention_bias=True,
        activation_fn="gelu-approximate",
    )


def initialise(model: DiTTransformer2DModel) -> None:
    """adaLN-zero: every block starts as the identity and the output as zero (DiT, Section 3.2)."""
    blocks: Any = model.transformer_blocks
    for block in blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
        torch.nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
    for layer in (model.proj_out_1, model.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def alphas_cumprod() -> Tensor:
    betas = torch.linspace(1e-4, 0.02, TRAIN_STEPS, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0).float()


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel in both directions (the only augmentation)."""
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    moves = torch.randint(0, 3, (len(images), 2), generator=generator)
    rows = moves[:, 0, None] + torch.arange(SIZE)
    columns = moves[:, 1, None] + torch.arange(SIZE)
    index = torch.arange(len(images))[:, None, None]
    return padded[index, 0, rows[:, :, None], columns[:, None, :]][:, None]


def autocast() -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast where the processor multiplies bfloat16 natively, else nothing."""
    capable = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast("cpu", dtype=torch.bfloat16) if capable else contextlib.nullcontext()


def epsilon_loss(model: torch.nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the predicted noise at random timesteps.

    The math attention is chosen because the CPU flash kernel's backward is the slowest part of a step.
    """
    t = torch.randint(0, TRAIN_STEPS, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    abar = alphas_cumprod()[t][:, None, None, None]
    noisy = abar.sqrt() * images + (1 - abar).sqrt() * noise
    with autocast(), sdpa_kernel(SDPBackend.MATH):
        predicted = model(noisy, timestep=t, class_labels=labels, return_dict=False)[0]
    return F.mse_loss(predicted.float(), noise)


@torch.no_grad()
def held_out_loss(model: torch.nn.Module) -> float:
    """Loss on the 197 held-out images over 8 fixed noise draws."""
    _, (images, labels) = split()
    generator = torch.Generator().manual_seed(1234)
    losses = [epsilon_loss(model, images, labels, generator).item() for _ in range(8)]
    return sum(losses) / len(losses)


def train_dit(steps: int, batch: int, seed: int, rate: float = 1e-3) -> tuple[DiTTransformer2DModel, dict[str, float]]:
    """Train the DiT; returns the averaged model and its losses.

    The model stays in eval mode: DiT has no dropout, and diffusers would drop the label of each block
    independently in train mode, where guidance needs one decision per item.
    """
    torch.manual_seed(seed)
    model = build_dit().eval()
    initialise(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.99))

    def warm_cosine(step: int) -> float:
        return min(1.0, step / 500) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine)
    (images, labels), _ = split()
    generator = torch.Generator().manual_seed(seed)
    running = 1.0
    for step in (bar := tqdm(range(steps), mininterval=5)):
        pick = torch.randint(0, len(images), (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < 0.1
        y = torch.where(dropped, NULL_CLASS, labels[pick])
        loss = epsilon_loss(model, jitter(images[pick], generator), y, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        running = 0.99 * running + 0.01 * loss.item()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{running:.4f}")
    averaged: Any = average.module
    return averaged, {"train_loss": running, "held_out_loss": held_out_loss(averaged)}


def train_classifier(steps: int, seed: int) -> tuple[DigitsClassifier, float]:
    """Train the classifier on the same split; returns it with its held-out accuracy."""
    torch.manual_seed(seed)
    model = DigitsClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    (images, labels), (held_images, held_labels) = split()
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), mininterval=5):
        pick = torch.randint(0, len(images), (128,), generator=generator)
        clean = jitter(images[pick], generator)
        noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator)
        loss = F.cross_entropy(model(noisy), labels[pick], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(held_images).argmax(1) == held_labels).float().mean().item()
    return model, accuracy


def main(arguments: list[str]) -> None:
    """Train both models and write them with a record of the training."""
    parser = Arguments(prog="python -m experiments train digits")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--classifier-steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ASSETS / "digits")
    args = parser.parse_args(arguments)

    args.output.mkdir(parents=True, exist_ok=True)
    started = time.time()
    classifier, accuracy = train_classifier(args.classifier_steps, args.seed)
    save_file(
        {k: v.contiguous() for k, v in classifier.state_dict().items()},
        args.output / "classifier.safetensors",
    )
    model, losses = train_dit(args.steps, args.batch, args.seed)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(args.output / "transformer")
    record = {
        "date": date.today().isoformat(),
        "steps": args.steps,
        "batch": args.batch,
        "seed": args.seed,
        "minutes": round((time.time() - started) / 60, 1),
        "torch": torch.__version__,
        "classifier_held_out_accuracy": round(accuracy, 4),
        **{name: round(value, 5) for name, value in losses.items()},
    }
    (args.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
