"""What a method cannot do with a backend, said before anything is loaded."""

from __future__ import annotations

import dataclasses
import importlib

import hicache
from experiments.backends import backend_class
from experiments.backends.base import Backend
from experiments.backends.meta import blueprint_of, skeleton
from experiments.backends.pipeline import PipelineBackend
from experiments.backends.weights import locate
from experiments.config.guidance import AdaptiveGuidanceConfig
from experiments.config.method import StepsConfig
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.settings.method import guidance_of, method_of
from hicache import CacheMethod
from hicache.adapters import ADAPTERS, Adapter
from hicache.spans import check_mixing

__all__ = [
    "adapter_class",
    "check_fit",
    "check_method",
    "check_pair",
]


def check_method(settings: Settings, backend: type[Backend]) -> None:
    """Fail now, not after the model is loaded: for wrong values, and for what the backend does not support."""
    chosen, name = method_of(settings), settings.backend.name
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
        raise ConfigError(f"{error} ({pair})") from error


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


def adapter_class(kind: str) -> type[Adapter]:
    """The adapter of a transformer class, found without loading a model."""
    module, _, name = ADAPTERS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def check_fit(settings: Settings) -> None:
    """Enable the method on the model's description: what the model cannot do is said before its weights are read.

    Raises:
        ConfigError: for spans without a block, scopes that this variant of the architecture lacks, and the like.
    """
    built, guidance, config = method_of(settings), guidance_of(settings), settings.backend
    if not built.caches and guidance is None:
        return
    kind = backend_class(config.name)
    pretrained = getattr(config, "weights", None) == "pretrained" and not kind.fixed_architecture
    if issubclass(kind, PipelineBackend) and pretrained:
        folder = locate(config.path, kind.hub(config), config.revision)
        model = skeleton(str(kind.transformer_class), folder)
    else:
        model = blueprint_of(config).transformer
    untimed = dataclasses.replace(built, knobs=dataclasses.replace(built.knobs, time="index"))
    try:
        hicache.enable(model, untimed, guidance).disable()
    except ValueError as error:
        raise ConfigError(f"{error} (backend {config.name} with method {built.name})") from error
