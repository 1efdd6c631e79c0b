"""What the backends around a published diffusers pipeline share: loading, placing, prompts, files.

A subclass names its pipeline class and hub entry, builds the random counterpart, and says how items become
arguments of a call. Noise comes from one CPU generator per item, seeded with run seed + index, so it does
not depend on the device or the batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.backends import media
from experiments.backends.base import Backend, Item, Sampling
from experiments.backends.placement import check_placement, place
from experiments.backends.weights import DTYPES, Hub, locate
from experiments.config.backend import BackendConfig, PipelineConfig, PromptedConfig
from experiments.errors import check
from experiments.files import read_json

__all__ = ["PipelineBackend", "PromptedBackend", "generators"]


def generators(items: Sequence[Item]) -> list[torch.Generator]:
    """The source of each item's noise."""
    return [torch.Generator().manual_seed(item.seed) for item in items]


class PipelineBackend(Backend):
    """A pretrained pipeline, or a random one of the same classes."""

    media = "image"
    solvers = ()
    config: Any

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config)
        self.pipe = self.random() if self.config.weights == "random" else self.pretrained()
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        place(self.pipe, self.config, self.device)

    @classmethod
    @abstractmethod
    def hub(cls, config: Any) -> Hub:
        """The published weights."""

    @classmethod
    @abstractmethod
    def pipeline(cls, config: Any) -> Any:
        """The diffusers pipeline class."""

    @abstractmethod
    def random(self) -> Any:
        """The pipeline with random weights, in the configured size and dtype."""

    @abstractmethod
    def arguments(self, items: Sequence[Item]) -> dict[str, Any]:
        """What the pipeline is called with, besides steps and noise."""

    def pretrained(self) -> Any:
        """The pipeline from its folder."""
        from experiments.backends.loading import load_pipeline  # late: who reads finished runs needs no transformers

        config = self.config
        folder = locate(config.path, self.hub(config), config.revision)
        return load_pipeline(self.pipeline(config), folder, DTYPES[config.dtype])

    @classmethod
    def check(cls, config: BackendConfig) -> None:
        """Weights and devices must be there before anything is written."""
        if not isinstance(config, PipelineConfig):
            raise TypeError(f"{cls.__name__} needs a PipelineConfig, got {type(config).__name__}")
        check_placement(config)
        if config.weights == "pretrained":
            cls.check_weights(config, locate(config.path, cls.hub(config), config.revision))

    @classmethod
    def check_weights(cls, config: Any, folder: Path) -> None:
        """The folder must be of this pipeline, whose parts may fit another one too, and name all of its parts."""
        import diffusers  # late, as above

        index, kind = read_json(folder / "model_index.json"), cls.pipeline(config)
        named, known = index.get("_class_name"), [each.__name__ for each in kind.__mro__]
        rule = f"must be of a pipeline that backend {config.name} has"
        other = named not in known and hasattr(diffusers, str(named))
        check(not other, "backend.path", rule, f"{named} in {folder}")
        needed = sorted({*kind._get_signature_keys(kind)[0]}.difference(kind._optional_components))
        absent = [name for name in needed if not (isinstance(index.get(name), list) and index[name][0])]
        check(not absent, "backend.path", f"must have {', '.join(needed)}", f"no {', '.join(absent)} in {folder}")

    def prepare(self, sampling: Sampling) -> None:
        del sampling  # the pipeline's scheduler is the published one

    def generate(self, items: Sequence[Item], sampling: Sampling) -> list[Tensor]:
        output = self.pipe(
            **self.arguments(items),
            num_inference_steps=sampling.num_steps,
            generator=generators(items),
            output_type="pt",
            return_dict=False,
        )
        return list(output[0].float().cpu())

    @classmethod
    def save(cls, media_: Tensor, folder: Path, item: Item) -> list[Path]:
        return media.write_image(media_, folder, item.name, item.inputs["format"])

    @classmethod
    def load_media(cls, folder: Path, item: Item) -> Tensor:
        return media.read_image(folder, item.name, item.inputs["format"])


class PromptedBackend(PipelineBackend):
    """Items are the prompts of a set, `samples` of each, in their order."""

    @classmethod
    def items(cls, config: BackendConfig, num_items: int, seed: int) -> list[Item]:
        """The first `num_items` of the set; item i has seed + i."""
        if not isinstance(config, PromptedConfig):
            raise TypeError(f"{cls.__name__} needs a PromptedConfig, got {type(config).__name__}")
        prompts = config.read()
        chosen = [prompt for prompt in prompts for _ in range(config.samples)]
        rule = f"must be at most the {len(prompts)} prompts x {config.samples} samples"
        check(num_items <= len(chosen), "num_items", rule, num_items)
        return [
            Item(
                name=f"{index:05d}",
                title=prompt.text,
                seed=seed + index,
                inputs={"prompt": prompt.text, "images": prompt.images, **cls.file_options(config)},
            )
            for index, prompt in enumerate(chosen[:num_items])
        ]

    @classmethod
    def file_options(cls, config: Any) -> dict[str, Any]:
        """What `save` needs to know."""
        return {"format": config.format}

    def prompts(self, items: Sequence[Item]) -> list[str]:
        """The texts of the items."""
        return [item.inputs["prompt"] for item in items]
