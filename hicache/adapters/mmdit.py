"""Adapters for diffusers' two-stream transformers: FLUX.1, HunyuanVideo, Qwen-Image.

Double blocks keep text and image apart: `attn` returns (image, text) and the image's MLP follows. Single blocks (FLUX,
HunyuanVideo) run attention and MLP in parallel on the concatenated streams, text first in FLUX and image first
in HunyuanVideo, and fuse both in one output projection: that projection is the site. The classes differ in the
order of their streams, the place of their modulations, their embedders and their head.

Texts of one batch are padded to one length. Values of padding are remembered as zeros, so that they enter no forecast
weight, score or cluster.

Branches of two-call guidance are told apart by diffusers' `cache_context`, never by parity.
"""

from __future__ import annotations

from abc import abstractmethod
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hicache.adapters.base import Adapter, Call, Streams
from hicache.adapters.modules import Module
from hicache.tree import Site

__all__ = ["FluxAdapter", "HunyuanVideoAdapter", "QwenImageAdapter", "StreamsAdapter"]


class StreamsAdapter(Adapter):
    """What the three classes share: double blocks, then perhaps single blocks, then `norm_out` and `proj_out`."""

    image_index: ClassVar[int]
    """Position of the image among the two tensors that a block returns."""
    text_first: ClassVar[bool] = True
    """Whether single blocks put the text in front."""
    mlp_name: ClassVar[str] = "ff"
    text_mlp_name: ClassVar[str] = "ff_context"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._text_tokens = 0
        self._valid: dict[str, Tensor] = {}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = super().bind(args, kwargs)
        self._text_tokens = call["encoder_hidden_states"].shape[1]
        self._valid = {}
        mask = self.text_mask(call)
        if mask is not None:
            image = mask.new_ones(len(mask), self.image_tokens(call)[1])
            self._valid = {"txt": mask, "joint": torch.cat([mask, image] if self.text_first else [image, mask], dim=1)}
        return call

    def text_mask(self, call: Call) -> Tensor | None:
        """Which text tokens are not padding, `[B, n]`; None where the model masks none."""
        del call
        return None

    def valid(self, stream: str) -> Tensor | None:
        return self._valid.get(stream)

    def blocks(self) -> list[nn.Module]:
        return [*self.model.transformer_blocks, *getattr(self.model, "single_transformer_blocks", ())]

    def modulation(self, block: Any) -> nn.Module:
        """The linear layer behind a double block's image modulation."""
        return block.norm1.linear

    def modulations(self) -> list[nn.Module]:
        single = getattr(self.model, "single_transformer_blocks", ())
        return [*map(self.modulation, self.model.transformer_blocks), *(block.norm.linear for block in single)]

    def modules(self) -> list[Module]:
        modules: list[Module] = []
        for i, block in enumerate(self.model.transformer_blocks):
            gate = self.modulation(block)
            modules += [
                Module(Site(i, "attn", "joint"), block.attn, gate, 2),
                Module(Site(i, "mlp", "img"), getattr(block, self.mlp_name), gate, 5),
                Module(Site(i, "mlp", "txt"), getattr(block, self.text_mlp_name)),
            ]
        single = getattr(self.model, "single_transformer_blocks", ())
        for i, block in enumerate(single, len(self.model.transformer_blocks)):
            fused = Site(i, "fused", "joint")
            modules += [
                Module(Site(i, "attn", "joint"), block.attn, feeds=fused),
                Module(fused, block.proj_out, block.norm.linear, 2, up=block.proj_mlp),
            ]
        return modules

    def module_value(self, module: Module, output: Any) -> Tensor:
        value = output
        if not isinstance(output, Tensor):
            value = torch.cat(output[::-1] if self.text_first else output, dim=1)
        valid = self.valid(module.site.stream)
        if valid is None or value.shape[1] != valid.shape[1]:  # a patched single block returns a few rows only
            return value
        return value.masked_fill(~valid[..., None], 0)

    def module_output(self, module: Module, value: Tensor) -> Any:
        if module.site.module != "attn" or module.feeds:
            return value
        return value[:, self.rows("img")], value[:, self.rows("txt")]

    def rows(self, stream: str) -> slice:
        text = self._text_tokens
        if stream == "joint":
            return slice(None)
        if self.text_first:
            return slice(text, None) if stream == "img" else slice(0, text)
        return slice(0, -text) if stream == "img" else slice(-text, None)

    def image_value(self, module: Module, output: Any) -> Tensor:
        if module.site.module == "attn":
            return output[0]
        if module.site.stream == "joint":
            return output[:, self._text_tokens :] if self.text_first else output[:, : -self._text_tokens]
        return output

    def streams(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        image = args[0] if args else kwargs["hidden_states"]
        text = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
        return image, text

    def unpack(self, result: Any) -> Streams:
        return result[self.image_index], result[1 - self.image_index]

    def pack(self, streams: Streams) -> Any:
        return streams if self.image_index == 0 else streams[::-1]

    def condition(self, call: Call, hidden: Tensor) -> Tensor:
        if "_condition" not in call:
            call["_condition"] = self._embed_condition(call, hidden)
        return call["_condition"]

    @abstractmethod
    def _embed_condition(self, call: Call, hidden: Tensor) -> Tensor:
        """The condition, computed anew; `condition` keeps it for the rest of the call."""

    def head(self, call: Call, hidden: Tensor) -> Tensor:
        return self.model.proj_out(self.model.norm_out(hidden, self.condition(call, hidden)))


class FluxAdapter(StreamsAdapter):
    """`FluxTransformer2DModel`: 19 double and 38 single blocks; text first; blocks return (text, image)."""

    family = "flux"
    image_index = 1

    def embed(self, call: Call) -> Tensor:
        return self.model.x_embedder(call["hidden_states"])

    def _embed_condition(self, call: Call, hidden: Tensor) -> Tensor:
        timestep = call["timestep"].to(hidden.dtype) * 1000
        if call["guidance"] is None:
            return self.model.time_text_embed(timestep, call["pooled_projections"])
        guidance = call["guidance"].to(hidden.dtype) * 1000
        return self.model.time_text_embed(timestep, guidance, call["pooled_projections"])

    def example(self, batch: int, device: torch.device, **shape: int) -> dict[str, Any]:
        """1024 x 1024 pixels and 512 text tokens unless `height`, `width` or `text` say otherwise."""
        config: Any = self.model.config
        kind: dict[str, Any] = {"device": device, "dtype": self.model.dtype}
        tokens, text = (shape.get("height", 1024) // 16) * (shape.get("width", 1024) // 16), shape.get("text", 512)
        return {
            "hidden_states": torch.zeros(batch, tokens, config.in_channels, **kind),
            "encoder_hidden_states": torch.zeros(batch, text, config.joint_attention_dim, **kind),
            "pooled_projections": torch.zeros(batch, config.pooled_projection_dim, **kind),
            "timestep": torch.zeros(batch, **kind),
            "guidance": torch.zeros(batch, **kind) if config.guidance_embeds else None,
            "img_ids": torch.zeros(tokens, 3, **kind),
            "txt_ids": torch.zeros(text, 3, **kind),
        }


class HunyuanVideoAdapter(StreamsAdapter):
    """`HunyuanVideoTransformer3DModel`: 20 double and 40 single blocks; image first; blocks return (image, text)."""

    family = "hunyuan_video"
    image_index = 0
    text_first = False
    output_channel = -4

    def module_output(self, module: Module, value: Tensor) -> Any:
        return (value, value[:, :0]) if module.feeds else super().module_output(module, value)

    def text_mask(self, call: Call) -> Tensor | None:
        mask = call["encoder_attention_mask"]  # the model reads no more of it than how many tokens count
        return torch.arange(mask.shape[1], device=mask.device) < mask.sum(1, keepdim=True)

    def embed(self, call: Call) -> Tensor:
        return self.model.x_embedder(call["hidden_states"])

    def _embed_condition(self, call: Call, hidden: Tensor) -> Tensor:
        arguments = (call["timestep"], call["pooled_projections"], call["guidance"])
        condition, token_replace = self.model.time_text_embed(*arguments)
        if token_replace is not None:
            raise ValueError("image_condition_type: must be None or latent_concat, got token_replace")
        return condition

    def head(self, call: Call, hidden: Tensor) -> Tensor:
        config = self.model.config
        batch, _, frames, height, width = call["hidden_states"].shape
        p, p_t = config.patch_size, config.patch_size_t
        grid = (frames // p_t, height // p, width // p)
        patches = super().head(call, hidden).reshape(batch, *grid, -1, p_t, p, p)
        pixels = patches.permute(0, 4, 1, 5, 2, 6, 3, 7)
        return pixels.reshape(batch, -1, grid[0] * p_t, grid[1] * p, grid[2] * p)

    def example(self, batch: int, device: torch.device, **shape: int) -> dict[str, Any]:
        """480 x 640 pixels, 65 frames and 256 text tokens unless told otherwise."""
        config: Any = self.model.config
        kind: dict[str, Any] = {"device": device, "dtype": self.model.dtype}
        frames, text = (shape.get("frames", 65) - 1) // 4 + 1, shape.get("text", 256)
        size = (frames, shape.get("height", 480) // 8, shape.get("width", 640) // 8)
        return {
            "hidden_states": torch.zeros(batch, config.in_channels, *size, **kind),
            "timestep": torch.zeros(batch, device=device, dtype=torch.long),
            "encoder_hidden_states": torch.zeros(batch, text, config.text_embed_dim, **kind),
            "encoder_attention_mask": torch.ones(batch, text, device=device, dtype=torch.bool),
            "pooled_projections": torch.zeros(batch, config.pooled_projection_dim, **kind),
            "guidance": torch.zeros(batch, **kind) if config.guidance_embeds else None,
        }

    def image_tokens(self, call: Call) -> tuple[int, int]:
        config, (batch, _, frames, height, width) = self.model.config, call["hidden_states"].shape
        return batch, (frames // config.patch_size_t) * (height // config.patch_size) * (width // config.patch_size)


class QwenImageAdapter(StreamsAdapter):
    """`QwenImageTransformer2DModel`: 60 double blocks that return (text, image), both for Qwen-Image and -Edit.

    Editing appends the tokens of the reference images; the pipeline uses those of the first image only, and so does
    scope `output`. Models with `zero_cond_t` modulate reference tokens differently, so that a gate is no longer
    one vector per sample: scope `modules` has its declared gates (`hicache.generic.gates`), the others are here.
    """

    family = "qwen_image"
    guidance = "calls"
    image_index = 1
    mlp_name = "img_mlp"
    text_mlp_name = "txt_mlp"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if self.model.zero_cond_t:
            self.scopes = tuple(scope for scope in type(self).scopes if scope != "modules")  # type: ignore[misc]

    def modulation(self, block: Any) -> nn.Module:
        return block.img_mod[1]

    def text_mask(self, call: Call) -> Tensor | None:
        mask = call["encoder_hidden_states_mask"]
        return None if mask is None else mask.bool()

    def indicator(self, call: Call, hidden: Tensor) -> Tensor:
        block = self.model.transformer_blocks[0]
        shift, scale = block.img_mod(self.condition(call, hidden)).chunk(6, dim=-1)[:2]
        return block.img_norm1(hidden) * (1 + scale[:, None]) + shift[:, None]

    def embed(self, call: Call) -> Tensor:
        return self.model.img_in(call["hidden_states"])

    def _embed_condition(self, call: Call, hidden: Tensor) -> Tensor:
        timestep, extra = call["timestep"].to(hidden.dtype), call["additional_t_cond"]
        if call["guidance"] is None:
            return self.model.time_text_embed(timestep, hidden, extra)
        guidance = call["guidance"].to(hidden.dtype) * 1000
        return self.model.time_text_embed(timestep, guidance, hidden, extra)

    def output(self, call: Call, result: Any) -> Tensor:
        return result[0][:, : prod(call["img_shapes"][0][0])]

    def example(self, batch: int, device: torch.device, **shape: int) -> dict[str, Any]:
        """1328 x 1328 pixels and 64 text tokens unless told otherwise; `reference` adds tokens of a square image."""
        config: Any = self.model.config
        kind: dict[str, Any] = {"device": device, "dtype": self.model.dtype}
        images = [(1, shape.get("height", 1328) // 16, shape.get("width", 1328) // 16)]
        if "reference" in shape:
            images.append((1, shape["reference"] // 16, shape["reference"] // 16))
        self.model.pos_embed.pos_freqs = self.model.pos_embed.pos_freqs.to(device)
        self.model.pos_embed.neg_freqs = self.model.pos_embed.neg_freqs.to(device)
        return {
            "hidden_states": torch.zeros(batch, sum(map(prod, images)), config.in_channels, **kind),
            "timestep": torch.zeros(batch, **kind),
            "encoder_hidden_states": torch.zeros(batch, shape.get("text", 64), config.joint_attention_dim, **kind),
            "encoder_hidden_states_mask": None,
            "img_shapes": [images] * batch,
        }
