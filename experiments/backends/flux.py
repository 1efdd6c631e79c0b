"""FLUX.1 [dev] and [schnell]: 19 double and 38 single blocks, one call per step, rectified flow.

dev: 50 steps, shift by resolution, embedded guidance 3.5. schnell: 4 steps, no shift, no guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import FluxPipeline

from experiments.backends.base import Item
from experiments.backends.pipeline_backend import PromptedBackend
from experiments.backends.tiny import flux
from experiments.backends.weights import DTYPES, Hub
from experiments.config.backend import FluxConfig
from experiments.errors import check
from experiments.files import read_json

__all__ = ["FluxBackend", "SchnellBackend"]


class FluxBackend(PromptedBackend):
    """FLUX.1 [dev]."""

    transformer_class = "FluxTransformer2DModel"
    guided = True
    doubled_by = "true_cfg"
    config: FluxConfig

    @classmethod
    def hub(cls, config: FluxConfig) -> Hub:
        name, terms = ("dev", "gated, non-commercial") if cls.guided else ("schnell", "Apache-2.0")
        single = (f"flux1-{name}.safetensors", "ae.safetensors")
        return Hub(repository=f"black-forest-labs/FLUX.1-{name}", gigabytes=33.7, terms=terms, exclude=single)

    @classmethod
    def pipeline(cls, config: FluxConfig) -> Any:
        return FluxPipeline

    @classmethod
    def check_weights(cls, config: Any, folder: Path) -> None:
        """With guidance embedded for dev, without for schnell; weights of dev without take a second call per step."""
        super().check_weights(config, folder)
        embedded = bool(read_json(folder / "transformer" / "config.json").get("guidance_embeds"))
        fits = embedded == cls.guided or (cls.guided and config.true_cfg > 1)
        rule = f"must {'' if cls.guided else 'not '}have embedded guidance for backend {config.name}"
        check(fits, "backend.path", rule, f"guidance_embeds {str(embedded).lower()} in {folder}")

    def random(self) -> Any:
        config = self.config
        return flux.build(config.size, self.guided, DTYPES[str(config.dtype)], self.device)

    def arguments(self, items: Sequence[Item]) -> dict[str, Any]:
        config = self.config
        given: dict[str, Any] = {
            "prompt": self.prompts(items),
            "guidance_scale": config.guidance,
            "height": config.height,
            "width": config.width,
            "max_sequence_length": config.text_tokens,
        }
        if config.true_cfg > 1:
            given |= {"true_cfg_scale": config.true_cfg, "negative_prompt": [config.negative_prompt] * len(items)}
        return given

    def shape(self) -> dict[str, int]:
        # The adapter counts 16 pixels per token side; a tiny VAE has fewer.
        scale = 8 // self.pipe.vae_scale_factor
        config = self.config
        return {
            "height": scale * (config.height or 0),
            "width": scale * (config.width or 0),
            "text": config.text_tokens or 0,
        }


class SchnellBackend(FluxBackend):
    """FLUX.1 [schnell]."""

    guided = False
