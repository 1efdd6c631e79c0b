"""The table of docs/plans.md: FLOPs with a model's adapter beside those of the model's own forward, at true size.

python -m tests.hicache.traced writes it (four minutes); tests compare.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hicache
from hicache.adapters import adapter_for
from hicache.cost.meter import Meter

PAGE = Path(__file__).parents[2] / "docs" / "plans.md"
START, END = "<!-- traced -->\n", "<!-- end of traced -->"
STEPS = 50

TRUE_SIZE: dict[str, tuple[str, dict[str, Any], int, int]] = {  # class, constructor values, interval, warm-up
    "dit": (
        "DiTTransformer2DModel",
        {
            "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
            "sample_size": 32, "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_zero",
        },
        6,
        2,
    ),
    "flux": ("FluxTransformer2DModel", {"guidance_embeds": True}, 7, 3),
    "schnell": ("FluxTransformer2DModel", {"guidance_embeds": False}, 3, 2),
    "hunyuan_video": ("HunyuanVideoTransformer3DModel", {"text_embed_dim": 4096, "guidance_embeds": True}, 6, 1),
    "qwen_image": ("QwenImageTransformer2DModel", {}, 6, 3),
}  # fmt: skip

TITLES = {"dit": "DiT-XL/2", "flux": "FLUX", "hunyuan_video": "HunyuanVideo", "qwen_image": "Qwen-Image"}
OPTIONS: dict[str, dict[str, Any]] = {"span": {"front": 2}, "front_back": {"policy": "stages"}}
TEXT = {"flux": "context_embedder", "hunyuan_video": "context_embedder", "qwen_image": "txt_in"}
"""What the model's own forward embeds of the text at an estimate; the adapters leave it out: no estimate reads it."""
IMAGE = {"dit": "pos_embed", "flux": "x_embedder", "hunyuan_video": "x_embedder", "qwen_image": "img_in"}
"""What it embeds of the image; at scope final_hidden that is not read either."""


@cache
def true_size(name: str) -> nn.Module:
    """A model of true size without weights."""
    import diffusers

    kind, values, _, _ = TRUE_SIZE[name]
    with torch.device("meta"):
        return getattr(diffusers, kind)(**values)


def method_of(name: str, scope: str) -> hicache.CacheMethod:
    """The plan that the costs are of."""
    _, _, interval, warmup = TRUE_SIZE[name]
    knobs: dict[str, Any] = {"interval": interval, "warmup_steps": warmup, "order": 2, **OPTIONS.get(scope, {})}
    return hicache.method("hicache", scope=scope, **knobs)


@dataclass(frozen=True)
class Row:
    """One model at one scope: the costs of a run with its adapter and without, and what only the latter embeds."""

    name: str
    scope: str
    declared: hicache.cost.Cost
    traced: hicache.cost.Cost
    beside: float

    @property
    def run(self) -> float:
        """How much more a run costs."""
        return self.traced.total / self.declared.total - 1

    @property
    def alike(self) -> float:
        """The same of an estimated step, with what only the model's own forward embeds on both sides."""
        declared = self.declared.estimated + self.beside
        return self.traced.estimated / declared - 1 if declared else self.traced.estimated

    def __str__(self) -> str:
        shown = [self.declared.estimated / 1e9, self.traced.estimated / 1e9, self.beside / 1e9]
        cells = [TITLES[self.name], f"`{self.scope}`", *(f"{value:,.3f}" for value in shown)]
        return f"| {' | '.join([*cells, f'{self.run + 0.0:.3%}', f'{self.alike + 0.0:.3%}'])} |"


def rows(name: str) -> Iterator[Row]:
    """All scopes of a model."""
    model, batch = true_size(name), 2 if name == "dit" else 1
    example = adapter_for(model).example(batch, torch.device("meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**example)
    counts = counter.get_flop_counts()

    def flops(part: str) -> float:
        return float(sum(counts[f"{type(model).__name__}.{part}"].values())) if part else 0.0

    for scope in adapter_for(model).scopes:
        chosen = method_of(name, scope)
        declared = hicache.cost.measure(model, chosen, STEPS, batch)
        traced = Meter(model, chosen, example, published=False, declared=False).measure(STEPS, None, None, None)
        runs_blocks = scope in ("span", "front_back", "output")
        text = "" if runs_blocks else TEXT.get(name, "")
        yield Row(name, scope, declared, traced, flops(text) + flops(IMAGE[name] if scope == "final_hidden" else ""))


def table() -> str:
    """The table in Markdown."""
    heads = ["model", "scope", "adapter (G)", "own forward (G)", "of which embedders (G)", "run", "alike"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(str(row) for name in TITLES for row in rows(name))]) + "\n"


def printed() -> str:
    """The table as the page has it."""
    return PAGE.read_text().split(START)[1].split(END)[0]


if __name__ == "__main__":
    page = PAGE.read_text()
    sys.stdout.write(found := table())
    PAGE.write_text(page.replace(START + printed(), START + found))
