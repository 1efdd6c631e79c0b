r"""Adapter for Inf-DiT's network (arXiv 2405.04312): blocks of an image, attention to the left and above, no gates.

Every layer adds `Attention` and `MLP` to the stream as they are, so the last hidden state is the first one plus the
sum of all values, and scope `modules` equals scope `stack` for every basis whose weights are those of the step alone.
The cross-attention to the low-resolution image, in layer 0, is computed at estimated steps too (`live`), as in the
published counts, or forecast like the others where the model's configuration says `cache_cross`.

The network's output is the raw prediction, not the denoised image: that is what scope `output` forecasts.

Two calls of a Heun step have the same noise level, so time is the index of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hicache.adapters.base import Adapter, Call, Sink, Streams
from hicache.adapters.hooks import eager
from hicache.adapters.modules import Module
from hicache.tree import Site

__all__ = ["InfDiTAdapter"]


def normalised(x: Tensor) -> Tensor:
    """Layer norm without affine parts."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class InfDiTAdapter(Adapter):
    """The network of super-resolution by Inf-DiT."""

    family = "inf_dit"
    output_channel = -3
    patchable = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._count = len(self.modules())

    def timestep(self, call: Call) -> Tensor:
        """The noise level: the call has `ln(sigma) / 4`, which may be negative."""
        return (4 * call["timestep"]).exp() / 40

    def blocks(self) -> list[nn.Module]:
        return list(self.model.transformer_blocks)

    def modules(self) -> list[Module]:
        found: list[Module] = []
        for i, layer in enumerate(self.model.transformer_blocks):
            found.append(Module(Site(i, "attn"), layer.attn, layer.adaln, 0))
            if layer.cross is not None and self.model.config.cache_cross:
                found.append(Module(Site(i, "cross"), layer.cross, layer.adaln, 0))
            found.append(Module(Site(i, "mlp"), layer.mlp, layer.adaln, 0))
        return found

    def streams(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        return (args[0] if args else kwargs["hidden_states"]), None

    def unpack(self, result: Any) -> Streams:
        return result, None

    def pack(self, streams: Streams) -> Any:
        return streams[0]

    def embed(self, call: Call) -> Tensor:
        return self.model.embed(call["hidden_states"])

    def condition(self, call: Call, hidden: Tensor) -> Tensor:
        return self.model.condition(call["timestep"], call["image_vector"])

    def indicator(self, call: Call, hidden: Tensor) -> Tensor:
        layer = self.model.transformer_blocks[0]
        shift, scale, *_ = layer.adaln(self.condition(call, hidden)).chunk(4, 1)
        return normalised(hidden) * (1 + scale[:, None]) + shift[:, None]

    def gates(self, call: Call, hidden: Tensor) -> Tensor:
        """Ones: there are no gates."""
        return hidden.new_ones(self._count, hidden.shape[0], hidden.shape[-1])

    def live(self, call: Call, hidden: Tensor, forecast: Callable[[Site], Tensor]) -> Tensor:
        """The cross-attention of layer 0, behind the forecast of the attention before it."""
        if self.model.config.cache_cross:
            return hidden
        layer = self.model.transformer_blocks[0]
        behind = normalised(hidden + forecast(Site(0, "attn")))
        return hidden + layer.cross(behind, self.model.windows(call["low_resolution"]))

    def head(self, call: Call, hidden: Tensor) -> Tensor:
        patches = self.model.head(hidden, self.condition(call, hidden))
        return self.model.pixels(patches, self.model.grid(*call["hidden_states"].shape[-2:]))

    def attach(self, scope: str, sink: Sink) -> list[RemovableHandle] | None:
        """As everywhere, but the whole stack is watched as one module, however many rows of blocks it runs at a time.

        Raises:
            ValueError: for a scope that reaches into the stack while it runs some rows of blocks at a time.
        """
        if scope not in ("stack", "final_hidden"):
            if self.model.block_rows is not None and scope != "output":
                raise ValueError(f"scope: must be stack, final_hidden or output with rows of blocks, got {scope!r}")
            return None

        @eager
        def leave(module: nn.Module, args: tuple[Any, ...], result: Tensor) -> None:
            sink(0, result - args[0] if scope == "stack" else result)

        return [self.model.transformer_blocks.register_forward_hook(leave)]

    def example(self, batch: int, device: torch.device, **shape: int) -> dict[str, Any]:
        config, dtype = self.model.config, self.model.dtype
        height, width = (shape.get(side) or config.block_size for side in ("height", "width"))
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        return {
            "hidden_states": torch.zeros(batch, 6, height, width, **options),
            "timestep": torch.zeros(batch, **options),
            "image_vector": torch.zeros(batch, config.vector_size, **options),
            "low_resolution": torch.zeros(batch, 3, height // config.scale, width // config.scale, **options),
        }
