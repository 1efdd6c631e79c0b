r"""How the modules of a block are gated onto its stream: rows by which scope `modules` is estimated without the blocks.

A block of a diffusion transformer is `x += gate * module(norm(x))` for each of its modules, and its gates depend on the
time and the prompt alone. Where they are declared, an estimated step at scope `modules` is one sum over all modules of
a chain of blocks, and no block runs (`hicache.generic.gated`). A row says where a gate is found: with D the width of
the stream and s the block's argument `source`, chunk c of

    layer        linear(silu(s)), `[B, parts * D]`     AdaLN-zero: SD3, HunyuanVideo 1.5, CogVideoX
    table        table + s                             AdaLN-single: Wan, LTX, PixArt, Sana
    neither      s                                     modulated outside of the block: Chroma, FLUX.2

as the block computes it in its `forward`, from its arguments or from what it makes of them (`Gated.makes`: a block of
DiT embeds time and label itself); or there is none, as for most cross-attention: the value is added as it is.
Where a norm stands behind a module, `x += tanh(gate) * norm(module(norm(x)))`, as in Lumina 2 and Z-Image, that norm
is what is forecast and added (`hicache.generic.declared.MODULES` names it for the other path too). A norm that is
called with the gate (Mochi) or of two attentions at once (Lumina-Next), a modulation of more than one layer (Cosmos),
one that is chosen token by token (Qwen-Image 2.1), a gate that is one number (BRIA FIBO 2), a feed-forward module that
runs twice in a block (CogView 4, GLM-Image, EasyAnimate), projections of the stream inside a block (Wan-VACE) and
tokens before the batch (ERNIE-Image) have no row: those models run with stand-ins for their modules.

A row is a claim, and every generation puts it to the proof: the sum must give the model's own result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicache.typed import named_modules

__all__ = ["GATED", "Gated", "Part", "gate_of", "gated_row"]

Take = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
Change = Callable[[Tensor], Tensor]
Make = Callable[[Any, Mapping[str, Tensor]], Tensor]
"""What a block makes of its arguments."""


def whole(value: Tensor, ins: Mapping[str, Tensor]) -> Tensor:
    """All rows of what a module returns."""
    del ins
    return value


def behind_text(value: Tensor, ins: Mapping[str, Tensor]) -> Tensor:
    """The rows behind those of the text, where a module is given both."""
    return value[:, ins["encoder_hidden_states"].shape[1] :]


def before_text(value: Tensor, ins: Mapping[str, Tensor]) -> Tensor:
    """The rows before those of the text."""
    return value[:, : -ins["encoder_hidden_states"].shape[1]]


def frames(value: Tensor, ins: Mapping[str, Tensor]) -> Tensor:
    """The rows of a film, `[B, T, H, W, D]`."""
    del ins
    return value.flatten(1, 3)


def pixels(value: Tensor, ins: Mapping[str, Tensor]) -> Tensor:
    """The rows of a convolution, `[B, D, H, W]`."""
    del ins
    return value.flatten(2).mT


def behind_memory(value: Tensor, ins: Mapping[str, Tensor]) -> Tensor:
    """Nothing for the rows of the memory, which stand before those that the value is of."""
    return F.pad(value, (0, 0, ins["hidden_states"].shape[1] - value.shape[1], 0))


def labelled(block: Any, ins: Mapping[str, Tensor]) -> Tensor:
    """The condition of a block of DiT: each has an embedder of the time and the label of its own."""
    embedder, hidden = block.norm1.emb, ins["hidden_states"]
    return embedder(ins["timestep"], ins["class_labels"], hidden_dtype=hidden.dtype)


def same(value: Tensor) -> Tensor:
    """Without a change."""
    return value


def clamped(value: Tensor) -> Tensor:
    """The hyperbolic tangent of what lies within [-2, 2]."""
    return value.clamp(-2, 2).tanh()


def opened(value: Tensor) -> Tensor:
    """A gate that is open where its modulation is low."""
    return torch.sigmoid(1 - value)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A module of a block.

    Attributes:
        chunk: which chunk of the modulation is its gate; None = it is added as it is.
        parts: number of chunks; a layer may have more.
        source: the argument of the block that carries the condition, or the modulation itself.
        layer: the linear layer behind the condition.
        table: the parameter that is added to the modulation.
        axis: of the chunks in a modulation of three or more axes; by default the last but one.
        before: what is done to the condition before the layer.
        behind: what is done to the chunk.
        chosen: the argument, where there is one, that says of which half of the batch of conditions each token's gate
            is: 0 of the first, else of the second.
        take: the stream's rows of what the module returns (of its first tensor), from it and the block's arguments.
    """

    chunk: int | None = None
    parts: int = 6
    source: str = "temb"
    layer: str = ""
    table: str = ""
    axis: int = -2
    before: Change = F.silu
    behind: Change = same
    chosen: str = ""
    take: Take = whole


@dataclass(frozen=True, kw_only=True)
class Gated:
    """One block class: its modules by name, and the stream that they are added to.

    A module that a block lacks is left out; so is every module that does not act on the stream. Of a module that runs
    more than once in a block, the first run is the stream's. Blocks whose `modulation` is False (refiners of the text)
    have no gates.

    Attributes:
        parts: the modules.
        stream: the argument that they are added to.
        makes: what the block makes of its arguments before its modules, by the name of an argument, which it may
            replace: computed once for all of its gates.
        needs: modules without which the row is not the block's.
    """

    parts: Mapping[str, Part]
    stream: str = "hidden_states"
    makes: Mapping[str, Make] = field(default_factory=dict[str, Make])
    needs: tuple[str, ...] = ()

    def arguments(self, block: nn.Module, ins: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The arguments of the block with what it makes of them."""
        found = dict(ins)
        for name, make in self.makes.items():
            found[name] = make(block, found)
        return found


def from_table(
    ff: str = "ffn",
    source: str = "temb",
    take: Take = whole,
    attention: tuple[str, str] = ("attn1", "attn2"),
    axis: int = -2,
) -> Gated:
    """AdaLN-single: self-attention, cross-attention without a gate, feed-forward."""
    table = "scale_shift_table"
    return Gated(
        parts={
            attention[0]: Part(chunk=2, source=source, table=table, axis=axis),
            attention[1]: Part(),
            ff: Part(chunk=5, source=source, table=table, axis=axis, take=take),
        }
    )


def from_norm(attn: str = "attn", ff: Take = whole, source: str = "temb") -> Gated:
    """AdaLN-zero with one layer for both modules."""
    layer = "norm1.linear"
    return Gated(
        parts={
            attn: Part(chunk=2, layer=layer, source=source),
            "ff": Part(chunk=5, layer=layer, source=source, take=ff),
        }
    )


def sandwiched(norms: tuple[str, str], layer: str, source: str, before: Change, stream: str = "hidden_states") -> Gated:
    """Norms behind attention and feed-forward, and gates that are squashed."""
    attention, ff = (
        Part(chunk=chunk, parts=4, layer=layer, source=source, before=before, behind=torch.tanh) for chunk in (1, 3)
    )
    return Gated(parts={norms[0]: attention, norms[1]: ff}, stream=stream)


_BESIDE = Part(chunk=2, layer="norm.linear", take=behind_text)
_TWO_NORMS = Gated(
    parts={
        "attn1": Part(chunk=2, layer="norm1.linear"),
        "ff": Part(chunk=2, layer="norm2.linear", take=behind_text),
    }
)
_JOY = Gated(
    parts={name: Part(chunk=chunk, table="img_mod.modulate_table") for name, chunk in (("attn", 2), ("img_mlp", 5))}
)

_LABELLED = Gated(
    parts={
        "attn1": Part(chunk=2, layer="norm1.linear", source="condition"),
        "attn2": Part(),
        "ff": Part(chunk=5, layer="norm1.linear", source="condition"),
    },
    makes={"condition": labelled},
    needs=("norm1.emb.class_embedder",),
)

GATED: dict[str, Gated | tuple[Gated, ...]] = {
    "AceStepTransformerBlock": from_table("mlp", attention=("self_attn", "cross_attn")),
    "AllegroTransformerBlock": from_table("ff"),
    "AnyFlowTransformerBlock": from_table(),
    "AuraFlowJointTransformerBlock": Gated(parts={"ff": Part(chunk=5, layer="norm1.linear")}),
    "AuraFlowSingleTransformerBlock": Gated(parts={"ff": Part(chunk=5, layer="norm1.linear")}),
    "BasicTransformerBlock": (_LABELLED, from_table("ff", "timestep")),
    "BriaFiboSingleTransformerBlock": Gated(parts={"proj_out": Part(chunk=2, layer="norm.linear")}),
    "BriaFiboTransformerBlock": from_norm(),
    "BriaSingleTransformerBlock": Gated(parts={"proj_out": _BESIDE}),
    "BriaTransformerBlock": from_norm(),
    "ChromaSingleTransformerBlock": Gated(parts={"proj_out": Part(chunk=2, parts=3)}),
    "ChromaTransformerBlock": Gated(parts={"attn": Part(chunk=2, parts=12), "ff": Part(chunk=5, parts=12)}),
    "CogVideoXBlock": _TWO_NORMS,
    "CogView3PlusTransformerBlock": from_norm("attn1", behind_text, source="emb"),
    "ConsisIDBlock": _TWO_NORMS,
    "Flux2SingleTransformerBlock": Gated(parts={"attn": Part(chunk=2, parts=3, source="temb_mod")}),
    "Flux2TransformerBlock": Gated(
        parts={"attn": Part(chunk=2, source="temb_mod_img"), "ff": Part(chunk=5, source="temb_mod_img")}
    ),
    "FluxSingleTransformerBlock": Gated(parts={"proj_out": _BESIDE}),
    "FluxTransformerBlock": from_norm(),
    "HiDreamBlock": Gated(
        parts={
            "block.attn1": Part(chunk=2, layer="block.adaLN_modulation.1"),
            "block.ff_i": Part(chunk=5, layer="block.adaLN_modulation.1"),
        }
    ),
    "HunyuanImageSingleTransformerBlock": Gated(
        parts={"proj_out": Part(chunk=2, layer="norm.linear", take=before_text)}
    ),
    "HunyuanImageTransformerBlock": from_norm(),
    "HunyuanVideo15TransformerBlock": from_norm(),
    "HunyuanVideoSingleTransformerBlock": Gated(
        parts={"proj_out": Part(chunk=2, layer="norm.linear", take=before_text)}
    ),
    "HunyuanVideoTransformerBlock": from_norm(),
    "Ideogram4TransformerBlock": sandwiched(
        ("attention_norm2", "ffn_norm2"), "adaln_modulation", "adaln_input", before=same
    ),
    "JointTransformerBlock": Gated(parts={**from_norm().parts, "attn2": Part(chunk=8, layer="norm1.linear")}),
    "JoyImageEditPlusTransformerBlock": _JOY,
    "JoyImageTransformerBlock": _JOY,
    "Kandinsky5TransformerDecoderBlock": Gated(
        parts={
            name: Part(chunk=chunk, source="time_embed", layer="visual_modulation.out_layer")
            for name, chunk in (("self_attention", 2), ("cross_attention", 5), ("feed_forward", 8))
        },
        stream="visual_embed",
    ),
    "Krea2TransformerBlock": Gated(
        parts={name: Part(chunk=chunk, table="scale_shift_table") for name, chunk in (("attn", 2), ("ff", 5))}
    ),
    "LTXVideoTransformerBlock": from_table("ff"),
    "LongCatImageSingleTransformerBlock": Gated(parts={"proj_out": _BESIDE}),
    "LongCatImageTransformerBlock": from_norm(),
    "Lumina2TransformerBlock": sandwiched(("norm2", "ffn_norm2"), "norm1.linear", "temb", before=F.silu),
    "MotifVideoSingleTransformerBlock": Gated(parts={"proj_out": Part(chunk=2, layer="norm.linear", take=before_text)}),
    "MotifVideoTransformerBlock": Gated(parts={**from_norm().parts, "cross_attn": Part()}),
    "NucleusMoEImageTransformerBlock": Gated(
        parts={
            name: Part(chunk=chunk, layer="img_mod.1", behind=clamped) for name, chunk in (("attn", 1), ("img_mlp", 3))
        }
    ),
    "OvisImageSingleTransformerBlock": Gated(parts={"proj_out": _BESIDE}),
    "OvisImageTransformerBlock": from_norm(),
    "PRXBlock": Gated(
        parts={name: Part(chunk=chunk, layer="modulation.lin") for name, chunk in (("attention", 2), ("down_proj", 5))}
    ),
    "QwenImageTransformerBlock": Gated(
        parts={
            name: Part(chunk=chunk, layer="img_mod.1", chosen="modulate_index")
            for name, chunk in (("attn", 2), ("img_mlp", 5))
        }
    ),
    "SanaTransformerBlock": from_table("ff", "timestep", take=pixels),
    "SanaVideoTransformerBlock": from_table("ff", "timestep", take=frames),
    "SkyReelsV2TransformerBlock": from_table(axis=1),
    "StableAudio3DiTBlock": Gated(
        parts={
            "self_attn": Part(chunk=2, source="global_modulation", table="to_scale_shift_gate", behind=opened),
            "cross_attn": Part(),
            "to_local_embed": Part(take=behind_memory),
            "ff": Part(chunk=5, source="global_modulation", table="to_scale_shift_gate", behind=opened),
        }
    ),
    "WanAnimate2TransformerBlock": Gated(
        parts={
            "self_attn": Part(chunk=2, table="modulation"),
            "cross_attn": Part(),
            "ffn": Part(chunk=5, table="modulation"),
        }
    ),
    "WanTransformerBlock": from_table(),
    "ZImageTransformerBlock": sandwiched(
        ("attention_norm2", "ffn_norm2"), "adaLN_modulation.0", "adaln_input", before=same, stream="x"
    ),
}
"""Rows by the name of the block's class; several where it has variants."""


def gated_row(block: nn.Module) -> Gated | None:
    """The row of a block, reduced to the modules that it has; None where there is none that fits."""
    rows = next((GATED[kind.__name__] for kind in type(block).__mro__ if kind.__name__ in GATED), ())
    there = {name for name, _ in named_modules(block)} | {name for name, _ in block.named_parameters()}
    fitting = (fitted(row, block, there) for row in (rows if isinstance(rows, tuple) else (rows,)))
    return next((row for row in fitting if row is not None), None)


def fitted(row: Gated, block: nn.Module, there: set[str]) -> Gated | None:
    """A row reduced to what is there of a block; None where it is another's."""
    parts = {name: part for name, part in row.parts.items() if name in there}
    if getattr(block, "modulation", True) is False:
        parts = {name: Part(take=part.take) for name, part in parts.items()}
    known = all(name in there for part in parts.values() for name in (part.layer, part.table) if name)
    fits = parts and known and there.issuperset(row.needs)
    return replace(row, parts=parts) if fits else None


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
    found = modulation_of(part, block, ins[part.source], width)
    index = ins.get(part.chosen)
    if index is not None:
        first, second = found.chunk(2)
        found = torch.where(index[..., None] == 0, first, second)
    return part.behind(found)


def modulation_of(part: Part, block: nn.Module, source: Tensor, width: int) -> Tensor:
    """A module's chunk of the modulation, `[B, 1, D]` or `[B, N, D]`."""
    if part.layer:
        found = rows_of(block.get_submodule(part.layer), part.before(source), part.chunk or 0, width)
        return found[:, None] if found.dim() == 2 else found
    if source.dim() > 2:
        source = source.movedim(part.axis, -2)
    found = source.reshape(len(source), -1, part.parts, width)[:, :, part.chunk]
    if part.table:
        found = found + block.get_parameter(part.table).reshape(part.parts, width)[part.chunk].to(found.device)
    return found


def rows_of(layer: nn.Module, condition: Tensor, chunk: int, width: int) -> Tensor:
    """One chunk of what a linear layer returns; of a layer with hooks, or a wrapped one, which is called as a whole."""
    rows = slice(chunk * width, (chunk + 1) * width)
    hooked = bool(vars(layer)["_forward_hooks"] or vars(layer)["_forward_pre_hooks"])
    if type(layer) is not nn.Linear or hooked or "forward" in vars(layer):
        return layer(condition)[..., rows]
    bias: Tensor | None = getattr(layer, "bias", None)
    return F.linear(condition, layer.weight[rows], None if bias is None else bias[rows])
