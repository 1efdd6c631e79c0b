"""What a method cannot do with a backend, said before anything is loaded."""

from __future__ import annotations

import dataclasses
import importlib

import torch

import hicache
from experiments.backends import backend_of
from experiments.backends.base import Backend
from experiments.backends.pipeline_backend import PipelineBackend
from experiments.backends.weights import DTYPES, locate
from experiments.config.backend import FluxConfig
from experiments.config.guidance import AdaptiveGuidanceConfig
from experiments.config.method import StepsConfig, with_group
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.settings.library_method import operators_of
from experiments.settings.prepare import Run
from hicache import CacheMethod, Chipmunk
from hicache.adapters import ADAPTERS, Adapter
from hicache.operators.providers import kernels_of
from hicache.spans import check_mixing

__all__ = [
    "adapter_class",
    "check_fit",
    "check_method",
    "check_pair",
]


def check_method(settings: Settings, backend: type[Backend], chosen: CacheMethod) -> None:
    """Fail now, not after the model is loaded: for wrong values, and for what the backend does not support."""
    name = settings.backend.name
    last = max(chosen.knobs.mask or [0])
    check(last < settings.num_steps, "method.mask", f"must stay below num_steps={settings.num_steps}", last)
    if isinstance(settings.method, StepsConfig) and settings.method.solver is not None:
        rule = f"must be null for backend {name}, which has one solver"
        check(bool(backend.solvers), "method.solver", rule, settings.method.solver)
        choose("method.solver", settings.method.solver, backend.solvers)
    for key in ("front", "back"):
        given = getattr(settings.method, key)
        check(given is None or chosen.scope == "span", f"method.{key}", "must be left open without scope=span", given)
    tabled = settings.method.policy != "kinds" or "table" in (settings.method.policy_options or {})
    check(tabled, "policy", "must come with method.policy_options={table: ...} (method=smoothcache has one)", "kinds")
    check_pair(chosen, backend.transformer_class, name)
    check_guidance(settings, backend.transformer_class)
    check_operators(settings, chosen)


def check_pair(chosen: CacheMethod, kind: str | None, backend: str) -> None:
    """Fail if the transformer class of a backend cannot run a method."""
    if not chosen.caches or kind is None:
        return
    check(kind in ADAPTERS, "method", f"must be none or steps: {kind} of backend {backend} has no adapter", chosen.name)
    pair, scopes = f"backend {backend} with method {chosen.name}", adapter_class(kind).scopes
    patched = chosen.patch is not None and not adapter_class(kind).patchable
    rule = f"must not patch tokens on backend {backend}, whose modules run on whole blocks"
    check(not patched, "method", rule, chosen.name)
    check(chosen.scope in scopes, "scope", f"{pair} has {', '.join(scopes)}", chosen.scope)
    rule = f"must be span for {pair}, whose policy probes the blocks before it"
    check(not chosen.policy.probe or chosen.scope == "span", "scope", rule, chosen.scope)
    try:
        check_mixing(chosen)
    except ValueError as error:
        raise ConfigError(with_group(f"{error} ({pair})")) from error


def check_guidance(settings: Settings, kind: str | None) -> None:
    """Adaptive guidance needs two predictions that can be told apart."""
    config, chosen = settings.backend, settings.guidance.name
    if not isinstance(settings.guidance, AdaptiveGuidanceConfig):
        return
    separable = kind in ADAPTERS and adapter_class(str(kind)).guidance != "none"
    rule = f"must be plain for backend {config.name}, which has no separable guidance"
    check(separable, "guidance", rule, chosen)
    key = "true_cfg" if hasattr(config, "true_cfg") else "guidance"
    scale = getattr(config, key)
    check(scale > 1, "guidance", f"must be plain with backend.{key}={scale:g}, which is no guidance", chosen)


def check_operators(settings: Settings, built: CacheMethod) -> None:
    """Sparse operators know some models, in some sizes, as they are loaded; the rest is found on the description."""
    chosen, config, key = operators_of(settings), settings.backend, "operators"
    if chosen is None:
        return
    known = isinstance(config, FluxConfig)
    check(known, key, f"must be none for backend {config.name} (chipmunk knows flux, flux_schnell)", "chipmunk")
    plain = built.patch is None
    check(plain, key, f"must be none for method {settings.method.name}, which recomputes rows", "chipmunk")
    assert isinstance(config, FluxConfig)
    check(not config.compile, "backend.compile", "must be false with operators", config.compile)
    check(config.attention == "sdpa", "backend.attention", "must be sdpa with operators", config.attention)
    check(config.offload != "sequential", "backend.offload", "must be none or model with operators", config.offload)
    if chosen.mlp is not None:
        for name, size in (
            ("batch_size", settings.batch_size),
            ("metrics.latency_batch", settings.metrics.latency_batch),
        ):
            check(size == 1, name, "must be 1 with operators.mlp (null leaves the MLPs dense)", size)
    check_tokens(chosen, config)
    try:
        kernels_of(chosen, device_of(config.device), DTYPES[str(config.dtype)])
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_tokens(chosen: Chipmunk, config: FluxConfig) -> None:
    """Image tokens fill the squares of the order, and image and joint tokens the groups of the MLPs."""
    side = config.token_side
    height, width, text = int(config.height or 0), int(config.width or 0), int(config.text_tokens or 0)
    if chosen.order is not None:
        for key, pixels in (("backend.height", height), ("backend.width", width)):
            multiple = chosen.order[0] * side
            check(pixels % multiple == 0, key, f"must be a multiple of {multiple} with operators.order", pixels)
    if chosen.mlp is not None:
        image, group = (height // side) * (width // side), chosen.token_group
        rule = f"must make a multiple of {group} tokens with operators.mlp (operators.token_group)"
        check(image % group == 0, "backend.height, backend.width", rule, (height, width))
        check(text % group == 0, "backend.text_tokens", f"must be a multiple of {group} with operators.mlp", text)


def device_of(name: str) -> torch.device:
    """The device behind `backend.device`."""
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def adapter_class(kind: str) -> type[Adapter]:
    """The adapter of a transformer class, found without loading a model."""
    module, _, name = ADAPTERS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def check_fit(run: Run) -> None:
    """Enable the method on the model's description: what the model cannot do is said before its weights are read.

    Raises:
        ConfigError: for spans without a block, scopes that this variant of the architecture lacks, and the like.
    """
    from experiments.backends.diffusers_backend import (
        DiffusersBackend,  # late: tables and plans of known methods need none
    )
    from experiments.backends.meta_backend import blueprint_of, skeleton

    built, guidance, operators, config = run.method, run.guidance, run.operators, run.settings.backend
    if not built.caches and guidance is None and operators is None:
        return
    kind = backend_of(config)
    pretrained = getattr(config, "weights", None) == "pretrained" and not kind.fixed_architecture
    if issubclass(kind, DiffusersBackend):
        model = kind.described(config)
    elif issubclass(kind, PipelineBackend) and pretrained:
        folder = locate(config.path, kind.hub(config), config.revision)
        model = skeleton(str(kind.transformer_class), folder)
    else:
        model = blueprint_of(config).transformer
    untimed = dataclasses.replace(built, knobs=dataclasses.replace(built.knobs, time="index"))
    try:
        described = None if operators is None else dataclasses.replace(operators, provider="reference")
        hicache.enable(model, untimed, guidance, described).disable()
    except ValueError as error:
        raise ConfigError(with_group(f"{error} (backend {config.name} with method {built.name})")) from error
