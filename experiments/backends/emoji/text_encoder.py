"""Words to the text tokens that the transformer reads: a fixed vocabulary, an embedding and one attention layer.

h = LN(Layer(E[w] + p)) * mask          the sequence, `[B, L, width]`
c = sum_i h_i / sum_i mask_i            its mean, FLUX's "pooled projection"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from experiments.backends.emoji.atlas import OBJECTS, STYLES
from experiments.backends.emoji.captions import COLOURS, plural

__all__ = ["LENGTH", "VOCABULARY", "Reading", "TextEncoder", "encode", "read_words"]

LENGTH = 8
"""Words that a caption may have; the composer's longest has six."""
PAD, EMPTY = 0, 1
VOCABULARY: dict[str, int] = {
    word: index + 2 for index, word in enumerate(sorted({*OBJECTS, *STYLES, *COLOURS, "two", "and", "on"}))
}
SAME: dict[str, str] = {plural(name): name for name in OBJECTS} | {"grey": "gray", "doughnut": "donut", "2": "two"}
"""Words that stand for another one."""
SILENT = {"a", "an", "the", "of", "one", "background"}
"""Words that say nothing here."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A prompt as the model reads it."""

    tokens: tuple[int, ...]
    unknown: tuple[str, ...]
    """Words that the model does not know and does not see."""
    cut: tuple[str, ...]
    """Known words beyond the longest prompt."""


def read_words(prompt: str) -> Reading:
    """Tokens of a prompt; a prompt without a known word is the empty one, which guidance moves away from."""
    words = [SAME.get(word) or word for word in map(str, re.findall(r"[^\W_]+", prompt.lower()))]
    known = [word for word in words if word in VOCABULARY]
    unknown = tuple(dict.fromkeys(word for word in words if word not in VOCABULARY and word not in SILENT))
    tokens = tuple(VOCABULARY[word] for word in known[:LENGTH]) or (EMPTY,)
    return Reading(tokens=tokens, unknown=unknown, cut=tuple(known[LENGTH:]))


def encode(prompts: Sequence[str]) -> Tensor:
    """Token ids `[B, LENGTH]` int64, zero where there is no word."""
    ids = torch.full((len(prompts), LENGTH), PAD)
    for row, prompt in enumerate(prompts):
        tokens = read_words(prompt).tokens
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


class TextEncoder(ModelMixin, ConfigMixin):
    """Token ids `[B, L]` to the sequence `[B, L, width]` and its mean `[B, width]`."""

    config: Any

    @register_to_config
    def __init__(self, vocabulary: int = len(VOCABULARY) + 2, width: int = 96, length: int = LENGTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        missing = tokens == PAD
        hidden = self.layer(self.embedding(tokens) + self.position, src_key_padding_mask=missing)
        keep = (~missing)[..., None].to(hidden.dtype)
        hidden = self.norm(hidden) * keep
        return hidden, hidden.sum(1) / keep.sum(1)
