"""The papers' hand-written counts, by model family, where they differ from the operations that run.

The tables charge an estimated step at module scope for embedders and modulations as a whole, though only the gates'
rows of the modulations are needed; DiT's count a multiply-add as one and leave the embedders out. Inf-DiT's are those
of one block of 64 pixels in a patch of 2 x 2 of them, where missing neighbours are not charged: 9 of 16 pairs of
blocks, 2.25 per block; a cached step is charged the modulations of all layers too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hicache.adapters import Adapter

__all__ = ["DISCARDED", "ESTIMATES", "FULL", "discarded_flops", "estimate_flops", "full_flops"]

NEIGHBOURS = 2.25
"""Mean number of blocks that a block of a 2 x 2 patch of Inf-DiT attends to, itself included."""


def weights(module: nn.Module) -> int:
    """Values in the weight matrices of a module."""
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


def dit(model: Any, batch: int, tokens: int, text: int) -> float:
    """`L B (C + 6 C^2)`: modulations only, a multiply-add as one; 0.446 G for the guided pair of DiT-XL/2."""
    del tokens, text
    width = model.inner_dim
    return float(len(model.transformer_blocks) * batch * (width + 6 * width**2))


def two_streams(model: Any, batch: int, tokens: int, text: int) -> float:
    """Embedders of both streams, the modulations of all blocks as a whole, and the head, 2 per multiply-add."""
    double, single = model.transformer_blocks, getattr(model, "single_transformer_blocks", ())
    if hasattr(model, "img_in"):
        image, words = model.img_in, model.txt_in
        modulations = [m for block in double for m in (block.img_mod, block.txt_mod)]
    else:
        image, words = model.x_embedder, model.context_embedder
        modulations = [m for block in double for m in (block.norm1, block.norm1_context)]
    modulations += [block.norm for block in single]
    rows = {tokens: [image, model.proj_out], text: [words], 1: [model.time_text_embed, model.norm_out, *modulations]}
    return float(sum(2 * batch * n * weights(module) for n, modules in rows.items() for module in modules))


def projected_rows(model: Any) -> float:
    """HunyuanVideo's published code projects queries, keys and values of patched rows and throws them away: 6 d^2."""
    return 6.0 * (model.config.num_attention_heads * model.config.attention_head_dim) ** 2


def inf_dit_sizes(config: Any) -> tuple[int, int]:
    """Tokens of a block of half the size, and of the low-resolution image in the 3 x 3 blocks around it."""
    side = config.block_size // 2
    return (side // config.patch_size) ** 2, (3 * side // config.scale // config.lr_patch_size) ** 2


def inf_dit(model: Any, batch: int = 1, image: int = 0, text: int = 0) -> float:
    """One block: embeddings, cross-attention, all modulations and the head."""
    del batch, image, text
    c, (tokens, windows) = model.config, inf_dit_sizes(model.config)
    width = c.hidden_size
    patches = 2 * (6 + 3) * c.patch_size**2 * width * tokens + 2 * 3 * c.lr_patch_size**2 * width * windows / 9
    vectors = 2 * width * (192 + c.vector_size + 2 * width) + 2 * width**2 * (4 * c.num_layers + 2)
    cross = 4 * tokens * width**2 + 4 * windows * width**2 + 4 * tokens * windows * width
    return float(patches + vectors + cross)


def inf_dit_full(model: Any) -> float:
    """One block: what an estimate has, and the attention and MLP of every layer."""
    c, (tokens, _) = model.config, inf_dit_sizes(model.config)
    layer = 24 * tokens * c.hidden_size**2 + 4 * NEIGHBOURS * tokens**2 * c.hidden_size
    return inf_dit(model) + c.num_layers * layer


ESTIMATES: dict[str, Callable[[Any, int, int, int], float]] = {
    "dit": dit,
    "flux": two_streams,
    "inf_dit": inf_dit,
    "hunyuan_video": two_streams,
    "qwen_image": two_streams,
}
"""By family: FLOPs of an estimated step at module scope from model, rows of the batch, image and text tokens."""

FULL: dict[str, Callable[[Any], float]] = {"inf_dit": inf_dit_full}
"""By family: FLOPs of a computed step, where the tables do not charge the code that runs."""

DISCARDED: dict[str, Callable[[Any], float]] = {"hunyuan_video": projected_rows}
"""By family: FLOPs per patched row of a single block that the published counts include and that nothing uses."""


def estimate_flops(adapter: Adapter, call: dict[str, Any]) -> float:
    """FLOPs of an estimated step at module scope as the papers' tables count it.

    Raises:
        ValueError: for a family that no table counts.
    """
    if adapter.family not in ESTIMATES:
        raise ValueError(f"convention: must be executed for {adapter.family}, which no table counts, got 'published'")
    text = call.get("encoder_hidden_states")
    batch, tokens = adapter.image_tokens(call)
    return ESTIMATES[adapter.family](adapter.model, batch, tokens, 0 if text is None else text.shape[1])


def full_flops(adapter: Adapter, counted: float) -> float:
    """FLOPs of a computed step as the papers' tables count it; `counted` are those of the code that runs."""
    return FULL[adapter.family](adapter.model) if adapter.family in FULL else counted


def discarded_flops(adapter: Adapter) -> float:
    """FLOPs per patched row of a single block that are counted and thrown away."""
    return DISCARDED[adapter.family](adapter.model) if adapter.family in DISCARDED else 0.0
