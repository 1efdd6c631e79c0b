"""Train the emoji model: FLUX's transformer and a small text encoder on captioned compositions of the shipped sprites.

    python -m experiments train emoji          # about 75 minutes on one CPU core with bf16 (AMX)

Rectified flow: x_s = (1 - s) x + s n, and the model predicts the velocity n - x,

    L = E || v_theta(x_s, s, c) - (n - x) ||^2,     s = shift(sigmoid(u)), u ~ N(0, 1),

with FLUX's shift of the noise levels (Esser et al. 2024; Black Forest Labs 2024). A tenth of the captions is replaced
by the empty one (classifier-free guidance). AdamW with warm-up and a linear decay over the last part, exponential
moving average of the weights. Every update draws its data from (seed, update), so a training that was interrupted
continues to the very same result; asking for fewer `--updates` on the way makes the rate fall from there.

    --updates N      updates of the weights (10000)
    --stop N         stop after this update, to be continued
    --batch N        pictures per update (32)
    --rate X         highest learning rate (0.002)
    --seed N         of initialisation, data and noise (0)
    --every N        updates between checkpoints (250)
    --output FOLDER  receives the weights (experiments/assets/emoji)
    --state FILE     the checkpoint (results/training/emoji.pt)
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.backends.emoji.captions import draw, random_scene
from experiments.backends.emoji.pipeline import CHANNELS, pack, predict, shift_levels
from experiments.backends.emoji.text_encoder import TextEncoder, encode
from experiments.cli import Arguments, Exit
from experiments.files import ASSETS, replacing
from experiments.learning.train_digits import autocast

__all__ = ["build", "main"]

DROPPED = 0.1
"""Share of captions that are replaced by the empty one."""
WARM_UP, DECAY = 100, 0.35
"""Updates of warm-up, and the last part of the training in which the rate falls to nothing."""
AVERAGE = 0.999
MODULATIONS = ("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear")


def build() -> tuple[FluxTransformer2DModel, TextEncoder]:
    """2 double and 4 single blocks, width 128, 64 image and 8 text tokens: 2.3 M parameters, and 0.1 M for text."""
    text = TextEncoder()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=text.config.width,
        pooled_projection_dim=text.config.width,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )
    initialise(transformer)
    return transformer, text


def initialise(transformer: FluxTransformer2DModel) -> None:
    """Xavier weights; modulations and the output start at zero (adaLN-zero; DiT, Section 3.2)."""
    for name, layer in transformer.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        torch.nn.init.xavier_uniform_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        if name == "proj_out" or name.endswith(MODULATIONS):
            torch.nn.init.zeros_(layer.weight)


def batch_of(seed: int, update: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packed pictures, token ids, noise, and noise levels of one update."""
    rng = np.random.default_rng([seed, update])
    scenes = [random_scene(rng) for _ in range(size)]
    images = torch.stack([draw(scene, rng) for scene in scenes])
    tokens = encode(["" if rng.random() < DROPPED else scene.caption for scene in scenes])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    levels = shift_levels(torch.sigmoid(torch.randn(size, generator=generator)))
    packed = pack(images)
    return packed, tokens, torch.randn(packed.shape, generator=generator), levels


def rate_at(update: int, updates: int, rate: float) -> float:
    """Warm-up, plateau, linear decay."""
    return rate * min(1.0, (update + 1) / WARM_UP) * min(1.0, (updates - update) / (DECAY * updates))


@dataclass(kw_only=True)
class Training:
    """Everything that changes while training."""

    transformer: FluxTransformer2DModel
    text: TextEncoder
    optimizer: torch.optim.Optimizer
    average: list[Tensor]
    update: int = 0
    running: float = 1.0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Of both models, in a fixed order."""
        return [*self.transformer.parameters(), *self.text.parameters()]

    def step(self, seed: int, size: int, rate: float) -> None:
        """One update of the weights and of their average."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images, tokens, noise, levels = batch_of(seed, self.update, size)
        mixed = torch.lerp(images, noise, levels[:, None, None])
        with autocast(), sdpa_kernel(SDPBackend.MATH):
            velocity = predict(self.transformer, mixed, levels, self.text(tokens))
        loss = F.mse_loss(velocity.float(), noise - images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        keep = min(AVERAGE, (1 + self.update) / (10 + self.update))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)
        smooth = min(0.99, self.update / (self.update + 1))
        self.running = smooth * self.running + (1 - smooth) * loss.item()
        self.update += 1

    def averaged(self) -> tuple[FluxTransformer2DModel, TextEncoder]:
        """The averaged weights, as models of their own."""
        transformer, text = build()
        for parameter, value in zip([*transformer.parameters(), *text.parameters()], self.average, strict=True):
            parameter.data.copy_(value)
        return transformer, text


def start(seed: int, rate: float) -> Training:
    """A training at its beginning."""
    torch.manual_seed(seed)
    transformer, text = build()
    parameters = [*transformer.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = [p.detach().clone() for p in parameters]
    return Training(transformer=transformer, text=text, optimizer=optimizer, average=average)


def save_state(training: Training, path: Path) -> None:
    """Write the checkpoint."""
    state: dict[str, Any] = {name: getattr(training, name) for name in ("update", "running", "seconds", "curve")}
    state |= {"average": training.average}
    state |= {name: getattr(training, name).state_dict() for name in ("transformer", "text", "optimizer")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        torch.save(state, partial)


def load_state(training: Training, path: Path) -> None:
    """Continue from the checkpoint."""
    state = torch.load(path, weights_only=True)
    for name in ("transformer", "text", "optimizer"):
        getattr(training, name).load_state_dict(state[name])
    for name in ("update", "running", "seconds", "average"):
        setattr(training, name, state[name])
    training.curve = [tuple(point) for point in state["curve"]]


def write(training: Training, folder: Path, facts: dict[str, Any]) -> None:
    """The averaged weights in bfloat16, and the record that the model card quotes."""
    transformer, text = training.averaged()
    for model, name in ((transformer, "transformer"), (text, "text_encoder")):
        torch.nn.Module.to(model, torch.bfloat16)
        model.save_pretrained(folder / name)
    record = {
        "date": date.today().isoformat(),
        "updates": training.update,
        **facts,
        "cpu_minutes": round(training.seconds / 60, 1),
        "torch": torch.__version__,
        "loss": round(training.running, 5),
        "curve": [[update, round(loss, 4)] for update, loss in training.curve],
    }
    (folder / "training.json").write_text(json.dumps(record) + "\n")


def main(arguments: list[str]) -> None:
    """Train, and write what the backend loads."""
    parser = Arguments(prog="python -m experiments train emoji")
    parser.add_argument("--updates", type=int, default=10000)
    parser.add_argument("--stop", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--output", type=Path, default=ASSETS / "emoji")
    parser.add_argument("--state", type=Path, default=Path("results/training/emoji.pt"))
    args = parser.parse_args(arguments)

    training = start(args.seed, args.rate)
    if args.state.is_file():
        load_state(training, args.state)
        print(f"continues from update {training.update} of {args.state}", flush=True)
    before = time.process_time() - training.seconds
    last = min(args.updates, args.stop or args.updates)
    while training.update < last:
        training.step(args.seed, args.batch, rate_at(training.update, args.updates, args.rate))
        training.seconds = time.process_time() - before
        if training.update % 50 == 0:
            print(f"{training.update} loss {training.running:.4f} cpu {training.seconds:.0f} s", flush=True)
        if training.update % args.every == 0 or training.update == last:
            training.curve.append((training.update, training.running))
            save_state(training, args.state)
    write(training, args.output, {"batch": args.batch, "rate": args.rate, "seed": args.seed})


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
