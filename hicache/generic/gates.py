r"""How the modules of a block are gated onto its stream: rows by which scope `modules` is estimated without the blocks.

A block of a diffusion transformer is `x += gate * module(norm(x))` for each of its modules, and its gates depend on the
time and the prompt alone. Where they are declared, an estimated step at scope `modules` is one sum over all modules of
a chain of blocks, and no block runs (`hicache.generic.gated`). A row says where a gate is found: with D the width of
the stream and s the block's argument `source`, chunk c of

    layer        linear(silu(s)), `[B, parts * D]`     AdaLN-zero: SD3, HunyuanVideo 1.5, CogVideoX
    table        table + s                             AdaLN-single: Wan, LTX, PixArt, Sana
    neither      s                                     modulated outside of the block: Chroma, FLUX.2

as the block computes it in its `forward`; or there is none, as for most cross-attention: the value is added as it is.

A row is a claim, and every generation puts it to the proof: the sum must give the model's own result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from hicache.typed import named_modules

__all__ = ["GATED", "Gated", "Part", "gate_of", "gated_row"]

Take = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def whole(value: Tensor, ins: Mapping[str, Tensor]) -> Tensor:
    """All rows of what a module returns."""
    del ins
    return value


def behind_text(value: Tensor, ins: Mapping[str, Tensor]) -> Tensor:
    """The rows behind those of the text, where a module is given both."""
    return value[:, ins["encoder_hidden_states"].shape[1] :]


def pixels(value: Tensor, ins: Mapping[str, Tensor]) -> Tensor:
    """The rows of a convolution, `[B, D, H, W]`."""
    del ins
    return value.flatten(2).mT


@dataclass(frozen=True, kw_only=True)
class Part:
    """A module of a block.

    Attributes:
        chunk: which chunk of the modulation is its gate; None = it is added as it is.
        parts: number of chunks; a layer may have more.
        source: the argument of the block that carries the condition, or the modulation itself.
        layer: the linear layer behind the condition.
        table: the parameter that is added to the modulation.
        take: the stream's rows of what the module returns (of its first tensor), from it and the block's arguments.
    """

    chunk: int | None = None
    parts: int = 6
    source: str = "temb"
    layer: str = ""
    table: str = ""
    take: Take = whole


@dataclass(frozen=True, kw_only=True)
class Gated:
    """One block class: its modules by name, and the stream that they are added to.

    A module that a block lacks is left out; so is every module that does not act on the stream.
    """

    parts: Mapping[str, Part]
    stream: str = "hidden_states"


def from_table(ff: str, source: str, take: Take = whole) -> Gated:
    """AdaLN-single: self-attention, cross-attention without a gate, feed-forward."""
    table = "scale_shift_table"
    return Gated(
        parts={
            "attn1": Part(chunk=2, source=source, table=table),
            "attn2": Part(),
            ff: Part(chunk=5, source=source, table=table, take=take),
        }
    )


_DOUBLE = Gated(parts={"attn": Part(chunk=2, layer="norm1.linear"), "ff": Part(chunk=5, layer="norm1.linear")})

GATED: dict[str, Gated] = {
    "BasicTransformerBlock": from_table("ff", "timestep"),
    "ChromaSingleTransformerBlock": Gated(parts={"proj_out": Part(chunk=2, parts=3)}),
    "ChromaTransformerBlock": Gated(parts={"attn": Part(chunk=2, parts=12), "ff": Part(chunk=5, parts=12)}),
    "CogVideoXBlock": Gated(
        parts={
            "attn1": Part(chunk=2, layer="norm1.linear"),
            "ff": Part(chunk=2, layer="norm2.linear", take=behind_text),
        }
    ),
    "Flux2SingleTransformerBlock": Gated(parts={"attn": Part(chunk=2, parts=3, source="temb_mod")}),
    "Flux2TransformerBlock": Gated(
        parts={"attn": Part(chunk=2, source="temb_mod_img"), "ff": Part(chunk=5, source="temb_mod_img")}
    ),
    "HunyuanVideo15TransformerBlock": _DOUBLE,
    "JointTransformerBlock": Gated(parts={**_DOUBLE.parts, "attn2": Part(chunk=8, layer="norm1.linear")}),
    "LTXVideoTransformerBlock": from_table("ff", "temb"),
    "SanaTransformerBlock": from_table("ff", "timestep", take=pixels),
    "WanTransformerBlock": from_table("ffn", "temb"),
}
"""Rows by the name of the block's class."""


def gated_row(block: nn.Module) -> Gated | None:
    """The row of a block, reduced to the modules that it has; None where there is none that fits."""
    row = next((GATED[kind.__name__] for kind in type(block).__mro__ if kind.__name__ in GATED), None)
    if row is None:
        return None
    parts = {name: part for name, part in row.parts.items() if getattr(block, name, None) is not None}
    there = {name for name, _ in named_modules(block)} | {name for name, _ in block.named_parameters()}
    known = all(name in there for part in parts.values() for name in (part.layer, part.table) if name)
    return Gated(parts=parts, stream=row.stream) if parts and known else None


def gate_of(part: Part, block: nn.Module, ins: Mapping[str, Tensor], width: int) -> Tensor | None:
    """The gate of a module, `[B, 1, D]`, or `[B, N, D]` where tokens have their own; None = one.

    Args:
        part: the module's row.
        block: the block.
        ins: the tensors among its arguments.
        width: of the stream.
    """
    if part.chunk is None:
        return None
    source = ins[part.source]
    if part.layer:
        return rows_of(block.get_submodule(part.layer), F.silu(source), part.chunk, width)[:, None]
    found = source.reshape(len(source), -1, part.parts, width)[:, :, part.chunk]
    if part.table:
        found = found + block.get_parameter(part.table).reshape(part.parts, width)[part.chunk].to(found.device)
    return found


def rows_of(layer: nn.Module, condition: Tensor, chunk: int, width: int) -> Tensor:
    """One chunk of what a linear layer returns; of a layer with hooks, or a wrapped one, which is called as a whole."""
    rows = slice(chunk * width, (chunk + 1) * width)
    hooked = bool(vars(layer)["_forward_hooks"] or vars(layer)["_forward_pre_hooks"])
    if type(layer) is not nn.Linear or hooked or "forward" in vars(layer):
        return layer(condition)[:, rows]
    bias: Tensor | None = getattr(layer, "bias", None)
    return F.linear(condition, layer.weight[rows], None if bias is None else bias[rows])
