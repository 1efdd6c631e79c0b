"""What is declared of single classes: optional rows, for what the engine cannot find by itself.

Of most classes nothing has to be known. A `ModelRow` names the lists of blocks of a model where their names mislead,
and the streams of a block where two of them have equal shapes or where a block returns more than its streams. `Modules`
names what scope `modules` stubs in a block that has no plain attention and feed-forward modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

__all__ = ["MODULES", "ROWS", "Modules", "ModelRow", "modules_row", "row_of"]


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One model class.

    Attributes:
        lists: names of its block lists in the order in which they run; () = found by name.
        alternating: whether the lists run in turns, one block of each.
        streams: block class -> position of a tensor among those that the block returns -> the argument it continues.
            Positions that are left out continue none: such a tensor is forecast as it is.
    """

    lists: tuple[str, ...] = ()
    alternating: bool = False
    streams: Mapping[str, Mapping[int, str]] = field(default_factory=dict[str, Mapping[int, str]])


@dataclass(frozen=True, kw_only=True)
class Modules:
    """One block class; a module that a block lacks is left out. Where a norm stands behind a module, it is the site.

    Attributes:
        sites: the modules whose results are forecast.
        hollow: those whose results nobody reads then.
    """

    sites: tuple[str, ...]
    hollow: tuple[str, ...] = ()


_NORMED = Modules(sites=("attention_norm2", "ffn_norm2"), hollow=("attention", "feed_forward"))
_REFINED = ModelRow(lists=("noise_refiner", "context_refiner", "siglip_refiner", "layers"))

ROWS: dict[str, ModelRow] = {
    "BriaFiboTransformer2DModel": ModelRow(
        streams={
            "BriaFiboTransformerBlock": {0: "encoder_hidden_states", 1: "hidden_states"},
            "BriaFiboSingleTransformerBlock": {0: "hidden_states"},
        }
    ),
    "ConsisIDTransformer3DModel": ModelRow(streams={"ConsisIDBlock": {0: "hidden_states", 1: "encoder_hidden_states"}}),
    "HiDreamImageTransformer2DModel": ModelRow(
        lists=("double_stream_blocks", "single_stream_blocks"),
        streams={"HiDreamBlock": {0: "hidden_states", 1: "encoder_hidden_states"}},
    ),
    "LatteTransformer3DModel": ModelRow(lists=("transformer_blocks", "temporal_transformer_blocks"), alternating=True),
    "Lumina2Transformer2DModel": _REFINED,
    "T5FilmDecoder": ModelRow(lists=("decoders",)),
    "WanAnimateTransformer3DModel": ModelRow(streams={"WanTransformerBlock": {0: "hidden_states"}}),
    "WanVACETransformer3DModel": ModelRow(
        lists=("vace_blocks", "blocks"), streams={"WanVACETransformerBlock": {1: "control_hidden_states"}}
    ),
    "ZImageTransformer2DModel": _REFINED,
}
"""Rows by the name of the model's class."""

MODULES: dict[str, Modules] = {
    "BriaFibo2TransformerBlock": Modules(
        sites=("attention_norm2", "cross_attn_norm2", "ffn_norm2"),
        hollow=("attention", "cross_attention", "feed_forward"),
    ),
    "DecoderLayer": Modules(sites=("layer.0.attention", "layer.1.attention", "layer.2.DenseReluDense")),
    "HiDreamBlock": Modules(sites=("block.attn1", "block.ff_i", "block.ff_t")),
    "Ideogram4TransformerBlock": _NORMED,
    "Kandinsky6FusedTransformerDecoderBlock": Modules(
        sites=tuple(
            f"{stream}_dec_block.{module}"
            for stream in ("video", "audio")
            for module in ("self_attention", "cross_attention", "feed_forward")
        )
    ),
    "Lumina2TransformerBlock": Modules(sites=("norm2", "ffn_norm2"), hollow=("attn", "feed_forward")),
    "LuminaNextDiTBlock": Modules(
        sites=("norm2", "ffn_norm2"), hollow=("attn1", "attn2", "attn2.to_out.0", "feed_forward")
    ),
    "PRXBlock": Modules(sites=("attention", "down_proj"), hollow=("gate_proj", "up_proj")),
    "ZImageTransformerBlock": _NORMED,
}
"""Modules by the name of the block's class."""


def row_of(model: nn.Module) -> ModelRow:
    """The row of a model, by the names of its class and base classes; an empty one where there is none."""
    return next((ROWS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in ROWS), ModelRow())


def modules_row(block: nn.Module) -> Modules | None:
    """The declared modules of a block."""
    return next((MODULES[kind.__name__] for kind in type(block).__mro__ if kind.__name__ in MODULES), None)
