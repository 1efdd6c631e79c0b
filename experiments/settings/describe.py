"""A run in words: its title, and what is known of a calibrated one before it starts."""

from __future__ import annotations

from collections.abc import Collection

import hicache
from experiments.artefacts.plans import budget_of, load_plan, path_of
from experiments.artefacts.stored_curves import calibrated_by, curve_path
from experiments.config.guidance import AdaptiveGuidanceConfig
from experiments.config.method import CalibratedConfig, SmoothCacheConfig, StepsConfig
from experiments.config.operators import ChipmunkConfig
from experiments.config.run import Settings
from experiments.settings.prepare import Run
from hicache.policy.scheduled import KindSchedule

__all__ = [
    "announcement",
    "describe_method",
    "without_effect",
]

KNOBS = ("interval", "budget", "order", "sigma", "sigma_schedule", "time", "warmup_steps", "scope")
"""Keys that some methods read."""

PARTS = ("policy", "forecaster", "patch")
"""Keys that replace parts of a method; a calibrated plan has none to replace."""


def describe_method(settings: Settings) -> str:
    """Title and the settings that the method reads, as in `HiCache (N=6, m=4, σ=0.75)`, operators and guidance."""
    title = title_of(settings)
    if isinstance(settings.operators, ChipmunkConfig):
        title = "Chipmunk" if settings.method.name == "none" else f"Chipmunk + {title}"
    if not isinstance(settings.guidance, AdaptiveGuidanceConfig):
        return title
    return f"{title}, adaptive guidance (γ={settings.guidance.threshold:g})"


def without_effect(settings: Settings, keys: Collection[str]) -> str | None:
    """What is to be said of keys that were given and that the method does not read; None if it reads all of them."""
    calibrated = isinstance(settings.method, CalibratedConfig)
    read = settings.method.reads() | ({"budget"} if calibrated else {*PARTS})
    lost = [key for key in (*KNOBS, *PARTS) if key in keys and key not in read]
    verb = "has" if len(lost) == 1 else "have"
    return f"{' and '.join(lost)} {verb} no effect on {settings.method.name}" if lost else None


def title_of(settings: Settings) -> str:
    """Title and settings of the method alone, with the parts that it was given instead of its own."""
    method, spec = settings.method, hicache.METHODS[settings.method.name]
    uses = method.reads()
    if isinstance(method, StepsConfig):
        return f"{method.solver or 'fewer steps'} ({method.steps} steps)"
    if isinstance(method, CalibratedConfig):
        return f"{spec.title} ({budget_of(settings)} full steps, {settings.scope})"
    if isinstance(method, SmoothCacheConfig):
        return f"{spec.title} (α={method.alpha:g})"
    symbols = {"interval": "N", "budget": "K", "order": "m", "sigma": "σ"}
    parts = [f"{symbol}={getattr(settings, key):g}" for key, symbol in symbols.items() if key in uses]
    parts += [part for part in (method.scope, method.policy, method.basis, method.patch) if part is not None]
    if "scope" in uses and settings.scope != "modules":
        parts.append(settings.scope)
    if "time" in uses and settings.time != "index":
        parts.append(f"in {settings.time}")
    return f"{spec.title} ({', '.join(parts)})" if parts else spec.title


def announcement(run: Run) -> str | None:
    """Full steps, what is predicted, and the artefact; None for runs without a calibration."""
    settings = run.settings
    if isinstance(settings.method, CalibratedConfig):
        plan = load_plan(settings)
        parts = [f"plan: {len(plan.full_steps)} of {plan.num_steps} steps in full {list(plan.full_steps)}"]
        if plan.closed_loop_psnr is not None:
            parts.append(f"PSNR {plan.closed_loop_psnr:.1f} dB on held-out calibration items")
        parts.append(f"open-loop error {plan.predicted_error:.3g} of reuse at the same steps")
        if plan.closed_loop_psnr is None and plan.scope == "output":
            parts.append("no closed-loop PSNR stored")
        return f"{', '.join(parts)} ({path_of(settings).name})"
    if settings.chosen:
        facts = settings.chosen
        full = run.method.policy.plan(settings.num_steps) or []
        chosen = " ".join(f"{key}={facts[key]:g}" for key in ("sigma", "order") if key in facts)
        return (
            f"plan: {len(full)} of {settings.num_steps} steps in full, auto: {chosen}, "
            f"predicted error {facts['predicted_error']:.3g} of reuse at the same steps ({facts['artefact']})"
        )
    name = calibrated_by(settings)
    if name is None:
        return None
    policy, computed = run.method.policy, ""
    if isinstance(policy, KindSchedule):
        counts = ", ".join(f"{kind} {len(steps)}" for kind, steps in policy.table.items())
        computed = f"computed of {settings.num_steps} steps: {counts}, "
    return f"plan: {computed}curves of {curve_path(settings, name).name}"
