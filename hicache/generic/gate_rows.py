"""The rows of `hicache.generic.gates`: which modules of which block classes are gated, and by what.

Among the classes without a row are those with a norm that is called with the gate (Mochi), a modulation of more than
one layer (Cosmos), and a batch of conditions whose last row is that of all other tokens (Qwen-Image 2.1). They run with
stand-ins for their modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicache.generic.gates import Change, Gated, Part, Take, fitted, same, whole
from hicache.typed import named_modules

__all__ = ["GATED", "gated_row"]


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


def both(block: Any, ins: Mapping[str, Tensor]) -> Tensor:
    """The conditions of clean and of noisy tokens, one batch behind the other."""
    del block
    return torch.cat([ins["adaln_clean"], ins["adaln_noisy"]])


def first_token(block: Any, ins: Mapping[str, Tensor]) -> Tensor:
    """Both gates of a modulation that is the same for all tokens, which stand before the batch: `[B, 2 * D]`."""
    del block
    return torch.cat([ins["temb.2"][0], ins["temb.5"][0]], -1)


def turned(value: Tensor, ins: Mapping[str, Tensor]) -> Tensor:
    """The rows of a module that is given tokens before the batch."""
    del ins
    return value.transpose(0, 1)


def controlled(block: Any, ins: Mapping[str, Tensor]) -> Tensor:
    """The stream of a control block, which the first one begins with the image."""
    control = ins["control_hidden_states"]
    return control if block.proj_in is None else block.proj_in(control) + ins["hidden_states"]


def projected(block: Any, stream: Tensor) -> Tensor:
    """What a control block gives to the image."""
    return block.proj_out(stream)


def clamped(value: Tensor) -> Tensor:
    """The hyperbolic tangent of what lies within [-2, 2]."""
    return value.clamp(-2, 2).tanh()


def opened(value: Tensor) -> Tensor:
    """A gate that is open where its modulation is low."""
    return torch.sigmoid(1 - value)


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


def noisy(chunk: int) -> Part:
    """A squashed gate of noisy and clean tokens."""
    return Part(
        chunk=chunk,
        parts=4,
        source="conditions",
        layer="adaLN_modulation.0",
        before=same,
        behind=torch.tanh,
        chosen="noise_mask",
    )


def twice_run(attention: int, ff: int) -> Gated:
    """One layer for all gates without an activation; the feed-forward module runs for the image, then for the text."""
    parts = {"attn1": attention, "ff": ff}
    return Gated(parts={name: Part(chunk=chunk, layer="norm1.linear", before=same) for name, chunk in parts.items()})


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

_LUMINA = sandwiched(("norm2", "ffn_norm2"), "norm1.linear", "temb", before=F.silu)
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
    "BriaFibo2TransformerBlock": Gated(
        parts={
            "attention_norm2": noisy(1),
            "cross_attn_norm2": Part(number="cross_attn_gate", behind=torch.tanh),
            "ffn_norm2": noisy(3),
        },
        stream="x",
        makes={"conditions": both},
    ),
    "BriaFiboSingleTransformerBlock": Gated(parts={"proj_out": Part(chunk=2, layer="norm.linear")}),
    "BriaFiboTransformerBlock": from_norm(),
    "BriaSingleTransformerBlock": Gated(parts={"proj_out": _BESIDE}),
    "BriaTransformerBlock": from_norm(),
    "ChromaSingleTransformerBlock": Gated(parts={"proj_out": Part(chunk=2, parts=3)}),
    "ChromaTransformerBlock": Gated(parts={"attn": Part(chunk=2, parts=12), "ff": Part(chunk=5, parts=12)}),
    "CogVideoXBlock": _TWO_NORMS,
    "CogView3PlusTransformerBlock": from_norm("attn1", behind_text, source="emb"),
    "CogView4TransformerBlock": twice_run(4, 10),
    "ConsisIDBlock": _TWO_NORMS,
    "Flux2SingleTransformerBlock": Gated(parts={"attn": Part(chunk=2, parts=3, source="temb_mod")}),
    "Flux2TransformerBlock": Gated(
        parts={"attn": Part(chunk=2, source="temb_mod_img"), "ff": Part(chunk=5, source="temb_mod_img")}
    ),
    "EasyAnimateTransformerBlock": Gated(
        parts={name: Part(chunk=2, layer=f"{norm}.linear") for name, norm in (("attn1", "norm1"), ("ff", "norm2"))}
    ),
    "ErnieImageSharedAdaLNBlock": Gated(
        parts={
            "self_attention": Part(chunk=0, parts=2, source="gates"),
            "mlp": Part(chunk=1, parts=2, source="gates", take=turned),
        },
        stream="x",
        makes={"gates": first_token},
        turned=True,
    ),
    "FluxSingleTransformerBlock": Gated(parts={"proj_out": _BESIDE}),
    "FluxTransformerBlock": from_norm(),
    "GlmImageTransformerBlock": twice_run(4, 10),
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
    "Lumina2TransformerBlock": _LUMINA,
    "LuminaNextDiTBlock": _LUMINA,
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
    "WanVACETransformerBlock": replace(
        from_table(),
        stream="control_hidden_states",
        makes={"control_hidden_states": controlled},
        leaves={0: projected},
    ),
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
