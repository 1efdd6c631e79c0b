"""Models to run: `conf/backend/<name>.yaml` has the settings, one module here the code.

A new backend is a module with a subclass of `experiments.backends.base.Backend`, a line in `BACKENDS` and a
YAML. A pipeline of diffusers needs no module: a YAML with its class is all.
"""

from __future__ import annotations

from experiments.backends.base import Backend
from experiments.config.backend import BackendConfig
from experiments.config.compose import options
from experiments.config.imports import load
from experiments.errors import choose

__all__ = ["ALIASES", "BACKENDS", "PRESETS", "backend_class", "backend_of", "load_backend"]

BACKENDS: dict[str, str] = {
    "digits": "experiments.backends.digits.backend:DigitsBackend",
    "emoji": "experiments.backends.emoji.backend:EmojiBackend",
    "flux": "experiments.backends.flux:FluxBackend",
    "flux_schnell": "experiments.backends.flux:SchnellBackend",
    "dit": "experiments.backends.dit:DiTBackend",
    "hunyuan_video": "experiments.backends.hunyuan_video:HunyuanVideoBackend",
    "qwen_image": "experiments.backends.qwen_image:QwenImageBackend",
    "qwen_image_edit": "experiments.backends.qwen_image:QwenImageEditBackend",
    "inf_dit": "experiments.backends.inf_dit.backend:InfDiTBackend",
    "inf_dit_small": "experiments.backends.inf_dit.backend:InfDiTSmallBackend",
}
"""Name -> module:class; imported on use, because a backend brings its libraries along."""

ALIASES: dict[str, str] = {"flux_chipmunk": "flux"}
"""Further names in `conf/backend/`: a backend that comes with a choice in another group."""

PRESETS = tuple(name for name in options("backend") if name not in {**BACKENDS, **ALIASES})
"""The other names in `conf/backend/`: pipelines of the generic backend (`experiments.backends.diffusers_backend`)."""


def backend_class(name: str) -> type[Backend]:
    """The class of a backend; nothing is loaded yet."""
    known = {**BACKENDS, **dict.fromkeys(PRESETS, "experiments.backends.diffusers_backend:DiffusersBackend")}
    module, _, attribute = known[choose("backend", name, known)].partition(":")
    return getattr(load(module), attribute)


def backend_of(config: BackendConfig) -> type[Backend]:
    """The class of the backend that a configuration means."""
    return backend_class(config.name).of(config)


_loaded: dict[str, Backend] = {}


def load_backend(config: BackendConfig) -> Backend:
    """The loaded model; the last one is kept, so that the rows of a sweep share it."""
    key = repr(config)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = backend_of(config)(config)
    return _loaded[key]
