r"""Inf-DiT (Yang et al., 2024, arXiv 2405.04312): a pixel-space transformer over blocks of an image.

The image is cut into square *blocks* of `b x b` tokens, a token being a patch of pixels. With `LN` the layer norm
without affine parts, `c` the embedding of noise level and image vector, and shift and scale of
`mod(x) = x (1 + scale) + shift` linear in `c`, every layer is

    x <- x + Attention(mod_1(LN x)),       x <- x + Cross(LN x)  in layer 0 only,       x <- x + MLP(mod_2(LN' x)),

without gates; `LN'` is affine in layer 0 and `LN` elsewhere. The head is `W mod(LN LN x)`.

*Attention* (Section 3.2): the queries of a block see the keys of four blocks, itself and those on its left-top, left
and top; at the border the edge block stands for the missing one. Keys carry a learned embedding per slot and layer:

    Attention(x)_B = W_o softmax(q_B [k_B + e_0, k_LT + e_1, k_L + e_2, k_T + e_3]^T / sqrt(d)) [v_B, v_LT, v_L, v_T].

q and k pass one layer norm that they share, then a rotary embedding of row and column, each in half of the channels.
So a row of blocks needs the keys and values of the row above, layer by layer, and of nothing else: the stack runs on
all rows at once, or on `rows` of them after each other with the memory of `rows + 1`, with equal results.

*Cross-attention* (Section 3.3): queries of a block look at the low-resolution image in the 3 x 3 blocks around it.

Shapes: B images, R x C blocks, T = b^2 tokens each, D channels; between modules `[B, R C T, D]`, block by block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

__all__ = ["Above", "Grid", "InfDiTTransformer2DModel"]

EPS = 1e-6
SLOTS = 4
"""Blocks that a block attends to: itself, left-top, left, top."""
POSITIONS = 1024
"""Coordinates of tokens are taken modulo this."""
WAVES = 192
"""Channels of the sinusoidal embedding of the noise level."""

Above = list[tuple[Tensor, Tensor] | None]
"""Keys and values `[B, 1, C, T, H, d]` of the row of blocks above, layer by layer; None at the upper border."""


@dataclass(frozen=True)
class Grid:
    """`rows x columns` blocks of `side x side` tokens, the first of them in row `start` of the image."""

    rows: int
    columns: int
    side: int
    start: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of a block."""
        return self.side**2

    def positions(self, device: torch.device) -> Tensor:
        """Row and column of every token, `[R, C, T, 2]`."""
        row = torch.arange(self.start * self.side, (self.start + self.rows) * self.side, device=device)
        column = torch.arange(self.columns * self.side, device=device)
        grid = torch.stack(torch.meshgrid(row, column, indexing="ij"), -1) % POSITIONS
        cut = grid.view(self.rows, self.side, self.columns, self.side, 2)
        return cut.transpose(1, 2).reshape(self.rows, self.columns, self.tokens, 2)


def rotation(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles `[..., dim]`: rows in the first half of the channels, columns in the second.

    `angle_{2i} = angle_{2i+1} = position / 10000^(2 i / (dim / 2))`.
    """
    half = dim // 2
    exponents = torch.arange(0, half, 2, device=positions.device, dtype=torch.float32) / half
    angles = positions[..., None].float() / 10000**exponents
    angles = angles.repeat_interleave(2, -1).flatten(-2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` `[B, R, C, T, H, d]` turned pairwise by the angles `[R, C, T, d]`."""
    cos, sin = cos[..., None, :].to(x.dtype), sin[..., None, :].to(x.dtype)
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * cos + turned * sin


def normalise(x: Tensor) -> Tensor:
    """Layer norm without affine parts."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x (1 + scale) + shift` with one shift and scale `[B, D]` per image."""
    return x * (1 + scale[:, None]) + shift[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries `[..., T, H, d]` to keys and values `[..., S, H, d]`, heads joined: `[..., T, H d]`."""
    lead, tokens = q.shape[:-3], q.shape[-3]
    q, k, v = (t.flatten(0, -4).transpose(1, 2) for t in (q, k, v))
    found = F.scaled_dot_product_attention(q, k, v)
    return found.transpose(1, 2).reshape(*lead, tokens, -1)


class BlockAttention(nn.Module):
    """Attention of every block to itself and the blocks on its left-top, left and top."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(self.dim, eps=EPS)
        self.slots = nn.Parameter(torch.zeros(SLOTS, heads, self.dim))

    def forward(self, x: Tensor, grid: Grid, rotary: tuple[Tensor, Tensor], index: int, above: Above) -> Tensor:
        """Values `[B, R C T, D]`; `above[index]` is read, and replaced by this grid's last row."""
        batch = x.shape[0]
        shape = (batch, grid.rows, grid.columns, grid.tokens, 3, self.heads, self.dim)
        q, k, v = self.qkv(x).view(shape).unbind(4)
        q, k = (rotate(self.norm(t), *rotary) for t in (q, k))
        known = above[index]
        above[index] = k[:, -1:], v[:, -1:]
        keys = [near + self.slots[slot] for slot, near in enumerate(neighbours(k, known and known[0]))]
        values = neighbours(v, known and known[1])
        return self.out(attend(q, torch.cat(keys, 3), torch.cat(values, 3)).flatten(1, 3))


def neighbours(x: Tensor, above: Tensor | None) -> list[Tensor]:
    """A block, its left-top, left and top neighbour, each `[B, R, C, T, H, d]`; edge blocks stand for missing ones."""
    top = torch.cat([x[:, :1] if above is None else above, x[:, :-1]], 1)
    return [x, torch.cat([top[:, :, :1], top[:, :, :-1]], 2), torch.cat([x[:, :, :1], x[:, :, :-1]], 2), top]


class CrossAttention(nn.Module):
    """Attention of every block to the low-resolution image in the 3 x 3 blocks around it."""

    def __init__(self, width: int, heads: int, queries: int, keys: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.query_norm = nn.LayerNorm(self.dim, eps=EPS)
        self.key_norm = nn.LayerNorm(self.dim, eps=EPS)
        self.query_position = nn.Parameter(0.02 * torch.randn(1, queries, heads, self.dim))
        self.key_position = nn.Parameter(0.02 * torch.randn(1, keys, heads, self.dim))

    def forward(self, x: Tensor, windows: Tensor) -> Tensor:
        """Values `[B, R C T, D]` from the windows `[B, R C, S, D]`."""
        batch, blocks = windows.shape[:2]
        q = self.query(x).view(batch * blocks, -1, self.heads, self.dim)
        k, v = self.key_value(windows).view(batch * blocks, -1, 2, self.heads, self.dim).unbind(2)
        q = self.query_norm(q) + self.query_position
        k = self.key_norm(k) + self.key_position
        return self.out(attend(q, k, v).reshape(x.shape))


class FeedForward(nn.Module):
    """`W_2 GELU(W_1 x)` with the tanh form of GELU and four times the width inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Values `[B, N, D]`."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Layer(nn.Module):
    """One layer; the first one has the cross-attention."""

    def __init__(self, width: int, heads: int, cross: CrossAttention | None) -> None:
        super().__init__()
        self.adaln = nn.Linear(width, 4 * width)
        self.attn = BlockAttention(width, heads)
        self.cross = cross
        self.norm = None if cross is None else nn.LayerNorm(width, eps=EPS)
        self.mlp = FeedForward(width)

    def forward(
        self,
        hidden_states: Tensor,
        condition: Tensor,
        windows: Tensor,
        grid: Grid,
        rotary: tuple[Tensor, Tensor],
        index: int,
        above: Above,
    ) -> Tensor:
        """Hidden states `[B, R C T, D]` after this layer."""
        x = hidden_states
        shift, scale, mlp_shift, mlp_scale = self.adaln(condition).chunk(4, 1)
        x = x + self.attn(modulate(normalise(x), shift, scale), grid, rotary, index, above)
        if self.cross is None or self.norm is None:
            return x + self.mlp(modulate(normalise(x), mlp_shift, mlp_scale))
        x = x + self.cross(normalise(x), windows)
        return x + self.mlp(modulate(self.norm(x), mlp_shift, mlp_scale))


class Stack(nn.ModuleList):
    """All layers over all blocks, some rows of blocks at a time."""

    def forward(self, hidden_states: Tensor, condition: Tensor, windows: Tensor, grid: Grid, rows: int) -> Tensor:
        """Hidden states `[B, R C T, D]`; `rows` blocks high pieces are run after each other."""
        above: Above = [None] * len(self)
        first: Any = self[0]
        found, width = [], grid.columns * grid.tokens
        for start in range(0, grid.rows, rows):
            part = Grid(min(rows, grid.rows - start), grid.columns, grid.side, start)
            x = hidden_states[:, start * width : (start + part.rows) * width]
            seen = windows[:, start * grid.columns : (start + part.rows) * grid.columns]
            rotary = rotation(part.positions(x.device), first.attn.dim)
            for index, layer in enumerate(self):
                x = layer(x, condition, seen, part, rotary, index, above)
            found.append(x)
        return found[0] if len(found) == 1 else torch.cat(found, 1)


class Head(nn.Module):
    """Pixels from the last hidden states."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.adaln = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Patches `[B, R C T, p p c]`; the norm is twice, as published."""
        shift, scale = self.adaln(condition).chunk(2, 1)
        return self.linear(modulate(normalise(normalise(x)), shift, scale))


def perceptron(inputs: int, width: int) -> nn.Sequential:
    """Two layers with a SiLU between them."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


class InfDiTTransformer2DModel(ModelMixin, ConfigMixin):
    """The network of Inf-DiT; the defaults are those of the released weights (754 million parameters).

    Args:
        num_layers: layers.
        hidden_size: D.
        num_heads: heads of all attentions.
        patch_size: pixels on a side of a token.
        block_size: pixels on a side of a block.
        scale: how much smaller the low-resolution image is.
        lr_patch_size: low-resolution pixels on a side of a token of the cross-attention.
        vector_size: length of the image vector.
        cache_cross: whether an estimated step at scope `modules` forecasts the cross-attention too, or computes it.
    """

    config: Any
    block_rows: int | None = None
    """Rows of blocks that run at a time; None = all. Results are the same, memory is not."""

    @register_to_config
    def __init__(
        self,
        num_layers: int = 28,
        hidden_size: int = 1280,
        num_heads: int = 16,
        patch_size: int = 4,
        block_size: int = 128,
        scale: int = 4,
        lr_patch_size: int = 2,
        vector_size: int = 768,
        cache_cross: bool = False,
    ) -> None:
        super().__init__()
        self.side = block_size // patch_size
        self.lr_side = block_size // scale // lr_patch_size
        cross = CrossAttention(hidden_size, num_heads, self.side**2, (3 * self.lr_side) ** 2)
        self.patch_embed = nn.Conv2d(6, hidden_size, patch_size, patch_size)
        self.lr_embed = nn.Conv2d(3, hidden_size, lr_patch_size, lr_patch_size)
        self.time_embed = perceptron(WAVES, hidden_size)
        self.vector_embed = perceptron(vector_size, hidden_size)
        self.transformer_blocks = Stack(
            Layer(hidden_size, num_heads, cross if i == 0 else None) for i in range(num_layers)
        )
        self.head = Head(hidden_size, patch_size**2 * 3)

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """Inside, calls belong to one of several series, each with a history of its own where a cache is enabled."""
        del name
        yield

    def grid(self, height: int, width: int) -> Grid:
        """The blocks of an image.

        Raises:
            ValueError: if it is not made of whole blocks.
        """
        block = self.config.block_size
        if height % block or width % block or not height or not width:
            raise ValueError(f"image: must have sides that are multiples of {block}, got {height} x {width}")
        return Grid(height // block, width // block, self.side)

    def condition(self, timestep: Tensor, image_vector: Tensor) -> Tensor:
        """`SiLU(SiLU(embedding of the noise level + embedding of the image vector))`, `[B, D]`; twice, as published."""
        half = WAVES // 2
        frequencies = 10000 ** (-torch.arange(half, device=timestep.device, dtype=torch.float32) / half)
        angles = timestep.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], 1).to(image_vector.dtype)
        return F.silu(F.silu(self.time_embed(waves) + self.vector_embed(image_vector)))

    def embed(self, hidden_states: Tensor) -> Tensor:
        """Tokens `[B, R C T, D]` of the input image, block by block."""
        x = self.patch_embed(hidden_states)
        batch, width, height, breadth = x.shape
        x = x.view(batch, width, height // self.side, self.side, breadth // self.side, self.side)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, height * breadth, width)

    def windows(self, low_resolution: Tensor) -> Tensor:
        """Tokens `[B, R C, S, D]` of the low-resolution image around each block, zero outside of it."""
        x, side = self.lr_embed(low_resolution), 3 * self.lr_side
        cut = F.unfold(x, side, stride=self.lr_side, padding=self.lr_side)
        return cut.view(x.shape[0], x.shape[1], side**2, -1).permute(0, 3, 2, 1)

    def pixels(self, patches: Tensor, grid: Grid) -> Tensor:
        """The image `[B, 3, H, W]` from patches `[B, R C T, p p c]`."""
        p, batch = self.config.patch_size, patches.shape[0]
        cut = patches.view(batch, grid.rows, grid.columns, grid.side, grid.side, p, p, 3)
        cut = cut.permute(0, 7, 1, 3, 5, 2, 4, 6)
        size = self.config.block_size
        return cut.reshape(batch, 3, grid.rows * size, grid.columns * size)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        image_vector: Tensor,
        low_resolution: Tensor,
        return_dict: bool = True,
    ) -> Any:
        """The raw prediction `F` of the preconditioned denoiser.

        Args:
            hidden_states: noisy image and upsampled image, `[B, 6, H, W]`.
            timestep: `ln(sigma) / 4`, `[B]`.
            image_vector: `[B, vector_size]`.
            low_resolution: `[B, 3, H / scale, W / scale]` in [-1, 1].
            return_dict: whether to return an output with `sample`, else a tuple.
        """
        grid = self.grid(*hidden_states.shape[-2:])
        condition = self.condition(timestep, image_vector)
        windows = self.windows(low_resolution)
        rows = min(self.block_rows or grid.rows, grid.rows)
        x = self.transformer_blocks(self.embed(hidden_states), condition, windows, grid, rows)
        sample = self.pixels(self.head(x, condition), grid)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    @torch.no_grad()
    def initialise(self) -> None:
        """adaLN-zero: modulations and the head's output start at zero, matrices with fan-in scaled noise."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in [*(block.adaln for block in self.transformer_blocks), self.head.adaln, self.head.linear]:  # type: ignore[union-attr]
            nn.init.zeros_(layer.weight)  # type: ignore[union-attr]
            nn.init.zeros_(layer.bias)  # type: ignore[union-attr]
        for convolution in (self.patch_embed, self.lr_embed):
            bound = 1 / math.sqrt(convolution.weight[0].numel())
            nn.init.uniform_(convolution.weight, -bound, bound)
