"""Schemas of conf/backend/: the model, its weights and its inputs.

Keys that are null take the paper's value, or a small one at `size=tiny`: the tables `FULL` and `TINY` of each class.
They are filled in when the configuration is composed, so the rest of the code never sees null. Rules that need files
or devices are checked later, by the backend.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from omegaconf import MISSING

from experiments.config.prompts import Prompt, fingerprint, read_prompts
from experiments.errors import check, choose

__all__ = [
    "BackendConfig",
    "DiTConfig",
    "DigitsConfig",
    "EmojiConfig",
    "FluxConfig",
    "GuidedConfig",
    "HunyuanVideoConfig",
    "PipelineConfig",
    "PromptedConfig",
    "QwenConfig",
    "QwenEditConfig",
    "Recommended",
    "SOLVERS",
]


SOLVERS = ("ddim", "dpmpp", "unipc")


def execution(default: Any) -> Any:
    """A field that is not part of a run's identity."""
    return field(default=default, metadata={"semantic": False})


def semantic(group: Any) -> dict[str, Any]:
    """The group's name and its semantic fields that differ from their defaults."""
    kept: dict[str, Any] = {}
    for f in fields(group):
        value = getattr(group, f.name)
        if f.metadata.get("semantic", True) and (f.name == "name" or value != f.default):
            kept[f.name] = value
    return kept


MAX_SIGMA = 1000
"""Far above the scales that forecasts gain from, and short enough for the name of a run."""


@dataclass(kw_only=True)
class Recommended:
    """What a backend recommends for the top-level keys left open."""

    interval: int = MISSING
    order: int = MISSING
    sigma: float = MISSING
    warmup_steps: int = MISSING
    num_steps: int = MISSING
    num_items: int = MISSING
    batch_size: int = MISSING
    scope: str = "modules"

    def __post_init__(self) -> None:
        for name in ("interval", "warmup_steps", "num_steps", "num_items", "batch_size"):
            # 0 items: all that there are; 0 steps: a pipeline's own
            value, least = getattr(self, name), 0 if name in ("num_items", "num_steps") else 1
            rule = f"must be an integer >= {least}"
            check(value == MISSING or value >= least, f"backend.recommended.{name}", rule, value)
        order = self.order
        check(order == MISSING or order >= 0, "backend.recommended.order", "must be an integer >= 0", order)
        valid = self.sigma == MISSING or 0 < self.sigma <= MAX_SIGMA
        check(valid, "backend.recommended.sigma", f"must be a number > 0, at most {MAX_SIGMA}", self.sigma)


@dataclass(kw_only=True)
class BackendConfig:
    """A model with its pipeline, sampler and inputs."""

    name: str = MISSING
    revision: str = MISSING
    """Version of the weights: changes when they change, so that old runs are not taken for new ones."""
    path: str | None = None
    """Folder of the weights (or hub id); null = where the backend ships or looks for them."""
    device: str = execution("auto")
    """auto = cuda where there is one, else cpu."""
    recommended: Recommended = field(default_factory=Recommended, metadata={"semantic": False})

    def contents(self) -> dict[str, Any]:
        """What identifies the run besides the fields: digests of the files that it reads."""
        return {}


@dataclass(kw_only=True)
class DigitsConfig(BackendConfig):
    """The embedded default: a class-conditional DiT on handwritten digits, in pixel space."""

    guidance: float = 1.5
    solver: str = "ddim"

    def __post_init__(self) -> None:
        valid = 1 <= self.guidance < float("inf")
        check(valid, "backend.guidance", "must be >= 1 and finite (1 = no guidance)", self.guidance)
        choose("backend.solver", self.solver, SOLVERS)


@dataclass(kw_only=True)
class EmojiConfig(BackendConfig):
    """The embedded text-to-image model: FLUX's transformer on captioned emoji, in pixel space."""

    guidance: float = 2.0
    """Classifier-free guidance by a doubled batch."""
    prompts: str | None = execution(None)
    """File of prompts (.txt, .jsonl); null = captions of scenes that the model was not trained on."""

    def __post_init__(self) -> None:
        check(self.guidance >= 1, "backend.guidance", "must be >= 1 (1 = no guidance)", self.guidance)
        if self.recommended.num_items == 0:
            self.recommended.num_items = len(self.read())

    def read(self) -> list[Prompt]:
        """The prompts of the file."""
        check(self.prompts is not None, "backend.prompts", "must be a file", self.prompts)
        return read_prompts(str(self.prompts))

    def contents(self) -> dict[str, Any]:
        return {} if self.prompts is None else {"prompts": fingerprint(self.read())}


DTYPES = ("bf16", "fp16", "fp32")

TINY_ITEMS = 4
"""Items of a tiny run that does not say how many."""


@dataclass(kw_only=True)
class PipelineConfig(BackendConfig):
    """Weights and placement of a diffusers pipeline."""

    FULL: ClassVar[dict[str, Any]] = {}
    TINY: ClassVar[dict[str, Any]] = {}

    size: str = "full"
    """full, or tiny: a random model of the same classes, built in memory in a second."""
    weights: str | None = None
    """pretrained, or random (speed does not depend on values); null = pretrained at size full."""
    dtype: str | None = None
    """bf16, fp16, fp32; null = bf16 (fp32 for DiT) at size full, fp32 at size tiny."""
    attention: str = "sdpa"
    """Kernel of the attention; see `experiments.backends.placement.ATTENTION`."""
    compile: bool = False
    """Compile the transformer's blocks, each by itself."""
    offload: str = execution("none")
    """none, model (one model at a time on the GPU), sequential (one layer at a time)."""
    format: str = "png"
    """Files of images: png, or jpeg95, which is what some published numbers were measured on."""

    def __post_init__(self) -> None:
        choose("backend.size", self.size, ("full", "tiny"))
        tiny = self.size == "tiny"
        common = {"dtype": "fp32" if tiny else "bf16", "weights": "random" if tiny else "pretrained"}
        for key, value in {**common, **(self.TINY if tiny else self.FULL)}.items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        choose("backend.weights", str(self.weights), ("pretrained", "random"))
        check(not tiny or self.weights == "random", "backend.weights", "must be random at size tiny", self.weights)
        choose("backend.dtype", str(self.dtype), DTYPES)
        choose("backend.offload", self.offload, ("none", "model", "sequential"))
        choose("backend.format", self.format, ("png", "jpeg95"))
        if tiny and self.recommended.num_items > TINY_ITEMS:
            self.recommended.num_items = TINY_ITEMS


@dataclass(kw_only=True)
class PromptedConfig(PipelineConfig):
    """Inputs from a prompt set; `recommended.num_items: 0` means all of it.

    The set is part of a run's identity by its contents, whatever its file is called.
    """

    prompts: str | None = execution(None)
    """File of prompts (.txt, .jsonl, or VBench's .json); null = the short list that ships with the code."""
    unquote: bool = execution(True)
    """Strip one pair of double quotes that encloses a line of a .txt file."""
    samples: int = 1
    """Media per prompt, each with its own noise."""
    SHIPPED: ClassVar[str] = "images.txt"

    def __post_init__(self) -> None:
        check(self.samples >= 1, "backend.samples", "must be an integer >= 1", self.samples)
        if self.recommended.num_items == 0:
            self.recommended.num_items = len(self.read()) * self.samples
        super().__post_init__()

    def read(self) -> list[Prompt]:
        """The prompt set."""
        return read_prompts(self.prompts or self.SHIPPED, self.unquote)

    def contents(self) -> dict[str, Any]:
        return {"prompts": fingerprint(self.read())}


def check_extent(config: Any, keys: tuple[str, ...], multiple: int) -> None:
    """Sizes in pixels must be multiples of what one token covers."""
    for key in keys:
        value = getattr(config, key)
        check(value > 0 and value % multiple == 0, f"backend.{key}", f"must be a multiple of {multiple}", value)


@dataclass(kw_only=True)
class FluxConfig(PromptedConfig):
    """FLUX.1: one call per step, guidance embedded (dev) or none (schnell)."""

    FULL: ClassVar[dict[str, Any]] = {"height": 1024, "width": 1024, "text_tokens": 512}
    TINY: ClassVar[dict[str, Any]] = {"height": 32, "width": 32, "text_tokens": 128}

    guidance: float = MISSING
    """Embedded guidance scale; schnell does not read it."""
    height: int | None = None
    width: int | None = None
    text_tokens: int | None = None
    """Length to which T5's text is padded."""
    true_cfg: float = 1.0
    """Above 1: classifier-free guidance by a second call per step with `negative_prompt`."""
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_extent(self, ("height", "width"), 16)
        check(self.text_tokens in range(1, 513), "backend.text_tokens", "must be from 1 to 512", self.text_tokens)
        check(self.true_cfg >= 1, "backend.true_cfg", "must be >= 1 (1 = one call per step)", self.true_cfg)

    @property
    def token_side(self) -> int:
        """Pixels on each side of an image token; the tiny VAE halves only once."""
        return 4 if self.size == "tiny" else 16


@dataclass(kw_only=True)
class GuidedConfig(PromptedConfig):
    """The Qwen models: classifier-free guidance by two calls per step."""

    true_cfg: float = 4.0
    negative_prompt: str = " "

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.true_cfg >= 1, "backend.true_cfg", "must be >= 1 (1 = one call per step)", self.true_cfg)


@dataclass(kw_only=True)
class QwenConfig(GuidedConfig):
    """Qwen-Image: text to image."""

    FULL: ClassVar[dict[str, Any]] = {"height": 1328, "width": 1328}
    TINY: ClassVar[dict[str, Any]] = {"height": 32, "width": 32}

    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_extent(self, ("height", "width"), 16)


@dataclass(kw_only=True)
class QwenEditConfig(GuidedConfig):
    """Qwen-Image-Edit: every prompt comes with an image, whose shape at about one megapixel the output takes."""

    SHIPPED: ClassVar[str] = "edits.jsonl"

    plus: bool = False
    """The pipeline of the later checkpoints (-2509, ...), which takes several images per prompt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for prompt in self.read():
            several = self.plus and len(prompt.images) > 1
            rule = "must have an image per line (several only with backend.plus=true)"
            check(len(prompt.images) == 1 or several, "backend.prompts", rule, prompt.text)


@dataclass(kw_only=True)
class HunyuanVideoConfig(PromptedConfig):
    """HunyuanVideo: text to video, guidance embedded."""

    FULL: ClassVar[dict[str, Any]] = {
        "height": 480,
        "width": 640,
        "frames": 65,
        "text_tokens": 256,
        "lossless": False,
    }
    TINY: ClassVar[dict[str, Any]] = {
        "height": 32,
        "width": 48,
        "frames": 9,
        "text_tokens": 128,
        "lossless": True,
    }
    SHIPPED: ClassVar[str] = "videos.txt"

    guidance: float = 6.0
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    fps: int = 24
    text_tokens: int | None = None
    vae_tiling: bool = True
    """Decode in tiles: less memory, edges blended."""
    lossless: bool | None = None
    """Keep the frames as an 8-bit array beside the mp4 (60 MB per video at full size) and measure on that."""
    names: str | None = execution(None)
    """Of files: `index`, or `vbench` for `<prompt>-<sample>`; null = vbench for VBench's own list, else index."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_extent(self, ("height", "width"), 16)
        if self.names is None:
            self.names = "vbench" if (self.prompts or "").lower().endswith(".json") else "index"
        choose("backend.names", self.names, ("index", "vbench"))
        valid = self.frames is not None and self.frames > 0 and self.frames % 4 == 1
        check(valid, "backend.frames", "must be 4 k + 1", self.frames)
        check(self.fps >= 1, "backend.fps", "must be an integer >= 1", self.fps)

    def contents(self) -> dict[str, Any]:
        """With the names where they are not VBench's, as which all were when ids were first given."""
        return super().contents() | ({"names": "index"} if self.names == "index" else {})


@dataclass(kw_only=True)
class DiTConfig(PipelineConfig):
    """DiT-XL/2 on ImageNet classes; the size of its images is that of the weights. Published in fp32."""

    FULL: ClassVar[dict[str, Any]] = {"dtype": "fp32"}

    guidance: float = 1.5
    sampler: str = "official"
    """official: the published sampler; diffusers: DiTPipeline's. See `experiments.backends.dit_sampler`."""
    time_embedding: str | None = None
    """published: frequencies 10000^(-i/128), which the released weights were trained with; diffusers: 10000^(-i/127),
    which its class has; null = published with sampler=official, else diffusers."""
    classes: list[int] = field(default_factory=list)
    """Classes to cycle through; empty = i.i.d. uniform over all 1000."""
    vae: str | None = None
    """Folder of another VAE, such as sd-vae-ft-ema; null = the pipeline's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.guidance >= 1, "backend.guidance", "must be >= 1 (1 = no guidance)", self.guidance)
        choose("backend.sampler", self.sampler, ("official", "diffusers"))
        if self.sampler == "official" and self.time_embedding is None:
            self.time_embedding = "published"
        choose("backend.time_embedding", self.time_embedding or "diffusers", ("published", "diffusers"))
        for label in self.classes:
            check(0 <= label < 1000, "backend.classes", "must be from 0 to 999", label)
