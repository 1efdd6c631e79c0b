"""Any pipeline of diffusers that makes images, videos or audio from a prompt, or from a prompt and an image.

Nothing is known of the model: the class of the pipeline says what it makes and which arguments it takes, a traced
generation what its steps cost, and a method is enabled on all of its denoisers. What the configuration leaves open
is the pipeline's own default.

Noise comes from one generator per item, which pipelines hand on to all that they draw: latents, the encoding of an
image, the noise of stochastic solvers. So an item's noise does not depend on its batch, shard or order.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor

from evaluation.decoders import open_picture
from experiments.backends import media
from experiments.backends.base import Item, Sampling
from experiments.backends.pipeline_backend import PromptedBackend, generators
from experiments.backends.tiny.build import RECIPES, build, describe_denoisers
from experiments.backends.weights import DTYPES, Hub, locate
from experiments.config.backend import BackendConfig
from experiments.config.diffusers import ARGUMENTS, About, DiffusersConfig
from experiments.errors import ConfigError, check, choose
from hicache.cost import Calls, trace
from hicache.generic import denoisers
from hicache.generic.structure import DENOISERS

__all__ = ["DiffusersBackend"]

TINY_SIDE = 32
"""Side in pixels to which tiny pipelines are given their pictures."""


class DiffusersBackend(PromptedBackend):
    """What all media share; `of` says which one a configuration means."""

    config: DiffusersConfig

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config)
        self._traced: tuple[Calls, int, int] | None = None

    @classmethod
    def of(cls, config: BackendConfig) -> type[DiffusersBackend]:
        assert isinstance(config, DiffusersConfig)
        return specialise(config.media, config.max_batch or (1 if config.edits else None))

    @classmethod
    def hub(cls, config: DiffusersConfig) -> Hub:
        return Hub(repository=config.hub or "ORGANISATION/NAME", gigabytes=config.gigabytes, terms=config.licence)

    @classmethod
    def pipeline(cls, config: DiffusersConfig) -> Any:
        return getattr(diffusers, str(config.pipeline))

    @classmethod
    def check(cls, config: BackendConfig) -> None:
        assert isinstance(config, DiffusersConfig)
        if config.weights == "random":
            rule = f"must be pretrained at size full for backend {config.name}, whose architecture is in its folder"
            check(config.size == "tiny", "backend.weights", rule, config.weights)
            choose("backend.pipeline", str(config.pipeline), RECIPES)
        else:
            named = config.path or config.hub
            check(named is not None, "backend.path", f"must be a folder or hub id for backend {config.name}", named)
        super().check(config)
        if config.weights == "pretrained":
            cls.described(config)

    @classmethod
    def check_weights(cls, config: Any, folder: Path) -> None:
        """Which pipeline a folder is given to is the user's choice."""

    @classmethod
    def described(cls, config: BackendConfig) -> Any:
        """The pipeline's denoisers on the meta device, which tell what methods the pipeline takes.

        Raises:
            ConfigError: if it has none.
        """
        assert isinstance(config, DiffusersConfig)
        if config.weights == "random":
            return describe_denoisers(str(config.pipeline))
        folder = locate(config.path, cls.hub(config), config.revision)
        index: Any = diffusers.DiffusionPipeline.load_config(str(folder))
        found = {name: index[name][1] for name in DENOISERS if isinstance(index.get(name), list) and index[name][1]}
        rule = f"must have one of {', '.join(DENOISERS)}"
        check(bool(found), "backend.path", rule, str(folder))
        return SimpleNamespace(**{name: without_weights(kind, folder / name) for name, kind in found.items()})

    def random(self) -> Any:
        return build(str(self.config.pipeline), DTYPES[str(self.config.dtype)], self.device)

    @property
    def about(self) -> About:
        """What the class of the pipeline says."""
        found = self.config.about
        assert found is not None
        return found

    @property
    def transformer(self) -> torch.nn.Module:
        return next(iter(denoisers(self.pipe).values()))

    @classmethod
    def file_options(cls, config: DiffusersConfig) -> dict[str, Any]:
        tiny = config.size == "tiny"
        return {
            "format": config.format,
            "fps": config.fps,
            "lossless": config.lossless or tiny,
            "rate": 8000 if tiny else config.rate,
        }

    def arguments(self, items: Sequence[Item]) -> dict[str, Any]:
        config = self.config
        small = dict(RECIPES[str(config.pipeline)].call) if config.size == "tiny" else {}
        asked = {argument: getattr(config, key) for key, argument in ARGUMENTS.items()}
        given = {key: value for key, value in asked.items() if value is not None} | (config.call or {}) | small
        if isinstance(given.get("negative_prompt"), str):
            given["negative_prompt"] = [given["negative_prompt"]] * len(items)
        if config.edits:
            given["image"] = [self.picture(item) for item in items] if len(items) > 1 else self.picture(items[0])
        return {"prompt": self.prompts(items), **given}

    def picture(self, item: Item) -> Any:
        """The image that an item is about."""
        found = open_picture(item.inputs["images"][0]).convert("RGB")
        return found.resize((TINY_SIDE, TINY_SIDE)) if self.config.size == "tiny" else found

    @contextlib.contextmanager
    def tracing(self, items: Sequence[Item], sampling: Sampling) -> Iterator[None]:
        if self._traced is not None and self._traced[2] == sampling.num_steps:
            yield
            return
        with trace(self.pipe) as calls:
            yield
        self._traced = (calls, len(items), sampling.num_steps)

    def generate(self, items: Sequence[Item], sampling: Sampling) -> list[Tensor]:
        output = self.pipe(
            **self.arguments(items),
            num_inference_steps=sampling.num_steps,
            generator=generators(items),
            output_type="pt",
        )
        return [self.as_kept(each) for each in getattr(output, self.about.field)]

    def as_kept(self, made: Any) -> Tensor:
        """One medium with its channels before its pixels or samples."""
        found = torch.as_tensor(made)
        if not isinstance(made, Tensor) and self.media != "audio":
            found = found.movedim(-1, -3)  # a pipeline that knows no "pt" gives arrays
        return found.detach().float().cpu()

    def traced(self, items: Sequence[Item], sampling: Sampling) -> tuple[Calls, int]:
        if self._traced is None or self._traced[2] != sampling.num_steps:
            with self.tracing(items[:1], sampling):
                self.generate(items[:1], sampling)
        assert self._traced is not None
        return self._traced[:2]

    def num_steps(self, items: Sequence[Item], sampling: Sampling) -> int:
        return self.traced(items, sampling)[0].num_steps


class Images(DiffusersBackend):
    """What makes images."""

    media = "image"


class Videos(DiffusersBackend):
    """What makes videos."""

    media = "video"

    @classmethod
    def save(cls, media_: Tensor, folder: Path, item: Item) -> list[Path]:
        return media.write_video(media_, folder, item.name, item.inputs["fps"], item.inputs["lossless"])

    @classmethod
    def load_media(cls, folder: Path, item: Item) -> Tensor:
        return media.read_video(folder, item.name, item.inputs["lossless"])


class Sounds(DiffusersBackend):
    """What makes audio."""

    media = "audio"

    @classmethod
    def save(cls, media_: Tensor, folder: Path, item: Item) -> list[Path]:
        return media.write_audio(media_, folder, item.name, item.inputs["rate"])

    @classmethod
    def load_media(cls, folder: Path, item: Item) -> Tensor:
        return media.read_audio(folder, item.name)


KINDS: dict[str, type[DiffusersBackend]] = {kind.media: kind for kind in (Images, Videos, Sounds)}


@functools.cache
def specialise(made: str, most: int | None) -> type[DiffusersBackend]:
    """The class for what a pipeline makes, and for how many at once it does."""
    kind = KINDS[made]
    return kind if most is None else type(kind.__name__, (kind,), {"max_batch": most, "__module__": kind.__module__})


@functools.cache
def without_weights(kind: str, folder: Path) -> torch.nn.Module:
    """The denoiser that a folder describes, on the meta device.

    Raises:
        ConfigError: if diffusers has no such class.
    """
    model: Any = getattr(diffusers, kind, None)
    if model is None:
        raise ConfigError(f"backend.path: must hold classes of diffusers {diffusers.__version__}, got {kind}")
    values = model.load_config(str(folder))
    with torch.device("meta"):
        return model.from_config(values)
