"""Super-resolution backends: Inf-DiT, and the small model of its architecture that ships with the code.

Items are the images of a folder. High-resolution ones are cut to whole blocks and reduced here, and are the truth that
`psnr_y` and the like measure against; low-resolution ones may have theirs in `backend.truth`, paired by name, where
`0901x4.png` belongs to `0901.png`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.decoders import open_picture
from evaluation.errors import EvaluationError
from experiments.backends import media
from experiments.backends.base import Backend, Item, Sampling
from experiments.backends.inf_dit.checkpoint import ENCODER, NETWORK
from experiments.backends.inf_dit.edm import EDMScheduler, Preconditioning
from experiments.backends.inf_dit.encoder import ClipVector
from experiments.backends.inf_dit.images import channel_statistics, crop, downscale
from experiments.backends.inf_dit.model import InfDiTTransformer2DModel
from experiments.backends.inf_dit.pipeline import InfDiTPipeline, corners
from experiments.backends.pipeline_backend import PipelineBackend, generators
from experiments.backends.tiny import random_weights
from experiments.backends.weights import DTYPES, Hub, check_whole
from experiments.config.backend import BackendConfig
from experiments.config.super_resolution import PhotographsConfig, pictures_of
from experiments.errors import ConfigError, check
from experiments.files import ASSETS

__all__ = ["SIZES", "SMALL", "EnlargingBackend", "InfDiTBackend", "InfDiTSmallBackend"]

SMALL = ASSETS / "inf_dit_small"
SIGMA_DATA = 0.12
"""Of the small model: the deviation of what the enlarged training images lack."""

SIZES: dict[str, dict[str, Any]] = {
    "full": {},
    "tiny": {"num_layers": 3, "hidden_size": 32, "num_heads": 2, "vector_size": 8},
}
"""Arguments of the network, besides the block."""


def read(path: Path) -> Tensor:
    """A picture `[1, 3, H, W]` in [-1, 1].

    Raises:
        ConfigError: naming the file, if it is damaged, no picture, or not RGB.
    """
    try:
        image = open_picture(path)
    except EvaluationError as error:
        raise ConfigError(f"backend.images: {error}") from error
    check(image.mode == "RGB", "backend.images", f"must be 8-bit RGB in {path}", image.mode)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


@cache
def check_image(path: Path, size: int, time: int, multiple: int) -> None:
    """A file must be an RGB image of at least one block; it is decoded once while it stays as it is."""
    del size, time
    height, width = read(path).shape[-2:]
    rule = f"must be at least {multiple} x {multiple} pixels in {path}"
    check(min(height, width) >= multiple, "backend.images", rule, f"{width} x {height}")


def stem_of(path: Path, scale: int) -> str:
    """The name without suffix and `x4`."""
    return re.sub(rf"x{scale}$", "", path.stem)


class EnlargingBackend(Backend):
    """What both have in common: images in, images of four times their size out."""

    media = "image"
    transformer_class = "InfDiTTransformer2DModel"
    solvers = ()
    fixed_architecture = True
    config: Any

    @classmethod
    def items(cls, config: BackendConfig, num_items: int, seed: int) -> list[Item]:
        """The first `num_items` images by name; item i has seed + i."""
        if not isinstance(config, PhotographsConfig):
            raise TypeError(f"{cls.__name__} needs a PhotographsConfig, got {type(config).__name__}")
        files = config.pictures()
        check(bool(files), "backend.images", "must be a folder of images", config.images)
        check(num_items <= len(files), "num_items", f"must be at most the {len(files)} images", num_items)
        names = [stem_of(path, config.scale) for path in files]
        twice = next((name for name in names if names.count(name) > 1), None)
        check(twice is None, "backend.images", "must have names that differ without suffix", twice)
        return [
            Item(name=name, title=name, seed=seed + index, inputs={"path": path})
            for index, (name, path) in enumerate(zip(names[:num_items], files, strict=False))
        ]

    @classmethod
    def low(cls, config: Any, item: Item) -> Tensor:
        """The low-resolution image `[1, 3, h, w]` in [-1, 1], made of whole blocks."""
        whole = crop(read(item.inputs["path"]), cls.multiple(config))
        return downscale(whole, config.scale) if config.inputs == "hr" else whole

    @classmethod
    def truth(cls, config: BackendConfig, item: Item) -> Tensor | None:
        """The high-resolution image, cut like the result.

        Raises:
            ConfigError: if there is none, or it has another size.
        """
        settings: Any = config
        path, scale = item.inputs["path"], settings.scale
        image = read(path)
        if settings.inputs == "hr":
            return crop(image, settings.block)[0] / 2 + 0.5
        folder = Path(settings.truth or "")
        rule = "must be a folder of high-resolution images for what is measured against them"
        check(settings.truth is not None and folder.is_dir(), "backend.truth", rule, settings.truth)
        found = [file for file in pictures_of(folder) if file.stem == item.name]
        check(len(found) == 1, "backend.truth", f"must have one image {item.name}.* for {path}", len(found))
        high = read(found[0])
        fits = all(0 <= a - scale * b < scale for a, b in zip(high.shape[-2:], image.shape[-2:], strict=True))
        size = " x ".join(str(side) for side in reversed(high.shape[-2:]))
        check(fits, "backend.truth", f"must be {scale} times as large as {path}", f"{found[0]} ({size})")
        rows, columns = crop(image, settings.block // scale).shape[-2:]
        top, left = ((side - kept) // 2 for side, kept in zip(image.shape[-2:], (rows, columns), strict=True))
        high = high[..., scale * top : scale * (top + rows), scale * left : scale * (left + columns)]
        return high[0] / 2 + 0.5

    @classmethod
    def check_images(cls, config: Any) -> None:
        """Every image must be readable, RGB and large enough."""
        for item in cls.items(config, len(config.pictures()), 0):
            path = item.inputs["path"]
            now = path.stat()
            check_image(path, now.st_size, now.st_mtime_ns, cls.multiple(config))

    @staticmethod
    def multiple(config: Any) -> int:
        """Pixels of an input image that make one block."""
        return config.block if config.inputs == "hr" else config.block // config.scale

    def arguments(self, items: Sequence[Item]) -> dict[str, Any]:
        """What the pipeline is called with, besides steps and noise."""
        config = self.config
        low = [self.low(config, item) for item in items]
        sizes = {tuple(image.shape) for image in low}
        check(len(sizes) == 1, "batch_size", "must be 1 for images of different sizes", len(items))
        return {
            "image": torch.cat(low),
            "scale": config.scale,
            "patch": config.patch,
            "overlap": config.overlap,
            "noise_scale": config.noise,
            "state_dtype": DTYPES[config.state],
        }

    def generate(self, items: Sequence[Item], sampling: Sampling) -> list[Tensor]:
        self.pipe.transformer.block_rows = self.config.rows
        output = self.pipe(
            **self.arguments(items),
            num_inference_steps=sampling.num_steps,
            generator=generators(items),
            output_type="pt",
            return_dict=False,
        )
        return list(output[0].float().cpu())

    def prepare(self, sampling: Sampling) -> None:
        del sampling
        self.pipe.scheduler = EDMScheduler(solver=self.config.solver)
        self.pipe.scheduler.by_step = self.config.history == "stages"

    def model_batch(self, num_items: int) -> int:
        """Patches count like images, and so do both calls of a step where each stage has its history."""
        config, (height, width) = self.config, self.size()
        num_items *= 2 if config.history == "stages" else 1
        if config.patch is None:
            return num_items
        patches = [len(corners(side, min(config.patch, side), config.overlap)) for side in (height, width)]
        return num_items * patches[0] * patches[1]

    def size(self) -> tuple[int, int]:
        """Height and width of the first image of the run's folder."""
        low = self.low(self.config, self.items(self.config, 1, 0)[0])
        return low.shape[-2] * self.config.scale, low.shape[-1] * self.config.scale

    def shape(self) -> dict[str, int]:
        height, width = self.size()
        side = self.config.patch or max(height, width)
        return {"height": min(height, side), "width": min(width, side)}

    @classmethod
    def save(cls, media_: Tensor, folder: Path, item: Item) -> list[Path]:
        return media.write_image(media_, folder, item.name, "png")

    @classmethod
    def load_media(cls, folder: Path, item: Item) -> Tensor:
        return media.read_image(folder, item.name, "png")


class InfDiTBackend(EnlargingBackend, PipelineBackend):
    """Inf-DiT with the released weights, converted, or random ones."""

    @classmethod
    def hub(cls, config: Any) -> Hub:
        raise NotImplementedError("the weights of Inf-DiT are on no hub")

    @classmethod
    def pipeline(cls, config: Any) -> Any:
        return InfDiTPipeline

    def random(self) -> Any:
        config = self.config
        with random_weights(DTYPES[str(config.dtype)], self.device):
            sizes = SIZES[config.size] | {"block_size": config.block, "cache_cross": config.cross == "cached"}
            model = InfDiTTransformer2DModel(**sizes)
        return InfDiTPipeline(model, EDMScheduler(solver=config.solver))

    def pretrained(self) -> Any:
        config, folder = self.config, Path(self.config.path)
        dtype = DTYPES[str(config.dtype)]
        model: Any = InfDiTTransformer2DModel.from_pretrained(
            folder / NETWORK, dtype=dtype, use_safetensors=True, local_files_only=True
        )
        model.register_to_config(cache_cross=config.cross == "cached")
        pipe = InfDiTPipeline(model, EDMScheduler(solver=config.solver))
        pipe.vector = ClipVector.load(folder / ENCODER / "model.safetensors", dtype).to(self.device)
        return pipe

    @classmethod
    def check(cls, config: BackendConfig) -> None:
        chosen: Any = config
        if chosen.weights == "pretrained":
            folder = Path(chosen.path or "")
            files = [folder / NETWORK / "config.json", folder / ENCODER / "model.safetensors"]
            there = chosen.path is not None and all(file.is_file() for file in files)
            rule = (
                "must be the folder of converted weights: 5 GB from the cloud drive of Tsinghua University that the "
                "README of THUDM/Inf-DiT on GitHub links (no licence stated for them), then "
                "python -m experiments convert inf-dit mp_rank_00_model_states.pt FOLDER"
            )
            check(there, "backend.path", rule, chosen.path)
            check_whole(*(folder / NETWORK).glob("*.safetensors"), files[1])
        cls.check_images(config)


class InfDiTSmallBackend(EnlargingBackend):
    """1.4 million parameters, trained here on photographs; see `experiments/assets/inf_dit_small/README.md`."""

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config)
        model: Any = InfDiTTransformer2DModel.from_pretrained(
            Path(config.path or SMALL) / NETWORK, dtype=torch.float32, use_safetensors=True
        )
        model.register_to_config(cache_cross=self.config.cross == "cached")
        self.pipe = InfDiTPipeline(model.eval().requires_grad_(False), EDMScheduler(solver=self.config.solver))
        self.pipe.preconditioning = Preconditioning(SIGMA_DATA, residual=True)
        self.pipe.vector = channel_statistics
        self.pipe.to(self.device)
        self.pipe.set_progress_bar_config(disable=True)

    @classmethod
    def skeleton(cls, config: BackendConfig) -> InfDiTTransformer2DModel:
        """The network as its folder describes it."""
        described: Any = InfDiTTransformer2DModel.load_config(str(Path(config.path or SMALL) / NETWORK))
        options: Any = config
        found: Any = InfDiTTransformer2DModel.from_config(described | {"cache_cross": options.cross == "cached"})
        return found

    @classmethod
    def check(cls, config: BackendConfig) -> None:
        folder = Path(config.path or SMALL)
        weights = folder / NETWORK / "diffusion_pytorch_model.safetensors"
        check(weights.is_file(), "backend.path", f"must be a folder with {NETWORK}/{weights.name}", str(folder))
        check_whole(weights)
        if config.path is None:
            found = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
            rule = f"must be that of the shipped weights ({found})"
            check(found == config.revision, "backend.revision", rule, config.revision)
        cls.check_images(config)
