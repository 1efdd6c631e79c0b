"""HunyuanVideo: 20 double and 40 single blocks on 17 x 30 x 40 tokens at 480 x 640 pixels and 65 frames.

50 steps of rectified flow with shift 7, embedded guidance 6. Files are named by index, or as VBench reads them,
`<prompt>-<sample>.mp4`, which is the default for VBench's own list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import HunyuanVideoPipeline
from torch import Tensor

from evaluation.vbench.prompt_list import video_name
from experiments.backends import media
from experiments.backends.base import Item
from experiments.backends.pipeline_backend import PromptedBackend
from experiments.backends.tiny import hunyuan_video
from experiments.backends.weights import DTYPES, Hub
from experiments.config.backend import BackendConfig, HunyuanVideoConfig
from experiments.errors import check

__all__ = ["HunyuanVideoBackend"]


class HunyuanVideoBackend(PromptedBackend):
    """Text to video."""

    media = "video"
    transformer_class = "HunyuanVideoTransformer3DModel"
    config: HunyuanVideoConfig

    @classmethod
    def hub(cls, config: HunyuanVideoConfig) -> Hub:
        terms = "Tencent Hunyuan community licence"
        return Hub(repository="hunyuanvideo-community/HunyuanVideo", gigabytes=42.9, terms=terms)

    @classmethod
    def pipeline(cls, config: HunyuanVideoConfig) -> Any:
        return HunyuanVideoPipeline

    def random(self) -> Any:
        return hunyuan_video.build(self.config.size, DTYPES[str(self.config.dtype)], self.device)

    @classmethod
    def items(cls, config: BackendConfig, num_items: int, seed: int) -> list[Item]:
        found = super().items(config, num_items, seed)
        assert isinstance(config, HunyuanVideoConfig)
        if config.names == "index":
            return found
        samples = config.samples
        found = [replace(item, name=video_name(item.title, at % samples, "")) for at, item in enumerate(found)]
        names: set[str] = set()
        for item in found:
            check(item.name not in names, "backend.prompts", "must not repeat a prompt", item.title)
            names.add(item.name)
        return found

    @classmethod
    def file_options(cls, config: HunyuanVideoConfig) -> dict[str, Any]:
        return {"fps": config.fps, "lossless": config.lossless}

    def arguments(self, items: Sequence[Item]) -> dict[str, Any]:
        config = self.config
        given: dict[str, Any] = {
            "prompt": self.prompts(items),
            "guidance_scale": config.guidance,
            "height": config.height,
            "width": config.width,
            "num_frames": config.frames,
            "max_sequence_length": config.text_tokens,
        }
        if config.weights == "random":
            given["prompt_template"] = hunyuan_video.TEMPLATE
        return given

    def shape(self) -> dict[str, int]:
        config = self.config
        # The adapter counts 8 pixels per latent, as the tiny VAE does too.
        return {
            "height": config.height or 0,
            "width": config.width or 0,
            "frames": config.frames or 0,
            "text": config.text_tokens or 0,
        }

    @classmethod
    def save(cls, media_: Tensor, folder: Path, item: Item) -> list[Path]:
        return media.write_video(media_, folder, item.name, item.inputs["fps"], item.inputs["lossless"])

    @classmethod
    def load_media(cls, folder: Path, item: Item) -> Tensor:
        return media.read_video(folder, item.name, item.inputs["lossless"])
