"""Adapter for diffusers' `DiTTransformer2DModel` (DiT-XL/2 and the embedded digits model).

Each block is `x += gate_msa * attn1(norm(x)); x += gate_mlp * ff(norm(x))`; guidance doubles the batch, so there is one
branch. diffusers gives every block its own timestep and label embedder. They differ only in weights, so the
sinusoidal projection is evaluated once for all of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hicache.adapters.base import Adapter, Call, Sink
from hicache.tree import Site

__all__ = ["DiTAdapter"]


class DiTAdapter(Adapter):
    """Class-conditional DiT with adaLN-zero blocks."""

    output_channel = -3

    def sites(self, scope: str) -> list[Site]:
        if scope != "modules":
            return [Site(-1, scope)]
        return [Site(i, module) for i in range(len(self.model.transformer_blocks)) for module in ("attn", "mlp")]

    def attach(self, scope: str, sink: Sink) -> list[RemovableHandle]:
        blocks = self.model.transformer_blocks
        if scope == "modules":
            parts = [part for block in blocks for part in (block.attn1, block.ff)]
            return [part.register_forward_hook(_reporter(sink, index)) for index, part in enumerate(parts)]
        if scope == "stack":
            entry: list[Tensor] = []

            def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
                entry[:] = [args[0]]

            def leave(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
                sink(0, output - entry.pop())

            return [blocks[0].register_forward_pre_hook(enter), blocks[-1].register_forward_hook(leave)]
        return []

    def embed(self, call: Call) -> Tensor:
        return self.model.pos_embed(call["hidden_states"])

    def gates(self, call: Call, hidden: Tensor) -> Tensor:
        timestep, labels = call["timestep"], call["class_labels"]
        waves = self.model.transformer_blocks[0].norm1.emb.time_proj(timestep).to(hidden.dtype)
        found = []
        for block in self.model.transformer_blocks:
            norm, width = block.norm1, hidden.shape[-1]
            condition = F.silu(norm.emb.timestep_embedder(waves) + norm.emb.class_embedder(labels))
            for start in (2 * width, 5 * width):
                rows = slice(start, start + width)
                found.append(F.linear(condition, norm.linear.weight[rows], norm.linear.bias[rows]))
        return torch.stack(found)

    def head(self, call: Call, hidden: Tensor) -> Tensor:
        model = self.model
        embedder = model.transformer_blocks[0].norm1.emb
        condition = embedder(call["timestep"], call["class_labels"], hidden_dtype=hidden.dtype)
        shift, scale = model.proj_out_1(F.silu(condition)).chunk(2, dim=1)
        patches = model.proj_out_2(model.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None])
        batch, tokens, size = patches.shape
        side, patch = int(tokens**0.5), model.patch_size
        pixels = patches.reshape(batch, side, side, patch, patch, model.out_channels)
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(batch, model.out_channels, side * patch, side * patch)

    def wrap(self, call: Call, output: Tensor) -> Any:
        if not call["return_dict"]:
            return (output,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=output)

    def example(self, batch: int, device: torch.device) -> dict[str, Any]:
        config, dtype = self.model.config, self.model.dtype
        size = config.sample_size
        return {
            "hidden_states": torch.zeros(batch, config.in_channels, size, size, device=device, dtype=dtype),
            "timestep": torch.zeros(batch, device=device, dtype=torch.long),
            "class_labels": torch.zeros(batch, device=device, dtype=torch.long),
        }

    def published_estimate(self, batch: int) -> float:
        """The hand-written count behind the published DiT tables: modulations only, a MAC counted as one.

        `L B (C + 6 C^2)`: 0.446 G for the guided pair of DiT-XL/2.
        """
        width = self.model.inner_dim
        return float(len(self.model.transformer_blocks) * batch * (width + 6 * width**2))


def _reporter(sink: Sink, index: int) -> Any:
    def report(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        sink(index, output)

    return report
