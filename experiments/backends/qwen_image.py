"""Qwen-Image and Qwen-Image-Edit: 60 double blocks, classifier-free guidance by two calls per step.

The two calls of a step have texts of different length and are named by diffusers' `cache_context`. The guided
prediction is rescaled, token by token, to the norm of the conditional one. Editing appends the tokens of
the reference image to those of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline

from evaluation.decoders import open_picture
from experiments.backends.base import Item
from experiments.backends.pipeline_backend import PromptedBackend
from experiments.backends.tiny import qwen_image
from experiments.backends.weights import DTYPES, Hub
from experiments.config.backend import QwenConfig, QwenEditConfig

__all__ = ["QwenImageBackend", "QwenImageEditBackend"]

EDIT_SIDE = 1024
"""Editing works at about one megapixel."""
EDIT_TEXT = 1300
"""Tokens of an instruction together with the picture that the text encoder sees; for counting FLOPs."""


class QwenImageBackend(PromptedBackend):
    """Text to image."""

    transformer_class = "QwenImageTransformer2DModel"
    doubled_by = "true_cfg"
    config: QwenConfig

    @classmethod
    def hub(cls, config: QwenConfig) -> Hub:
        return Hub(repository="Qwen/Qwen-Image", gigabytes=57.7, terms="Apache-2.0")

    @classmethod
    def pipeline(cls, config: QwenConfig) -> Any:
        return QwenImagePipeline

    def random(self) -> Any:
        return qwen_image.build(self.config.size, DTYPES[str(self.config.dtype)], self.device)

    def arguments(self, items: Sequence[Item]) -> dict[str, Any]:
        config = self.config
        size = {"height": config.height, "width": config.width}
        return {"prompt": self.prompts(items), **size, **self.guidance(len(items))}

    def guidance(self, batch: int) -> dict[str, Any]:
        """Arguments of classifier-free guidance; without a negative prompt there is one call per step."""
        config = self.config
        if config.true_cfg == 1:
            return {"true_cfg_scale": 1.0}
        return {"true_cfg_scale": config.true_cfg, "negative_prompt": [config.negative_prompt] * batch}

    def shape(self) -> dict[str, int]:
        # The adapter counts 16 pixels per token side; a tiny VAE has fewer.
        scale = 8 // self.pipe.vae_scale_factor
        return {"height": scale * (self.config.height or 0), "width": scale * (self.config.width or 0)}


class QwenImageEditBackend(QwenImageBackend):
    """Editing one image, or several with `backend.plus=true`. One item per call: references differ in size."""

    max_batch = 1
    config: QwenEditConfig  # type: ignore[assignment]

    @classmethod
    def hub(cls, config: QwenEditConfig) -> Hub:  # type: ignore[override]
        repository = "Qwen/Qwen-Image-Edit-2509" if config.plus else "Qwen/Qwen-Image-Edit"
        return Hub(repository=repository, gigabytes=57.7, terms="Apache-2.0")

    @classmethod
    def pipeline(cls, config: QwenEditConfig) -> Any:  # type: ignore[override]
        return QwenImageEditPlusPipeline if config.plus else QwenImageEditPipeline

    def random(self) -> Any:
        config = self.config
        return qwen_image.build_edit(config.size, config.plus, DTYPES[str(config.dtype)], self.device)

    def arguments(self, items: Sequence[Item]) -> dict[str, Any]:
        (item,) = items
        images = [open_picture(path).convert("RGB") for path in item.inputs["images"]]
        image = images if self.config.plus else images[0]
        return {"prompt": self.prompts(items), "image": image, **self.guidance(1)}

    def shape(self) -> dict[str, int]:
        tiny = self.config.size == "tiny"
        side = qwen_image.EDIT_SIDE * 8 // self.pipe.vae_scale_factor if tiny else EDIT_SIDE
        return {"height": side, "width": side, "reference": side, "text": 64 if tiny else EDIT_TEXT}
