"""The image vector of the released weights: CLIP's embedding of the low-resolution image, of unit length.

ViT-L/14 of open_clip (trained as datacomp_xl_s13b_b90k, plain GELU); its weights are part of the checkpoint. The image
is brought to 224 pixels on its shorter side by bicubic interpolation and its centre is taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.errors import ConfigError, check

__all__ = ["ClipVector", "vision_tower"]

SIDE = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TOWER: dict[str, Any] = {"image_size": SIDE, "layers": 24, "width": 1024, "patch_size": 14}
EMBEDDING = 768


def vision_tower(**sizes: Any) -> nn.Module:
    """open_clip's vision transformer of ViT-L/14; `sizes` override its own.

    Raises:
        ConfigError: if open_clip is not installed.
    """
    try:
        from open_clip.model import CLIPVisionCfg, _build_vision_tower
    except ImportError as error:
        raise ConfigError("backend.weights: pretrained needs open_clip (pip install '.[eval]')") from error
    width = sizes.pop("embedding", EMBEDDING)
    return _build_vision_tower(width, CLIPVisionCfg(**{**TOWER, **sizes}), quick_gelu=False)


class ClipVector(nn.Module):
    """`[B, 768]` from images in [-1, 1]."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    @classmethod
    def load(cls, file: Path, dtype: torch.dtype, **sizes: Any) -> ClipVector:
        """The tower with the weights of a conversion, strictly."""
        with torch.device("meta"):
            visual = vision_tower(**sizes)
        state = {name.removeprefix("visual."): value for name, value in load_file(file).items()}
        odd = sorted(set(state) ^ set(visual.state_dict()))
        check(not odd, "backend.path", f"must hold the names of CLIP's vision transformer in {file}", odd[:3])
        visual.load_state_dict(state, strict=True, assign=True)
        return cls(visual.to(dtype).eval())

    def forward(self, image: Tensor) -> Tensor:
        """The vectors."""
        height, width = image.shape[-2:]
        factor = SIDE / min(height, width)
        size = [max(SIDE, round(side * factor)) for side in (height, width)]
        x = F.interpolate(image.float(), size=size, mode="bicubic", antialias=True)
        top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
        x = x[..., top : top + SIDE, left : left + SIDE].clamp(-1, 1) / 2 + 0.5
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        weight = next(self.visual.parameters())
        return F.normalize(self.visual(((x - mean) / std).to(weight.dtype)), dim=-1)
