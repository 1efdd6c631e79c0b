"""Adapter for diffusers' `DiTTransformer2DModel` (DiT-XL/2 and the embedded digits model).

Each block is `x += gate_msa * attn1(norm(x)); x += gate_mlp * ff(norm(x))`; guidance doubles the batch, so there is
one branch. diffusers gives every block its own timestep and label embedder. They differ only in weights, so the
sinusoidal projection is evaluated once for all of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicache.adapters.base import Adapter, Call, Streams
from hicache.adapters.modules import Module
from hicache.tree import Site

__all__ = ["DiTAdapter"]


class DiTAdapter(Adapter):
    """Class-conditional DiT with adaLN-zero blocks."""

    family = "dit"
    output_channel = -3
    guidance = "batch"

    def blocks(self) -> list[nn.Module]:
        return list(self.model.transformer_blocks)

    def modulations(self) -> list[nn.Module]:
        return [block.norm1.linear for block in self.model.transformer_blocks]

    def modules(self) -> list[Module]:
        return [
            Module(Site(i, name), module, block.norm1.linear, chunk)
            for i, block in enumerate(self.model.transformer_blocks)
            for name, module, chunk in (("attn", block.attn1, 2), ("mlp", block.ff, 5))
        ]

    def streams(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        return (args[0] if args else kwargs["hidden_states"]), None

    def unpack(self, result: Any) -> Streams:
        return result, None

    def pack(self, streams: Streams) -> Any:
        return streams[0]

    def embed(self, call: Call) -> Tensor:
        """Rows of channels: diffusers gives channels of rows, which every later operation would mix with frames."""
        return self.model.pos_embed(call["hidden_states"]).contiguous()

    def condition(self, call: Call, hidden: Tensor) -> Tensor:
        """The condition of the head, which diffusers takes from the first block."""
        embedder = self.model.transformer_blocks[0].norm1.emb
        return embedder(call["timestep"], call["class_labels"], hidden_dtype=hidden.dtype)

    def indicator(self, call: Call, hidden: Tensor) -> Tensor:
        norm = self.model.transformer_blocks[0].norm1
        return norm(hidden, call["timestep"], call["class_labels"], hidden_dtype=hidden.dtype)[0]

    def gates(self, call: Call, hidden: Tensor) -> Tensor:
        first = self.model.transformer_blocks[0].norm1.emb
        waves = first.time_proj(call["timestep"]).to(hidden.dtype)
        rows = self.gate_rows(hidden.shape[-1])
        found: list[Tensor] = []
        for i, block in enumerate(self.model.transformer_blocks):
            embedder = block.norm1.emb
            condition = F.silu(embedder.timestep_embedder(waves) + embedder.class_embedder(call["class_labels"]))
            found += [gate(condition) for gate in rows[2 * i : 2 * i + 2]]
        return torch.stack(found)

    def head(self, call: Call, hidden: Tensor) -> Tensor:
        model = self.model
        shift, scale = model.proj_out_1(F.silu(self.condition(call, hidden))).chunk(2, dim=1)
        patches = model.proj_out_2(model.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None])
        batch, tokens, _ = patches.shape
        side, patch = int(tokens**0.5), model.patch_size
        pixels = patches.reshape(batch, side, side, patch, patch, model.out_channels)
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(batch, model.out_channels, side * patch, side * patch)

    def prediction(self, output: Tensor) -> Tensor:
        """Without the learned variance."""
        return output[:, : self.model.config.in_channels]

    def halves(self, call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
        """Rows of the conditional call first, as all pipelines of this class have them."""
        rows = call["hidden_states"].shape[0]
        if rows % 2:
            raise ValueError(f"guidance: must be plain for a batch that is not doubled, got {rows} rows")
        split = {
            key: value.chunk(2)
            for key, value in call.items()
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == rows
        }
        shared = {key: value for key, value in call.items() if key != "self"}
        first, second = ({**shared, **{key: parts[i] for key, parts in split.items()}} for i in range(2))
        return first, second

    def example(self, batch: int, device: torch.device, **shape: int) -> dict[str, Any]:
        config, dtype = self.model.config, self.model.dtype
        size: int = shape.get("size") or config.sample_size
        return {
            "hidden_states": torch.zeros(batch, config.in_channels, size, size, device=device, dtype=dtype),
            "timestep": torch.zeros(batch, device=device, dtype=torch.long),
            "class_labels": torch.zeros(batch, device=device, dtype=torch.long),
        }
