"""Schemas of the super-resolution backends: Inf-DiT and the small model of its kind that ships with the code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from experiments.config.backend import BackendConfig, PipelineConfig, Recommended, execution
from experiments.errors import check, choose
from experiments.files import ASSETS

__all__ = ["PHOTOGRAPHS", "InfDiTConfig", "InfDiTSmallConfig", "PhotographsConfig", "pictures_of"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

PHOTOGRAPHS = ASSETS / "photographs"
"""Crops that ship with the code; see the README there."""


def pictures_of(folder: Path) -> list[Path]:
    """The picture files of a folder by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []


@cache
def digest_of(path: Path, size: int, time: int) -> bytes:
    """sha256 of a file, computed once while it stays as it is."""
    del size, time
    return hashlib.sha256(path.read_bytes()).digest()


@dataclass(kw_only=True)
class PhotographsConfig:
    """What is enlarged, and how a run goes over it."""

    images: str | None = execution(None)
    """Folder of images; null = the photographs that ship with the code. Part of a run's identity by its contents."""
    inputs: str = "hr"
    """hr: high-resolution images, reduced here (antialiased bicubic); lr: low-resolution images."""
    truth: str | None = execution(None)
    """Folder of high-resolution images for inputs=lr (0901.png beside 0901x4.png), where a metric needs them."""
    scale: int = 4
    """Factor of enlargement: 4, or 2."""
    solver: str = "heun"
    """heun (39 calls = 20 steps) or euler."""
    noise: float = 1.0
    """Scale of the initial noise: 1 as published; less gives images nearer the mean of the possible ones."""
    cross: str = "live"
    """Cross-attention at estimated steps of scope modules: live (computed), cached (forecast)."""
    history: str = "calls"
    """Series of model calls with a history of their own: calls (one), stages (one for each of Heun's two; num_steps are
    then steps, of two calls)."""
    state: str = "fp32"
    """Number format of the image between the calls: fp32, or bf16 as published."""
    rows: int | None = execution(None)
    """Rows of blocks that run at a time; null = all. Less memory, same results."""
    patch: int | None = None
    """Pixels on a side of independent patches; null = the whole image."""
    overlap: int = 0
    """Pixels that neighbouring patches share."""

    def pictures(self) -> list[Path]:
        """The files of the images."""
        return pictures_of(Path(self.images) if self.images else PHOTOGRAPHS)

    def check_photographs(self, recommended: Recommended) -> None:
        """The rules of these keys; a recommended number of 0 items means all."""
        if recommended.num_items == 0:
            recommended.num_items = len(self.pictures())
        block: int = getattr(self, "block")  # noqa: B009
        choose("backend.inputs", self.inputs, ("hr", "lr"))
        choose("backend.solver", self.solver, ("heun", "euler"))
        choose("backend.cross", self.cross, ("live", "cached"))
        choose("backend.history", self.history, ("calls", "stages"))
        staged = self.history == "calls" or self.solver == "heun"
        check(staged, "backend.history", "must be calls with backend.solver=euler, which has one stage", self.history)
        choose("backend.state", self.state, ("fp32", "bf16"))
        check(0 <= self.noise <= 1, "backend.noise", "must be from 0 to 1", self.noise)
        check(self.scale in (2, 4), "backend.scale", "must be 2 or 4", self.scale)
        check(self.rows is None or self.rows >= 1, "backend.rows", "must be an integer >= 1", self.rows)
        valid = self.patch is None or (self.patch > 0 and self.patch % block == 0)
        check(valid, "backend.patch", f"must be a multiple of {block}", self.patch)
        valid = 0 <= self.overlap < (self.patch or 1) and self.overlap % 8 == 0
        check(valid, "backend.overlap", "must be a multiple of 8 below backend.patch", self.overlap)
        only = self.truth is None or self.inputs == "lr"
        check(only, "backend.truth", "must be null for backend.inputs=hr, which are the truth", self.truth)

    def contents(self) -> dict[str, Any]:
        """Digest of the images; the truth is measured against and changes nothing."""
        digest = hashlib.sha256()
        for path in self.pictures():
            now = path.stat()
            digest.update(f"{path.name}\0".encode() + digest_of(path, now.st_size, now.st_mtime_ns))
        return {"images": digest.hexdigest()[:16]}


@dataclass(kw_only=True)
class InfDiTConfig(PhotographsConfig, PipelineConfig):
    """Inf-DiT: 754 million parameters, blocks of 128 pixels."""

    FULL: ClassVar[dict[str, Any]] = {"block": 128}
    TINY: ClassVar[dict[str, Any]] = {"block": 32}

    block: int | None = None
    """Pixels on a side of a block; other sizes than 128 have no released weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.block in (32, 64, 128), "backend.block", "must be 32, 64 or 128", self.block)
        released = self.block == 128 or self.weights == "random"
        check(released, "backend.block", "must be 128 with pretrained weights", self.block)
        self.check_photographs(self.recommended)


@dataclass(kw_only=True)
class InfDiTSmallConfig(PhotographsConfig, BackendConfig):
    """The small model of Inf-DiT's architecture: blocks of 32 pixels, the enlarged image is what it adds to."""

    block: ClassVar[int] = 32

    def __post_init__(self) -> None:
        check(self.scale == 4, "backend.scale", "must be 4 for the small model", self.scale)
        self.check_photographs(self.recommended)
