r"""Train the small super-resolution model: Inf-DiT's network, 1.4 million parameters, x4, on photographs.

    python -m experiments train super-resolution work=FOLDER [steps=5000] [stop=4600] [batch=4] [seed=0]

The denoiser works on what the enlarged image lacks (`Preconditioning(residual=True)`); with `F*` its target,

    L = E || F(c_in [x - up, up], ln(s) / 4, low-resolution image) - F*(x, s) ||^2,    x = clean + s z,
    ln s ~ N(ln 0.3, 1.5) with probability 0.85, else uniform from ln 0.002 to ln 40.

Patches of 96 x 96 pixels (3 x 3 blocks), turned and mirrored, channels permuted, of the training photographs at their
size and at half of it. AdamW, warm-up and cosine decay, moving average of the weights. One thread: about 40 minutes.
Everything is seeded; the state is saved every 200 steps, and the same command goes on from there. The shipped weights
are those of step 4600 of a schedule of 5000.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from experiments.backends.inf_dit.backend import SIGMA_DATA
from experiments.backends.inf_dit.edm import Preconditioning
from experiments.backends.inf_dit.images import channel_statistics, downscale, upscale
from experiments.backends.inf_dit.model import InfDiTTransformer2DModel
from experiments.backends.inf_dit.photographs import TRAIN, VALIDATION_ROWS, photograph
from experiments.cli import Exit
from experiments.errors import check, choose

__all__ = ["SIZES", "main", "train"]

SIZES: dict[str, Any] = {"num_layers": 6, "hidden_size": 112, "num_heads": 4, "block_size": 32, "vector_size": 6}
PATCH, SCALE, SAVE_EVERY = 96, 4, 200


@dataclass(frozen=True)
class ImageTriple:
    """A photograph at one size: the image and its enlarged low-resolution image `[3, H, W]`, and that one itself."""

    clean: Tensor
    up: Tensor
    low: Tensor


def scene(image: Tensor) -> ImageTriple:
    """The three images of `[1, 3, H, W]`."""
    low = downscale(image, SCALE)
    return ImageTriple(clean=image[0], up=upscale(low, SCALE)[0], low=low[0])


def scenes(validation: bool = False) -> list[tuple[ImageTriple, float]]:
    """What patches are drawn from, with weights: every photograph at two sizes, or its lowest rows."""
    found = []
    for name, weight in TRAIN.items():
        image = photograph(name)
        kept = image[..., -VALIDATION_ROWS:, :] if validation else image[..., :-VALIDATION_ROWS, :]
        found.append((scene(kept), float(weight)))
        half = F.interpolate(kept, scale_factor=0.5, mode="bicubic", antialias=True).clamp(-1, 1)
        half = half[..., : half.shape[-2] // SCALE * SCALE, : half.shape[-1] // SCALE * SCALE]
        if min(half.shape[-2:]) >= PATCH:
            found.append((scene(half), weight / 2))
    return found


def patch(source: ImageTriple, generator: torch.Generator) -> ImageTriple:
    """A random patch, turned, mirrored, its channels permuted."""
    rows, columns = (side - PATCH // SCALE for side in source.low.shape[-2:])
    top = int(torch.randint(rows + 1, (1,), generator=generator))
    left = int(torch.randint(columns + 1, (1,), generator=generator))
    turns, mirror = (int(torch.randint(n, (1,), generator=generator)) for n in (4, 2))
    channels = torch.randperm(3, generator=generator)

    def cut(image: Tensor, scale: int) -> Tensor:
        side = PATCH // SCALE * scale
        part = image[channels, top * scale : top * scale + side, left * scale : left * scale + side]
        part = torch.rot90(part, turns, (1, 2))
        return part.flip(2) if mirror else part

    return ImageTriple(clean=cut(source.clean, SCALE), up=cut(source.up, SCALE), low=cut(source.low, 1))


def batch_of(sources: list[tuple[ImageTriple, float]], size: int, generator: torch.Generator) -> ImageTriple:
    """Patches in batches `[B, 3, ...]`."""
    weights = torch.tensor([weight for _, weight in sources])
    chosen = torch.multinomial(weights, size, replacement=True, generator=generator)
    parts = [patch(sources[int(i)][0], generator) for i in chosen]
    return ImageTriple(**{key: torch.stack([getattr(part, key) for part in parts]) for key in ("clean", "up", "low")})


def noise_level(size: int, generator: torch.Generator) -> Tensor:
    """Noise levels `[B, 1, 1, 1]`; see the module docstring."""
    normal = math.log(0.3) + 1.5 * torch.randn(size, generator=generator)
    uniform = math.log(0.002) + math.log(40 / 0.002) * torch.rand(size, generator=generator)
    wide = torch.rand(size, generator=generator) < 0.15
    return torch.where(wide, uniform, normal.clamp(math.log(0.002), math.log(40))).exp().view(-1, 1, 1, 1)


def loss_of(model: Any, batch: ImageTriple, generator: torch.Generator) -> Tensor:
    """The mean squared error of `F`."""
    edm = Preconditioning(SIGMA_DATA, residual=True)
    sigma = noise_level(len(batch.clean), generator)
    x = batch.clean + sigma * torch.randn(batch.clean.shape, generator=generator)
    inputs = edm.inputs(x, sigma, batch.up)
    found = model(inputs, sigma.flatten().log() / 4, channel_statistics(batch.low), batch.low, return_dict=False)[0]
    return F.mse_loss(found, edm.target(batch.clean, x, sigma, batch.up))


@torch.no_grad()
def validation_loss(model: Any, sources: list[tuple[ImageTriple, float]]) -> float:
    """The loss on 64 fixed patches of the rows kept for it."""
    generator = torch.Generator().manual_seed(7)
    losses = [loss_of(model, batch_of(sources, 8, generator), generator).item() for _ in range(8)]
    return sum(losses) / len(losses)


def rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 200 steps, then a cosine to 0."""
    return peak * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(work: Path, steps: int, stop: int, batch: int, seed: int, peak: float = 2e-3) -> AveragedModel:
    """Train to step `stop` of a schedule of `steps`, or go on; `work` has `state.pt` and `log.jsonl`."""
    torch.manual_seed(seed)
    model = InfDiTTransformer2DModel(**SIZES)
    model.initialise()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    generator, start = torch.Generator().manual_seed(seed), 0
    parts = {"model": model, "averaged": averaged, "optimiser": optimiser}
    if (work / "state.pt").is_file():
        state = torch.load(work / "state.pt", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
        start = state["step"]
    sources, held = scenes(), scenes(validation=True)
    total, began = 0.0, time.process_time()
    for step in range(start, stop):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, steps, peak)
        loss = loss_of(model, batch_of(sources, batch, generator), generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        averaged.update_parameters(model)
        total += loss.item()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stop:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**state, "generator": generator.get_state(), "step": step + 1}, work / "state.tmp")
            (work / "state.tmp").replace(work / "state.pt")
            row = {"step": step + 1, "loss": total / SAVE_EVERY, "validation": validation_loss(averaged, held)}
            row["cpu_s"] = round(time.process_time() - began, 1)
            with open(work / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            total = 0.0
    return averaged


def main(arguments: list[str]) -> None:
    """Train with `key=value` arguments and write the averaged weights in bfloat16 to `work/transformer`."""
    options, given = {"steps": 5000, "stop": 4600, "batch": 4, "seed": 0}, dict[str, str]()
    for argument in arguments:
        key, _, value = argument.partition("=")
        choose("argument", key, ("work", *options))
        rule = "must be a folder" if key == "work" else "must be an integer >= 0"
        check(value != "" if key == "work" else value.isdecimal(), key, rule, value)
        given[key] = value
    check("work" in given, "work", "must be a folder", "")
    work = Path(given.pop("work"))
    options |= {key: int(value) for key, value in given.items()}
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    averaged: Any = train(work, **options)
    averaged.module.to(torch.bfloat16).save_pretrained(work / "transformer", safe_serialization=True)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
