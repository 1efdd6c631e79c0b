"""What a run is, as twelve hexadecimal digits.

    id = sha256(canonical JSON of the semantic settings)[:12]

Semantic are the settings that change what is computed, and only those that the method reads: sigma is no part
of a TaylorSeer run, so a sweep over it executes that run once. A group's field that equals its schema default
is left out, so that adding a field keeps old ids; changing a default therefore needs a new `VERSION`, and a part of a
method that computes something else than before gets a new edition (`EDITIONS`). Paths
of results, cluster, logging and shards are never included, and the batch size only where a policy decides for a batch
as a whole.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import hicache
from experiments.artefacts.kinds import digests
from experiments.config.backend import semantic
from experiments.config.method import StepsConfig
from experiments.config.run import Settings
from hicache.policy import POLICIES

__all__ = ["VERSION", "canonical", "depends_on_batch", "run_id", "slug"]

VERSION = 1

EDITIONS: dict[tuple[str, str], dict[str, int]] = {
    ("policy", "verify"): {"": 2},
    ("policy", "broadcast"): {"": 2, "diffusers": 3},
    ("policy", "kinds"): {"": 2},
    ("policy", "magcache"): {"hunyuan_video": 2, "qwen_image": 2, "qwen_image_edit": 2},
    ("patch", "tokens"): {"digits": 2, "dit": 2},
    ("patch", "clusters"): {"digits": 2, "dit": 2},
}
"""Parts whose results changed after runs were made with them: the edition now by backend ("" = the others)."""


def editions(settings: Settings) -> dict[str, int]:
    """The editions of the run's parts, where they are not the first."""
    method, backend = settings.method, settings.backend.name
    fixed = hicache.METHODS[method.name].fixed
    parts = [(part, getattr(method, part) or fixed.get(part)) for part in ("policy", "patch")]
    found = {name: EDITIONS.get((part, name), {}) for part, name in parts if name}
    now = {name: by.get(backend, by.get("", 1)) for name, by in found.items()}
    return {name: edition for name, edition in now.items() if edition > 1}


def canonical(settings: Settings) -> dict[str, Any]:
    """The semantic settings as plain data."""
    uses = settings.method.reads()
    described: dict[str, Any] = {
        "version": VERSION,
        "backend": semantic(settings.backend) | settings.backend.contents(),
        "method": semantic(settings.method) | digests(settings),
        "num_steps": settings.num_steps,
        "num_items": settings.num_items,
        "seed": settings.seed,
    }
    for name in ("interval", "budget", "order", "sigma", "warmup_steps", "scope"):
        if name in uses:
            described[name] = getattr(settings, name)
    if depends_on_batch(settings):
        described["batch_size"] = settings.batch_size
    if "time" in uses and settings.time != "index":
        described["time"] = settings.time
    schedule = semantic(settings.sigma_schedule)
    if "sigma_schedule" in uses and schedule != {"name": "constant"}:
        described["sigma_schedule"] = schedule
    if changed := editions(settings):
        described["editions"] = changed
    if settings.guidance.name != "plain":
        described["guidance"] = semantic(settings.guidance)
    if settings.operators.name != "none":
        described["operators"] = semantic(settings.operators)
    return described


def depends_on_batch(settings: Settings) -> bool:
    """Whether an item's result depends on the items that it is generated with."""
    method, spec = settings.method, hicache.METHODS[settings.method.name]
    policy = POLICIES.get(method.policy or spec.fixed.get("policy", "interval"))
    averaged = [method] if method.name == "hicache_adaptive" else []
    averaged += [settings.sigma_schedule] if "sigma_schedule" in method.reads() else []
    shared = any(getattr(group, "per", "sample") == "batch" for group in averaged)
    return spec.caches and (shared or (policy is not None and policy.batched)) or settings.guidance.name != "plain"


def slug(settings: Settings) -> str:
    """The readable part: backend, operators, method, the numbers that one sweeps most, guidance with fewer calls."""
    method, uses = settings.method, settings.method.reads()
    numbers = ""
    if isinstance(method, StepsConfig):
        numbers = f"t{method.steps}" + (method.solver or "")
    if "interval" in uses:
        numbers += f"n{settings.interval}"
    if "budget" in uses:
        numbers += f"k{settings.budget}"
    if "order" in uses:
        numbers += f"o{settings.order}"
    if "sigma" in uses:
        two = f"{settings.sigma:.2f}"
        numbers += f"s{two if float(two) == settings.sigma else format(settings.sigma, 'g')}"
    guided = "" if settings.guidance.name == "plain" else f"{settings.guidance.name}_guidance"
    operators = "" if settings.operators.name == "none" else settings.operators.name
    return "-".join(part for part in (settings.backend.name, operators, method.name, numbers, guided) if part)


def run_id(settings: Settings) -> str:
    """Slug and hash: the name of the run's folder."""
    text = json.dumps(canonical(settings), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{slug(settings)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
