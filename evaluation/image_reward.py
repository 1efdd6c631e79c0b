"""ImageReward (Xu et al., NeurIPS 2023) on the BLIP classes of transformers.

A ViT-L/16 encodes the picture, a BERT-base encoder with cross-attention reads the prompt bidirectionally
against it, and an affine stack of five layers maps the first token's state to a scalar `r`; the score is
`(r - mean) / std` with the constants of the released model. The released checkpoint names its tensors
differently; `convert` renames them and accepts no surplus beyond two projections and two index buffers that
scoring does not use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.errors import EvaluationError
from evaluation.pretrained import load_state

__all__ = [
    "REWARD_MEAN",
    "REWARD_STD",
    "ImageRewardNetwork",
    "convert",
    "load_network",
    "read_vocabulary",
    "tokenize",
]

REWARD_MEAN, REWARD_STD = 0.16717362830052426, 1.0333394966054072
VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
TEXT: dict[str, Any] = {
    "vocab_size": 30524,  # BERT's 30522 and two special tokens that scoring never uses
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "is_decoder": True,  # gives the layers their cross-attention; the calls below turn causality off
}
_UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.|blip\.text_encoder\.embeddings\.position_ids$")
_BLOCK = {
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_STEM = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}


class _Head(nn.Module):
    """Affine layers with the dropouts of training in between: the numbering is the checkpoint's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ImageRewardNetwork(nn.Module):
    """Pixels and token ids to normalised rewards `[B]`; `vision` and `text` override the released sizes."""

    def __init__(self, vision: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None) -> None:
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        sight = VISION | dict(vision or {})
        words = TEXT | {"encoder_hidden_size": sight["hidden_size"]} | dict(text or {})
        self.visual = BlipVisionModel(BlipVisionConfig(**sight))
        self.text = BlipTextModel(BlipTextConfig(**words), add_pooling_layer=False)
        self.mlp = _Head(words["hidden_size"])

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        patches = self.visual(pixels).last_hidden_state
        states = self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device),
            is_decoder=False,
        ).last_hidden_state
        return (self.mlp(states[:, 0]).squeeze(-1) - REWARD_MEAN) / REWARD_STD


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the released checkpoint under the names of `ImageRewardNetwork`."""
    return {_name(key): value for key, value in state.items() if not _UNUSED.match(key)}


def _name(key: str) -> str:
    if key.startswith("mlp."):
        return key
    if key.startswith("blip.text_encoder."):
        return "text." + key.removeprefix("blip.text_encoder.")
    tail = key.removeprefix("blip.visual_encoder.")
    if tail in _STEM and tail != key:
        return "visual." + _STEM[tail]
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", tail)
    if block and block[2] in _BLOCK:
        return f"visual.encoder.layers.{block[1]}.{_BLOCK[block[2]]}.{block[3]}"
    return key  # unknown: strict loading reports it under its own name


def load_network(path: Path, device: str = "cpu") -> ImageRewardNetwork:
    """The released checkpoint; every key must be used or known to be unused."""
    with torch.device("meta"):
        network = ImageRewardNetwork()
    state = convert(load_state(path))
    wanted = network.state_dict()
    for what, keys in (
        ("lacks", wanted.keys() - state.keys()),
        ("has unknown", state.keys() - wanted.keys()),
    ):
        if keys:
            raise EvaluationError(f"{path}: {what} {len(keys)} tensors of ImageReward, the first is {min(keys)}")
    wrong = [key for key, value in wanted.items() if value.shape != state[key].shape]
    if wrong:
        got, rule = list(state[wrong[0]].shape), list(wanted[wrong[0]].shape)
        raise EvaluationError(f"{path}: {wrong[0]} must be {rule}, got {got}")
    network.load_state_dict({key: value.float() for key, value in state.items()}, strict=True, assign=True)
    network.text.embeddings.register_buffer("position_ids", torch.arange(512).reshape(1, -1), persistent=False)
    return network.eval().requires_grad_(False).to(device)


def read_vocabulary(path: Path) -> Any:
    """BERT's word-piece tokenizer from its `vocab.txt`."""
    from transformers import BertTokenizer

    words = path.read_text(encoding="utf-8").splitlines()
    for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
        if token not in words:
            raise EvaluationError(f"{path}: must be a BERT vocabulary, got none with {token}")
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def tokenize(tokenizer: Any, prompts: list[str], max_length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, max_length]`, padded and cut to that length."""
    encoded = tokenizer(prompts, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]
