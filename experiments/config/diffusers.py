"""Schema of the backend that runs any pipeline of diffusers, and what is known of a pipeline from its class alone."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.backend import PromptedConfig, execution
from experiments.config.prompts import Prompt, read_prompts
from experiments.errors import ConfigError, check

__all__ = ["About", "DiffusersConfig", "about"]

FIELDS = {"frames": "video", "images": "image", "audios": "audio"}
"""Field of a pipeline's output: the media in it."""

SHIPPED = {"image": "images.txt", "video": "videos.txt", "audio": "sounds.txt"}
"""The prompts that ship with the code, by what is made of them."""

ARGUMENTS = {
    "guidance": "guidance_scale",
    "negative_prompt": "negative_prompt",
    "height": "height",
    "width": "width",
    "frames": "num_frames",
}
"""Keys of the backend: arguments of a pipeline's call."""

OWN = ("prompt", "image", "num_inference_steps", "generator", "output_type", "return_dict", "latents")
"""Arguments that are not the user's."""

FALLBACK_STEPS = 50
"""Of a pipeline whose call names none."""


@dataclass(frozen=True, kw_only=True)
class About:
    """A pipeline class: the media that it makes, the field of its output that has them, and the call's arguments."""

    name: str
    media: str
    field: str
    arguments: tuple[str, ...]
    required: tuple[str, ...]
    steps: int


@functools.cache
def about(name: str) -> About:
    """What the class of a pipeline says.

    Raises:
        ConfigError: if diffusers has no such class, or it makes nothing that is kept here.
    """
    import diffusers

    rule = f"must be a pipeline class of diffusers {diffusers.__version__}"
    known = name.isidentifier() and hasattr(diffusers, name)
    check(known and "Pipeline" in name, "backend.pipeline", rule, name)
    kind: Any = getattr(diffusers, name)
    known = inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline)
    check(known and callable(kind), "backend.pipeline", rule, name)
    outputs = [
        value
        for value in vars(sys.modules[kind.__module__]).values()
        if inspect.isclass(value) and dataclasses.is_dataclass(value) and value.__name__.endswith("PipelineOutput")
    ]
    fields = {f.name for output in outputs for f in dataclasses.fields(output)}
    found = next((name for name in FIELDS if name in fields), None)
    asked = dict(inspect.signature(kind.__call__).parameters)
    made = found is not None and {"prompt", "num_inference_steps"} <= asked.keys()
    check(made, "backend.pipeline", "must make images, videos or audio from a prompt in steps", name)
    assert found is not None
    plain = [key for key, value in asked.items() if value.kind is value.POSITIONAL_OR_KEYWORD and key != "self"]
    default = asked["num_inference_steps"].default
    return About(
        name=name,
        media=FIELDS[found],
        field=found,
        arguments=tuple(plain),
        required=tuple(key for key in plain if asked[key].default is inspect.Parameter.empty),
        steps=default if isinstance(default, int) else FALLBACK_STEPS,
    )


def class_in(path: str | None, revision: str) -> str | None:
    """The class of the pipeline in a folder, or in the cached copy of a hub id; None where there is nothing yet."""
    if path is None:
        return None
    index = Path(path) / "model_index.json"
    if not Path(path).is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(path, "model_index.json", revision=revision)
        if not isinstance(found, str):
            return None
        index = Path(found)
    if not index.is_file():
        return None
    try:
        name = json.loads(index.read_text()).get("_class_name")
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise ConfigError(f"backend.path: {index} must be the index of a pipeline ({error}), got {path!r}") from error
    check(isinstance(name, str), "backend.path", f"{index} must name the class of a pipeline", path)
    return name


@dataclass(kw_only=True)
class DiffusersConfig(PromptedConfig):
    """Any pipeline of diffusers that makes images, videos or audio from a prompt, and perhaps an image.

    Keys that are null are left to the pipeline, whose own defaults they then have.
    """

    hub: str | None = execution(None)
    """Hub id of the published weights, which is looked up where `path` is null."""
    gigabytes: float | None = execution(None)
    """Size of the repository's files; null = not known."""
    licence: str = execution("see the hub page")
    pipeline: str | None = None
    """Class of the pipeline; null = what the weights name."""
    guidance: float | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    call: Any = None
    """Further arguments of the pipeline's call, such as `{strength: 0.6}`."""
    edits: bool | None = None
    """Whether prompts come with an image; null = whether the pipeline's call takes one."""
    max_batch: int | None = execution(None)
    """Most items per call, where the pipeline has a limit; null = one with an image, else none."""
    fps: int = 16
    """Of the files of videos."""
    lossless: bool = False
    """Keep the frames of videos as an 8-bit array beside the mp4 and measure on that."""
    rate: int = 44100
    """Samples per second of the files of audio."""
    vae_tiling: bool = False
    """Decode in tiles: less memory, edges blended."""

    def __post_init__(self) -> None:
        if self.pipeline is None:
            found = class_in(self.path or self.hub, self.revision)
            self.pipeline = found
        known = self.about
        if self.recommended.num_steps == 0:
            self.recommended.num_steps = FALLBACK_STEPS if known is None else known.steps
        if self.edits is None:
            self.edits = known is not None and "image" in known.arguments
        super().__post_init__()
        for key in ("height", "width", "frames", "max_batch"):
            value = getattr(self, key)
            check(value is None or value >= 1, f"backend.{key}", "must be an integer >= 1", value)
        for key in ("fps", "rate"):
            check(getattr(self, key) >= 1, f"backend.{key}", "must be an integer >= 1", getattr(self, key))
        check(isinstance(self.call, dict | None), "backend.call", "must be like {argument: value}", self.call)
        valid = self.guidance is None or 0 <= self.guidance < float("inf")
        check(valid, "backend.guidance", "must be a finite number >= 0", self.guidance)
        if known is not None:
            self._check_call(known)

    def _check_call(self, known: About) -> None:
        """Whatever is set must be an argument of the pipeline's call."""
        for key, argument in ARGUMENTS.items():
            value = getattr(self, key)
            fits = value is None or argument in known.arguments
            check(fits, f"backend.{key}", f"must be null for {known.name}, which takes no {argument}", value)
        for key in self.call or {}:
            check(key not in OWN, "backend.call", f"must leave {key} to the backend", key)
            free = ", ".join(name for name in known.arguments if name not in OWN)
            check(key in known.arguments, "backend.call", f"must have arguments of {known.name} ({free})", key)
        takes = not self.edits or "image" in known.arguments
        check(takes, "backend.edits", f"must be false for {known.name}, which takes no image", self.edits)
        lacking = [name for name in known.required if name not in (*OWN, *(self.call or {}))]
        needs = f"must need no more than a prompt and an image (it needs {', '.join(lacking)})"
        check(not lacking, "backend.pipeline", needs, known.name)

    @property
    def about(self) -> About | None:
        """What is known of the pipeline; None while nothing says its class."""
        return None if self.pipeline is None else about(self.pipeline)

    @property
    def media(self) -> str:
        """What the pipeline makes."""
        return "image" if self.about is None else self.about.media

    def read(self) -> list[Prompt]:
        shipped = "edits.jsonl" if self.edits else SHIPPED[self.media]
        found = read_prompts(self.prompts or shipped, self.unquote)
        for prompt in found if self.edits else ():
            check(len(prompt.images) == 1, "backend.prompts", "must have one image per line", prompt.text)
        return found
