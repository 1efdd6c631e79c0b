r"""Inf-DiT's released checkpoint: its names, and its one-time conversion to safetensors.

    python -m experiments convert inf-dit CHECKPOINT.pt FOLDER

`mp_rank_00_model_states.pt` is a pickle with the weights under `module`: 426 tensors of the network and 300 of a CLIP
model (`image_encoder.model.*`, of which `visual.*` is used). It is read with `weights_only=True`: nothing in it runs.

The file lies on a cloud drive of Tsinghua University, linked from the README of github.com/THUDM/Inf-DiT. The code
there is Apache-2.0; the weights come without a statement.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from experiments.backends.inf_dit.model import InfDiTTransformer2DModel
from experiments.errors import ConfigError, check

__all__ = ["ENCODER", "NETWORK", "convert", "official_names", "rename_weights"]

NETWORK, ENCODER = "transformer", "image_encoder"
"""Folders that a conversion writes."""

PREFIX = "image_encoder.model."
ADALN, FINAL = "mixins.adaln_layer.", "mixins.final_layer."

OUTSIDE: dict[str, str] = {
    "patch_embed": "mixins.patch_embed.proj",
    "lr_embed": ADALN + "proj_lr",
    "time_embed": "time_embed.mlp",
    "vector_embed": "cond_embed.map_vector",
    "head.adaln": FINAL + "adaLN_modulation.1",
    "head.linear": FINAL + "linear",
    "transformer_blocks.0.norm": ADALN + "post_cross_attention_layernorm",
    "transformer_blocks.0.cross.query_norm": ADALN + "cross_q_ln",
    "transformer_blocks.0.cross.key_norm": ADALN + "cross_k_ln",
    "transformer_blocks.0.cross.query_position": ADALN + "lr_query_position_embedding",
    "transformer_blocks.0.cross.key_position": ADALN + "lr_key_position_embedding",
    "transformer_blocks.0.cross.query": ADALN + "cross_attention.query",
    "transformer_blocks.0.cross.key_value": ADALN + "cross_attention.key_value",
    "transformer_blocks.0.cross.out": ADALN + "cross_attention.dense",
}
"""Our module or parameter -> its official name, for what exists once."""

INSIDE: dict[str, str] = {
    "adaln": ADALN + "adaLN_modulations.{}.1",
    "attn.qkv": "transformer.layers.{}.attention.query_key_value",
    "attn.out": "transformer.layers.{}.attention.dense",
    "attn.norm": ADALN + "q_layer_norm.{}",
    "mlp.up": "transformer.layers.{}.mlp.dense_h_to_4h",
    "mlp.down": "transformer.layers.{}.mlp.dense_4h_to_h",
}
"""Our module in a layer -> its official name with a place for the layer's index."""

SLOTS_NAME = ADALN + "re_pos_embed"
"""The slot embeddings of all layers in one tensor `[layers, 4, heads, d]`."""

UNUSED = re.compile(
    re.escape(ADALN)
    + r"(k_layer_norm\.\d+\.(weight|bias)|rope\.freqs_(cos|sin))|transformer\.position_embeddings\.weight"
)
"""What the checkpoint holds and the model does not use: the published code norms q and k by the same layer, and the
rotary angles are computed."""


def official_name(name: str) -> tuple[str, int | None]:
    """The official name of one of our parameters, and the row of it that is ours, where it is shared by the layers."""
    if found := re.fullmatch(r"transformer_blocks\.(\d+)\.attn\.slots", name):
        return SLOTS_NAME, int(found[1])
    for ours, theirs in OUTSIDE.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours) :], None
    if found := re.fullmatch(r"transformer_blocks\.(\d+)\.([a-z.]+)\.(weight|bias)", name):
        return f"{INSIDE[found[2]].format(found[1])}.{found[3]}", None
    raise KeyError(name)


def official_names(names: Iterable[str], layers: int) -> set[str]:
    """All official names of the network, the unused ones included."""
    unused = {f"{ADALN}k_layer_norm.{i}.{kind}" for i in range(layers) for kind in ("weight", "bias")}
    unused |= {f"{ADALN}rope.freqs_{kind}" for kind in ("cos", "sin")} | {"transformer.position_embeddings.weight"}
    return {official_name(name)[0] for name in names} | unused


def rename_weights(official: Mapping[str, Tensor], model: InfDiTTransformer2DModel) -> dict[str, Tensor]:
    """The state dict of `model` from the official one.

    Raises:
        ConfigError: naming what is missing, unknown or of another shape.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, parameter in model.state_dict().items():
        theirs, row = official_name(name)
        check(theirs in official, "checkpoint", f"must hold {theirs}", "none")
        value = official[theirs] if row is None else official[theirs][row]
        rule = f"must have {theirs} of shape {list(parameter.shape)}"
        check(value.shape == parameter.shape, "checkpoint", rule, list(value.shape))
        found[name] = value
        used.add(theirs)
    unknown = sorted(name for name in official if name not in used and not UNUSED.fullmatch(name))
    check(not unknown, "checkpoint", "must hold the names of Inf-DiT only", ", ".join(unknown[:3]))
    return found


def convert(source: Path, target: Path) -> None:
    """Write the weights as safetensors: `transformer/` in diffusers' layout and `image_encoder/model.safetensors`."""
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)["module"]
    except OSError:
        raise
    except Exception as error:
        raise ConfigError(f"checkpoint: must be a torch file with `module`, got {source} ({error})") from error
    with torch.device("meta"):
        model = InfDiTTransformer2DModel()
    network = rename_weights({k: v for k, v in state.items() if not k.startswith(PREFIX)}, model)
    vision = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX + "visual.")}
    check(bool(vision), "checkpoint", f"must hold {PREFIX}visual.*", "none")
    model.load_state_dict(network, strict=True, assign=True)
    model.save_pretrained(target / NETWORK, safe_serialization=True)
    (target / ENCODER).mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in vision.items()}, target / ENCODER / "model.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python -m experiments convert inf-dit CHECKPOINT.pt FOLDER, got {sys.argv[1:]}")
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except (ConfigError, OSError) as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
