"""The emoji judge: a small network for the composer's pictures and captions, trained in this project's own world.

A convolutional network with features f (64 numbers) for pictures, the mean c of a text encoder's words for captions,

    alignment = <a, b>,   a = W_a f / |W_a f|,   b = W_b c / |W_b c|

trained with the symmetric contrastive loss of CLIP (Radford et al. 2021) and with four classifiers on f: object,
colour, count, style. It is *not* CLIP, ImageReward, Inception or LPIPS: it knows 48 objects on 8 backgrounds in 32x32
pixels, and its numbers compare with each other only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.backends.emoji.atlas import OBJECTS, STYLES
from experiments.backends.emoji.captions import COLOURS, COUNTS, Scene
from experiments.backends.emoji.text_encoder import TextEncoder, encode

__all__ = ["FEATURES", "EmojiJudge", "Verdict", "load_judge", "targets"]

FEATURES = 64
HEADS = {"object": len(OBJECTS), "colour": len(COLOURS), "count": len(COUNTS), "style": len(STYLES)}
WIDTHS = (40, 80, 112, 128)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge sees in a batch of pictures."""

    features: Tensor
    """`[B, 64]`."""
    embedding: Tensor
    """`[B, 64]`, of length one."""
    logits: dict[str, Tensor]
    """Of object, colour, count and style."""

    def correct(self, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        """Per aspect, whether each picture `[B]` shows what its scene says; two objects are found in any order."""
        wanted = targets(scenes)
        found = {name: self.logits[name].argmax(1) == wanted[name] for name in HEADS if name != "object"}
        shares = wanted["object"]
        number = (shares > 0).sum(1)
        best = self.logits["object"].topk(2, dim=1).indices
        shown = torch.gather(shares > 0, 1, best)
        found["object"] = torch.where(number == 2, shown.all(1), shown[:, 0])
        return found


def targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Class indices `[B]` of colour, count and style; shares of the objects `[B, 48]`."""
    names = list(OBJECTS)
    shares = torch.zeros(len(scenes), len(names))
    for row, scene in enumerate(scenes):
        for name in scene.objects:
            shares[row, names.index(name)] += 1 / len(scene.objects)
    return {
        "object": shares,
        "colour": torch.tensor([list(COLOURS).index(scene.colour) for scene in scenes]),
        "count": torch.tensor([COUNTS.index(scene.count) for scene in scenes]),
        "style": torch.tensor([STYLES.index(scene.style) for scene in scenes]),
    }


class EmojiJudge(nn.Module):
    """Pictures `[B, 3, 32, 32]` in [-1, 1], and captions."""

    def __init__(self) -> None:
        super().__init__()
        one, two, three, four = WIDTHS

        def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU(inplace=False)
            )

        self.stages = nn.ModuleList(
            [
                nn.Sequential(layer(3, one), layer(one, two, 2)),
                nn.Sequential(layer(two, two), layer(two, three, 2)),
                nn.Sequential(layer(three, three), layer(three, four, 2)),
            ]
        )
        self.neck = nn.Linear(four * 16, FEATURES)
        self.norm = nn.LayerNorm(FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, classes) for name, classes in HEADS.items()})
        self.text = TextEncoder(width=64)
        self.to_picture, self.to_text = nn.Linear(FEATURES, 64), nn.Linear(64, 64)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps after the three stages: 16x16, 8x8 and 4x4."""
        found = []
        for stage in self.stages:
            images = stage(images)
            found.append(images)
        return found

    def forward(self, images: Tensor) -> Verdict:
        features = self.norm(self.neck(self.maps(images)[-1].flatten(1)))
        return Verdict(
            features=features,
            embedding=F.normalize(self.to_picture(features), dim=1),
            logits={name: head(features) for name, head in self.heads.items()},
        )

    def read(self, captions: Sequence[str]) -> Tensor:
        """Embeddings `[B, 64]` of captions, of length one."""
        device = self.to_text.weight.device
        return F.normalize(self.to_text(self.text(encode(captions).to(device))[1]), dim=1)

    def alignment(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine `[B]` of each picture and its caption, in [-1, 1]."""
        return (self(images).embedding * self.read(captions)).sum(1)

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """Mean over layers and places of |u - v|^2 `[B]`, channel-normalised maps u and v: LPIPS without weights."""
        each = [
            (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
            for a, b in zip(self.maps(images), self.maps(others), strict=True)
        ]
        return torch.stack(each).mean(0)


def load_judge(path: Path) -> EmojiJudge:
    """The shipped judge in evaluation mode, float32."""
    judge = EmojiJudge()
    judge.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return judge.eval().requires_grad_(False)
